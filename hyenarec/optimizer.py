"""AdamW with a learning rate that is a function of the step, and what is decayed by what it is."""

from __future__ import annotations

import math

import torch
from torch import nn

from hyenarec.config import OptimizerConfig
from hyenarec.model import KERNELS


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over two groups of the model's parameters: those that decay, then all others."""
    decayed, others = parameter_groups(model)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Splits the parameters into those that weight decay shrinks and those that it leaves alone.

    Decayed are the matrices of linear and recurrent layers: zero is their neutral value. Not decayed are
    biases, norms, embeddings, convolution taps, and all that makes a long kernel, linear layers included:
    shrinking a decay rate, a coefficient or a filter's phase changes a shape, not a size.
    """
    kernels = tuple(KERNELS.values())
    in_kernels = {p for module in model.modules() if isinstance(module, kernels) for p in module.parameters()}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.RNNBase)]
    matrices = {p for layer in layers for p in layer.parameters() if p.dim() == 2} - in_kernels
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if p in matrices], [p for p in trained if p not in matrices]


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of a step, counted from 0 over the whole run.

    It grows linearly to the peak, which step `warmup_steps` is the first to have; then it stays, or follows
    half a cosine down to `final_rate` x the peak, which the last step, `total_steps - 1`, has.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return config.learning_rate
    passed = (step - config.warmup_steps) / max(total_steps - 1 - config.warmup_steps, 1)
    share = (1 + math.cos(math.pi * min(passed, 1.0))) / 2
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * share)
