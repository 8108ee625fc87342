"""What training lowers: softmax cross-entropy over the whole catalogue, a block of events at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hyenarec.model import SequentialModel

ROWS_PER_BLOCK = 256
"""Events whose scores exist at one time; small enough that a block of 256 x 4,000 float32 stays in cache."""


class _BlockedCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss, so that no block of scores is made twice or kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        needs = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if needs[0] else None
        d_weight = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            if needs[1]
            else None
        )
        d_bias = torch.zeros_like(bias) if needs[2] else None
        loss = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for begin in range(0, hidden.shape[0], ROWS_PER_BLOCK):
            rows = slice(begin, begin + ROWS_PER_BLOCK)
            h, t = hidden[rows], target[rows, None]
            real, t = t >= 0, t.clamp(min=0)
            scores = torch.addmm(bias.to(h.dtype), h, weight.t()).to(loss.dtype)
            # Where there is no target, all probabilities become 0. Selecting rows would make a GPU wait.
            log_normalizer = scores.logsumexp(dim=1, keepdim=True).masked_fill_(~real, torch.inf)
            loss += (log_normalizer - scores.gather(1, t)).where(real, 0).sum()
            if not any(needs):
                continue
            d_scores = scores.sub_(log_normalizer).exp_()
            d_scores.scatter_add_(1, t, -real.to(d_scores.dtype))
            if d_bias is not None:
                d_bias += d_scores.sum(0)
            d_scores = d_scores.to(h.dtype)
            if d_hidden is not None:
                torch.mm(d_scores, weight, out=d_hidden[rows])
            if d_weight is not None:
                if d_weight.dtype == h.dtype:
                    d_weight.addmm_(d_scores.t(), h)
                else:
                    d_weight += d_scores.t() @ h
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype), d_bias)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors), None)


def cross_entropy_sum(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """Sum over the events of `-log softmax(hidden · weightᵀ + bias)[target]`.

    The scores `[M, V]` never exist at once: memory is O(M D + V D) plus one block of `ROWS_PER_BLOCK` rows.

    Args:
        hidden: `[M, D]`, one row an event.
        weight: `[V, D]`, one row an item; same dtype as `hidden`. Under autocast both are rounded to its
            dtype for the products; the sums stay float32.
        bias: `[V]`.
        target: `[M]` int64, the row of `weight` that came next, in `[0, V)`; an event with -1 is left out.

    Returns:
        A scalar, at least float32. Second derivatives raise an error.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "hidden must be [M, D] and weight [V, D] with the same D, "
            f"got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [V] with V = {weight.shape[0]}, got {list(bias.shape)}")
    if target.shape != hidden.shape[:1] or target.dtype != torch.int64:
        raise ValueError(
            f"target must be int64 [M] with M = {hidden.shape[0]}, got {target.dtype} {list(target.shape)}"
        )
    if torch.is_autocast_enabled(hidden.device.type):
        half = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(half), weight.to(half)
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _BlockedCrossEntropy.apply(hidden, weight, bias, target)  # type: ignore[no-untyped-call]
    return loss


class NextItemLoss(nn.Module):
    """A model's loss as a module's forward: what mixed precision and gradient synchronisation wrap."""

    def __init__(self, model: SequentialModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, offsets: Tensor | None, targets: Tensor) -> Tensor:
        """Sum of the cross-entropy over the positions whose target is an item; targets of 0 are left out.

        Packed batches have a target at every position. Scores are computed for padding, too, then ignored.

        Args:
            items: int64, `[B, L]` or packed `[total]`, as the model takes them.
            offsets: int64 `[B + 1]` of packed sequences.
            targets: int64 like `items`, the item that came next, 1..V, or 0.
        """
        hidden = self.model(items, offsets).flatten(0, -2)
        return cross_entropy_sum(hidden, self.model.item_weight, self.model.item_bias, targets.flatten() - 1)
