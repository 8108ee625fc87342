"""Training on the items after the next one, too: each event's target is then a mixture of several items.

Where most items have few events, which things are near each other tells more than their order. The
cross-entropy of a mixture of targets is that of the next item, plus how far the next item's score is above
the mixture's mean score:

    Σ_k w_k (log Σ_j exp(s_j) - s[t_k])  =  log Σ_j exp(s_j) - s[t_1]  +  s[t_1] - Σ_k w_k s[t_k]

so that the sum over the catalogue is taken once.

Source: Pancha et al., "PinnerFormer: sequence modeling for user representation at Pinterest", KDD 2022, for
targets further ahead (there drawn from a window of days, with equal weights).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FADING = 0.5
"""The weight of each target over that of the one before it."""


def targets_ahead(targets: Tensor, offsets: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
    """The next items of each event in its sequence, and their weights.

    Args:
        targets: int64 `[M]`, the next item of each event of packed sequences, 1..V; 0 for none.
        offsets: int64 `[B + 1]`, of the sequences.
        lookahead: K, how many items.

    Returns:
        Items `[M, K]`, 0 where there are no more, and float32 weights `[M, K]`, whose sum is 1 for each event
        that has a next item, and 0 for others.
    """
    events = len(targets)
    place = torch.arange(events, device=targets.device)[:, None]
    place = place + torch.arange(lookahead, device=targets.device)
    end = torch.repeat_interleave(offsets[1:], offsets.diff(), output_size=events)[:, None]
    items = targets[place.clamp(max=max(events - 1, 0))].masked_fill(place >= end, 0)
    weights = FADING ** torch.arange(lookahead, dtype=torch.float32, device=targets.device)
    weights = weights * ((items > 0) & (targets > 0)[:, None])
    return items, weights / weights.sum(1, keepdim=True).clamp(min=1)


def lead_of_the_next(hidden: Tensor, weight: Tensor, bias: Tensor, items: Tensor, weights: Tensor) -> Tensor:
    """Σ over the events of s[t_1] - Σ_k w_k s[t_k], a scalar; products are not rounded under autocast.

    Args:
        hidden: `[M, D]`, one row an event.
        weight: `[V, D]`, one row an item.
        bias: `[V]`.
        items: `[M, K]`, with `weights` as `targets_ahead` gives them.
        weights: `[M, K]`.
    """
    has_target = (items[:, :1] > 0).to(weights)
    signs = torch.cat([has_target - weights[:, :1], -weights[:, 1:]], 1).to(weight)
    columns = (items - 1).clamp(min=0)
    # Not bias[columns]: with several threads its gradient would be summed up in an order of chance.
    rows, biases = (
        F.embedding_bag(columns, table, mode="sum", per_sample_weights=signs)
        for table in (weight, bias[:, None])
    )
    return (hidden * rows).sum() + biases.sum()
