"""Dropout with random numbers that are cheap on a CPU, too: alone, or fused with an addition and a norm."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hyenarec import ops

LEVELS = 2**16
"""The probability is rounded to a multiple of 1 / LEVELS: 16 random bits an element."""


class Dropout(nn.Dropout):
    """Like `nn.Dropout`: zero with probability `p`, otherwise scaled by 1 / (1 - p), while training.

    On a CPU torch draws one number at a time from a Mersenne twister, which takes an eighth of a training
    step. Here NumPy's SFC64 draws the bits of four elements at once; its seed comes from torch's generator,
    so that `torch.manual_seed` and a saved random state still determine everything. On other devices, and
    under `torch.compile`, this is `nn.Dropout` itself. `add_norm` has random numbers of its own, seeded
    alike.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape -> the same shape and dtype."""
        if not self.training or self.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = round(self.p * LEVELS)
        if dropped == LEVELS:
            return x * 0
        keep = (_random_levels(x) >= dropped - LEVELS // 2).to(x.dtype)
        return x * keep.mul_(LEVELS / (LEVELS - dropped))

    def add_norm(
        self, hidden_states: Tensor, residual: Tensor | None, norm: nn.LayerNorm
    ) -> tuple[Tensor, Tensor]:
        """`norm` of residual + dropout(hidden_states), then that sum: one operator, on any device.

        Args:
            hidden_states: `[..., D]`, a branch's output.
            residual: `[..., D]`. None: zeros.
            norm: over D channels, with weight and bias. It is not called, so its hooks don't run.
        """
        p = self.p if self.training else 0.0
        seed = _random_seed(hidden_states.device) if p > 0 else None
        return ops.dropout_add_layer_norm(hidden_states, residual, norm.weight, norm.bias, p, norm.eps, seed)


def _random_seed(device: torch.device) -> Tensor:
    """An int64 scalar from torch's generator of that device; on a GPU nothing waits for it."""
    return torch.randint(2**63 - 1, (), device=device)


def _random_levels(like: Tensor) -> Tensor:
    """A number from -LEVELS / 2 to LEVELS / 2 - 1 for each element, int16."""
    words = -(-like.numel() * 2 // 8)
    generator = np.random.Generator(np.random.SFC64(int(_random_seed(like.device))))
    bits = generator.integers(0, 2**64, size=words, dtype=np.uint64).view(np.int16)
    return torch.from_numpy(bits)[: like.numel()].view(like.shape)
