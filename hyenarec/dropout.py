"""Dropout whose random numbers cost little on a CPU, too."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 2**16
"""The probability is rounded to a multiple of 1 / LEVELS: 16 random bits an element."""


class Dropout(nn.Dropout):
    """Like `nn.Dropout`: zero with probability `p`, else times 1 / (1 - p), while training.

    On a CPU torch draws one number after another from a Mersenne twister: an eighth of a training step.
    Here NumPy's SFC64 draws four elements' bits at once; torch's generator gives its seed, so that
    `torch.manual_seed` and a saved random state still decide everything. Elsewhere, and traced by
    `torch.compile`, it is `nn.Dropout` itself.
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


def _random_levels(like: Tensor) -> Tensor:
    """A number from -LEVELS / 2 to LEVELS / 2 - 1 for each element, int16."""
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = -(-like.numel() * 2 // 8)
    generator = np.random.Generator(np.random.SFC64(seed))
    bits = generator.integers(0, 2**64, size=words, dtype=np.uint64).view(np.int16)
    return torch.from_numpy(bits)[: like.numel()].view(like.shape)
