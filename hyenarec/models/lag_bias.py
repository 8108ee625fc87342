"""A bias for the scores of the latest items: how likely people take again what they took so long ago.

    score[j] += b[τ(j)] + a[age(j)]     of each item j among the `LAGS` latest events

τ(j) is the number of events since, and age(j) the bin between `AGES` of the seconds from then to the
question; without times there is no a.

In blocks with a residual path a hidden row holds the vector of the last item itself, and scores are products
with the same vectors: without a bias the network has to learn, in all its channels, not to recommend what was
there just now. With it one number says that, for each lag.

Source: a repetition penalty as of Keskar et al., "CTRL: a conditional transformer language model for
controllable generation", arXiv 1909.05858, here learned, by lag, and in training, too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hyenarec.data.times import Times
from hyenarec.models.time import AGES

LAGS = 16
"""Events back to which items have a bias."""


class Latest(NamedTuple):
    """The latest items of some histories, by lag.

    Attributes:
        columns: int64 `[n, LAGS]`, of scores: ids - 1; -1 where there is no event, or the item has come again
            since.
        ages: int64 `[n, LAGS]`, seconds from the event to the question, of no meaning where there is no
            event; None without times.
    """

    columns: Tensor
    ages: Tensor | None


class LagBias(nn.Module):
    """The bias; see the top of this file.

    Args:
        with_time: whether there is a.
    """

    bounds: Tensor

    def __init__(self, with_time: bool) -> None:
        super().__init__()
        self.by_lag = nn.Parameter(torch.zeros(LAGS))  # b
        self.by_age = nn.Parameter(torch.zeros(len(AGES))) if with_time else None  # a
        self.register_buffer("bounds", torch.tensor(AGES[1:]), persistent=False)

    def forward(self, latest: Latest) -> Tensor:
        """What is added to the scores of the latest items, `[n, LAGS]`."""
        if self.by_age is None:
            return self.by_lag.expand_as(latest.columns)
        assert latest.ages is not None
        return self.by_lag + self.by_age[torch.bucketize(latest.ages, self.bounds, right=True)]

    def add_to(self, scores: Tensor, latest: Latest, first: int) -> Tensor:
        """Adds it, in place, to the scores `[B, v]` of the columns from `first` on."""
        place = latest.columns - first
        here = (latest.columns >= 0) & (place >= 0) & (place < scores.shape[1])
        bias = self(latest).to(scores.dtype).masked_fill(~here, 0)
        row = torch.arange(len(scores), device=scores.device)[:, None]
        return scores.index_put_((row, place.clamp(0, scores.shape[1] - 1)), bias, accumulate=True)


def latest_of_events(items: Tensor, offsets: Tensor, seconds: Times | None = None) -> Latest:
    """The latest items of each event's history, up to itself.

    Args:
        items: int64 `[total]`, packed; 0 is no item.
        offsets: int64 `[B + 1]`.
        seconds: of the events and of the questions after them, if moments are known.
    """
    event = torch.arange(len(items), device=items.device)
    row = torch.bucketize(event, offsets[1:], right=True)
    return _latest(items, event, offsets.index_select(0, row), seconds)


def latest_of_histories(items: Tensor, offsets: Tensor, seconds: Times | None = None) -> Latest:
    """The latest items of whole histories, which may be empty; `seconds` has a question for each."""
    return _latest(items, offsets[1:] - 1, offsets[:-1], seconds)


def _latest(items: Tensor, last: Tensor, begin: Tensor, seconds: Times | None) -> Latest:
    """Of parts of the events, each with a question, that begin and end there, `[n]` each."""
    place = last[:, None] - torch.arange(LAGS, device=items.device)
    found = _at(items, place).masked_fill(place < begin[:, None], 0)
    again = (found[:, :, None] == found[:, None, :]).tril(-1).any(2)
    ages = None if seconds is None else seconds.asked[:, None] - _at(seconds.events, place)
    return Latest(found.masked_fill(again, 0) - 1, ages)


def _at(events: Tensor, place: Tensor) -> Tensor:
    """Of no meaning before the first one; there may be none at all."""
    return nn.functional.pad(events, (0, 1))[place.clamp(min=0)]
