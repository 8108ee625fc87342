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
from hyenarec.models.mixture.fading import HALF_LIVES, FadingSums, OfItems, frequency

LAGS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048)
"""Where bins begin; the last one has no end."""


class Repeats(Source):
    """Counts the items of the history; see the top of this file, and `Source`."""

    kinds = len(HALF_LIVES) + len(LAGS)
    bins = range(len(HALF_LIVES), kinds)
    unit = 0.05
    lags: Tensor

    def __init__(self, num_items: int) -> None:
        super().__init__(num_items)
        self.register_buffer("lags", torch.tensor(LAGS[1:]), persistent=False)

    def evidence(self, items: Tensor, offsets: Tensor, seconds: Times | None = None) -> Evidence:
        """Amounts of the histories' items; see `Source`."""
        occurred = OfItems.of(items, *rows_and_lags(offsets, len(items)), self.num_items)
        return self.of_sums(*occurred[:4], len(offsets) - 1)

    def of_sums(self, row: Tensor, item: Tensor, sums: Tensor, latest: Tensor, rows: int) -> Evidence:
        """From the amounts of the first line `[n, K]` and τ `[n]` of distinct items of histories."""
        each = Evidence.of_first_kinds(row, item, sums, (rows, self.kinds, self.num_items))
        kind = self.bins.start + torch.bucketize(latest, self.lags, right=True)
        by_lag = Evidence(row, kind, item, frequency(sums, latest), (rows, self.kinds, self.num_items))
        return Evidence.joined([each, by_lag])

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
