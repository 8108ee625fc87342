"""A bias for the scores of the latest items: how likely people take again what they took so many events ago.

    score[j] += b[τ(j)]     of each item j among the `LAGS` latest events, τ(j) the number of events since

A hidden row holds the vector of the last item itself, in blocks with a residual path, and the scores are
products with the same vectors: without b the network has to learn, in all its channels, not to recommend what
was there just now. With it one number says that, for each lag.

Source: a repetition penalty as of Keskar et al., "CTRL: a conditional transformer language model for
controllable generation", arXiv 1909.05858, here learned, by lag, and in training, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LAGS = 16
"""Events back to which items have a bias."""


class LagBias(nn.Module):
    """The bias b; see the top of this file."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(LAGS))

    def forward(self, columns: Tensor) -> Tensor:
        """What is added to scores at `columns`, which `of_events` gives: `[n, LAGS]`, each row b."""
        return self.bias.expand_as(columns)

    def add_to(self, scores: Tensor, columns: Tensor, first: int) -> Tensor:
        """Adds it, in place, to the scores `[B, v]` of the columns from `first` on."""
        place = columns - first
        here = (columns >= 0) & (place >= 0) & (place < scores.shape[1])
        bias = self(columns).to(scores.dtype).masked_fill(~here, 0)
        row = torch.arange(len(scores), device=scores.device)[:, None]
        return scores.index_put_((row, place.clamp(0, scores.shape[1] - 1)), bias, accumulate=True)


def of_events(items: Tensor, offsets: Tensor) -> Tensor:
    """The latest items of each event's history, up to itself.

    Args:
        items: int64 `[total]`, packed; 0 is no item.
        offsets: int64 `[B + 1]`.

    Returns:
        int64 `[total, LAGS]`, by lag: the columns of scores, ids - 1; -1 where there is no event, or the item
        has come again since.
    """
    event = torch.arange(len(items), device=items.device)
    row = torch.bucketize(event, offsets[1:], right=True)
    return _columns(items, event, offsets.index_select(0, row))


def of_histories(items: Tensor, offsets: Tensor) -> Tensor:
    """The same of whole histories, which may be empty: `[B, LAGS]`."""
    return _columns(items, offsets[1:] - 1, offsets[:-1])


def _columns(items: Tensor, last: Tensor, begin: Tensor) -> Tensor:
    """Of parts of the events that begin and end there, `[n]` each."""
    place = last[:, None] - torch.arange(LAGS, device=items.device)
    found = nn.functional.pad(items, (0, 1))[place.clamp(min=0)]  # there may be no item at all
    found = found.masked_fill(place < begin[:, None], 0)
    again = (found[:, :, None] == found[:, None, :]).tril(-1).any(2)
    return found.masked_fill(again, 0) - 1
