"""A model's first steps of training on one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec.models.sequential import SequentialModel
from hyenarec.train.loss import NextItemLoss


def losses_of_steps(
    model: SequentialModel,
    items: Tensor,
    offsets: Tensor | None,
    targets: Tensor,
    *,
    steps: int,
    learning_rate: float,
) -> list[float]:
    """The mean loss at each step; every gradient must be there, and finite."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        loss = NextItemLoss(model)(items, offsets, targets) / items.numel()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    return losses
