"""What training lowers: softmax cross-entropy over the whole catalogue, without the scores in memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyenarec import ops
from hyenarec.model import HyenaRec


class NextItemLoss(nn.Module):
    """A model's loss as a module's forward: what mixed precision and gradient synchronisation wrap."""

    def __init__(self, model: HyenaRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, offsets: Tensor | None, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy over the positions whose target is an item; targets of 0 are left out.

        Packed batches have a target at every position. Scores are computed for padding, too, then ignored.
        Under autocast, hidden states and item vectors are rounded to its dtype for the products only.

        Args:
            items: int64, `[B, L]` or packed `[total]`, as the model takes them.
            offsets: int64 `[B + 1]` of packed sequences.
            targets: int64 like `items`, the item that came next, 1..V, or 0.

        Returns:
            A scalar, at least float32.
        """
        hidden, weight = self.model(items, offsets).flatten(0, -2), self.model.item_weight
        if torch.is_autocast_enabled(hidden.device.type):
            half = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(half), weight.to(half)
        return ops.linear_cross_entropy(
            hidden, weight, self.model.item_bias, targets.flatten() - 1, reduction="sum"
        )
