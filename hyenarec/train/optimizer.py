"""AdamW that is lazy for sparse gradients, its learning rate schedule, and which parameters decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hyenarec.config import OptimizerConfig
from hyenarec.config.auto import settled, with_fixed
from hyenarec.models.kernels import KERNELS


class LazyAdamW(torch.optim.AdamW):
    """AdamW that updates only the rows that occur in a row-sparse gradient.

    Each row is treated like a parameter of its own in the steps in which it has a gradient; any other step
    leaves its values, moments and step count unchanged and costs nothing. Bias correction uses the row's own
    step count: with the steps of the whole run, as in `torch.optim.SparseAdam`, the first updates of a rare
    row would have a different size from those of a frequent one. Weight decay, too, acts only on the rows of
    the gradient.

    With dense gradients this is `torch.optim.AdamW`; with sparse ones that hold every row it is the same up
    to rounding. A parameter's gradients are either all dense or all sparse.

    A gradient scaler keeps its scale, and whether a gradient overflowed, on the device; a step that must be
    skipped writes the old values there. So the host never waits for a GPU, for AdamW's own parameters or for
    rows.

    Args:
        groups: parameters, or parameter groups, as every optimiser takes them.
        lr: learning rate.
        betas: exponential decay rates of the two moments.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    def __init__(
        self, groups: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, betas: tuple[float, float]
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure`, if there is one, computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse = [
            (group, parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for _, parameter, _ in sparse:
            parameter.grad = None  # AdamW skips it
        super().step()
        for group, parameter, gradient in sparse:
            self._step_rows(group, parameter, gradient.coalesce())
            parameter.grad = gradient
        return loss

    def _step_rows(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        """Updates the rows in `gradient`, in time and memory that depend only on their number."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(len(parameter), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        index, grad = gradient.indices()[0], self._unscaled(gradient.values())
        (beta1, beta2), lr = group["betas"], group["lr"]
        step = state["step"].index_select(0, index).add_(1)
        first = state["exp_avg"].index_select(0, index).lerp_(grad, 1 - beta1)
        second = state["exp_avg_sq"].index_select(0, index).mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        for name, rows in (("step", step), ("exp_avg", first), ("exp_avg_sq", second)):
            self._write_rows(state[name], index, rows)
        # 1 - beta^step in float64, for at first it is a small difference; one number a row.
        step = step.double().view(-1, *(1,) * (grad.dim() - 1))
        rate = (lr / (1 - beta1**step)).to(grad.dtype)
        scale = (1 - beta2**step).sqrt_().to(grad.dtype)
        update = first.mul_(rate).div_(second.sqrt_().div_(scale).add_(group["eps"]))
        rows = parameter.index_select(0, index).mul_(1 - lr * group["weight_decay"]).sub_(update)
        self._write_rows(parameter, index, rows)

    def _unscaled(self, gradient: Tensor) -> Tensor:
        """The gradient without the scale of a gradient scaler, if there is one."""
        scale: Tensor | None = getattr(self, "grad_scale", None)
        return gradient if scale is None else gradient / scale

    def _write_rows(self, table: Tensor, index: Tensor, rows: Tensor) -> None:
        """Writes the rows into the table, unless a gradient scaler found that a gradient overflowed."""
        overflowed: Tensor | None = getattr(self, "found_inf", None)
        if overflowed is not None:
            rows = torch.where(overflowed > 0, table.index_select(0, index), rows)
        table.index_copy_(0, index, rows)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> LazyAdamW:
    """AdamW over two parameter groups: those with weight decay, then all others."""
    config = with_fixed(config, "optimizer.")
    decayed, others = parameter_groups(model)
    return LazyAdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settled(config.learning_rate),
        betas=config.betas,
    )


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Splits the parameters into those with weight decay and those without.

    The matrices of linear and recurrent layers decay: zero is their neutral value. Biases, norms, embeddings,
    convolution taps and everything that makes a long kernel, linear layers included, do not: shrinking a
    decay rate, a coefficient or a filter's phase changes a kernel's shape, not its size.
    """
    kernels = tuple(KERNELS.values())
    in_kernels = {p for module in model.modules() if isinstance(module, kernels) for p in module.parameters()}
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.RNNBase)]
    matrices = {p for layer in layers for p in layer.parameters() if p.dim() == 2} - in_kernels
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if p in matrices], [p for p in trained if p not in matrices]


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of a step, counted from 0 over the whole run.

    It grows linearly to the peak, which it reaches at step `warmup_steps`; then it stays there, or follows
    half a cosine down to `final_rate` x the peak at the last step, `total_steps - 1`.
    """
    peak = settled(config.learning_rate)
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return peak
    passed = (step - config.warmup_steps) / max(total_steps - 1 - config.warmup_steps, 1)
    share = (1 + math.cos(math.pi * min(passed, 1.0))) / 2
    return peak * (config.final_rate + (1 - config.final_rate) * share)
