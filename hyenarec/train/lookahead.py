"""Training on the items after the next one, too: each event's target is then a mixture of several items.

Of sparse data the order of a few events tells less than that they are near each other. The cross-entropy of a
mixture of targets is that of the next item, plus how much higher its score is than the mixture's mean:

    Σ_k w_k (log Σ_j exp(s_j) - s[t_k])  =  log Σ_j exp(s_j) - s[t_1]  +  s[t_1] - Σ_k w_k s[t_k]

so that the sum over the catalogue is taken once.

Source: Pancha et al., "PinnerFormer: sequence modeling for user representation at Pinterest", KDD 2022, for
targets further ahead (there drawn from a window of days, with equal weights).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EVENTS = 3
"""How far ahead targets are, at most."""


def targets_ahead(targets: Tensor, offsets: Tensor, fading: float) -> tuple[Tensor, Tensor]:
    """The next `EVENTS` items of each event in its sequence, and their weights.

    Args:
        targets: int64 `[M]`, the next item of each event of packed sequences, 1..V; 0 for none.
        offsets: int64 `[B + 1]`, of the sequences.
        fading: from 0 to 1: the weight of each item over that of the one before it.

    Returns:
        Items `[M, EVENTS]`, 0 where there are no more, and float32 weights `[M, EVENTS]`, whose sum is 1 for
        each event that has a target, and 0 for others.
    """
    events = len(targets)
    place = torch.arange(events, device=targets.device)[:, None]
    place = place + torch.arange(EVENTS, device=targets.device)
    end = torch.repeat_interleave(offsets[1:], offsets.diff(), output_size=events)[:, None]
    items = targets[place.clamp(max=max(events - 1, 0))].masked_fill(place >= end, 0)
    weights = fading ** torch.arange(EVENTS, dtype=torch.float32, device=targets.device)
    weights = weights * ((items > 0) & (targets > 0)[:, None])
    return items, weights / weights.sum(1, keepdim=True).clamp(min=1)


def lead_of_the_next(hidden: Tensor, weight: Tensor, bias: Tensor, items: Tensor, weights: Tensor) -> Tensor:
    """Σ over the events of s[t_1] - Σ_k w_k s[t_k], a scalar.

    Args:
        hidden: `[M, D]`, one row an event.
        weight: `[V, D]`, one row an item.
        bias: `[V]`.
        items: `[M, K]`, with `weights` as `targets_ahead` gives them.
        weights: `[M, K]`.
    """
    has_target = (items[:, :1] > 0).to(weights)
    signs = torch.cat([has_target - weights[:, :1], -weights[:, 1:]], 1)
    columns = (items - 1).clamp(min=0)
    rows = F.embedding_bag(columns, weight, mode="sum", per_sample_weights=signs.to(weight))
    return (hidden * rows).sum() + (signs * bias[columns]).sum()
