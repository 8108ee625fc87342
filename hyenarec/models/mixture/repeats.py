"""Repeats: how often the history has each of its items, and how long ago it had it last.

    E[k, j] = Σ_{s: item_s = j} exp(-r_k (t - s))     of each rate r_k in `fading.py`
    E[b, j] = F[j] if τ[j] lies in bin b, else 0      of each bin between `LAGS`

t is the last event, τ[j] the number of events since j occurred last, and F[j] the sum of the first line with
the half-life `FREQUENCY`, as of then. So the second line says when items return, for instance after a rest.

Source: a copy mechanism as of Gu et al., "Incorporating Copying Mechanism in Sequence-to-Sequence Learning",
ACL 2016, with functions of time in place of attention.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from hyenarec.data.times import Times
from hyenarec.models.mixture.evidence import Evidence, Source, rows_and_lags
from hyenarec.models.mixture.fading import HALF_LIVES, FadingSums, faded

LAGS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048)
"""Where bins begin; the last one has no end."""

FREQUENCY = 64


class Repeats(Source):
    """Counts the items of the history; see the top of this file, and `Source`."""

    kinds = len(HALF_LIVES) + len(LAGS)

    def evidence(self, items: Tensor, offsets: Tensor, seconds: Times | None = None) -> Evidence:
        """Amounts of the histories' items; see `Source`."""
        row, lag = rows_and_lags(offsets, len(items))
        key, place = torch.unique(row * (self.num_items + 1) + items, return_inverse=True)
        sums = torch.zeros(len(key), len(HALF_LIVES), dtype=torch.float64, device=items.device)
        sums = sums.index_add_(0, place, faded(lag))
        latest = torch.full_like(key, len(items)).scatter_reduce_(0, place, lag, "amin")
        row, item = key // (self.num_items + 1), key % (self.num_items + 1)
        return self.of_sums(row, item, sums, latest, len(offsets) - 1)

    def of_sums(self, row: Tensor, item: Tensor, sums: Tensor, latest: Tensor, rows: int) -> Evidence:
        """From the amounts of the first line `[n, K]` and τ `[n]` of distinct items of histories."""
        each = Evidence.of_every_kind(row, item, sums, rows, self.num_items)
        which = HALF_LIVES.index(FREQUENCY)
        # Both are 0 where the last occurrence is beyond what a float64 can tell.
        frequency = (sums[:, which] / faded(latest)[:, which]).nan_to_num(1.0)
        bounds = torch.tensor(LAGS[1:], device=latest.device)
        kind = len(HALF_LIVES) + torch.bucketize(latest, bounds, right=True)
        return Evidence(
            torch.cat([each.row, row]),
            torch.cat([each.kind, kind]),
            torch.cat([each.item, item]),
            torch.cat([each.amount, frequency]),
            (rows, self.kinds, self.num_items),
        )

    def memory(self, device: torch.device) -> RepeatMemory:
        """A sum for each distinct item."""
        return RepeatMemory(self, device)


class RepeatMemory:
    """The occurrences in one growing history: constant time an event, memory for each distinct item."""

    def __init__(self, source: Repeats, device: torch.device) -> None:
        self._source, self._device = source, device
        self._occurred = FadingSums()
        self._length = 0

    def append(self, item: int, second: int | None = None) -> None:
        """Adds the next event."""
        self._occurred.append(item, self._length)
        self._length += 1

    def evidence(self, asked: int | None = None) -> Evidence:
        """Amounts of the history's items."""
        item = torch.tensor(list(self._occurred.rows), dtype=torch.int64, device=self._device)
        sums, latest = (x.to(self._device) for x in self._occurred.at(self._length - 1))
        return self._source.of_sums(torch.zeros_like(item), item, sums, latest, 1)

    def copy(self) -> Self:
        """An independent copy."""
        other = copy.copy(self)
        other._occurred = self._occurred.copy()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self._occurred.nbytes
