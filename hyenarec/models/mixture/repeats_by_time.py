"""Repeats by time: how often the history has each of its items, by when it had them and when it is asked.

    E[b, j] = Σ_{s: item_s = j, d(h_s, h) in bin b} exp(-r (t - s))
    E[a, j] = F[j] if the time since j occurred last lies in bin a, else 0      of each bin between `AGES`

t is the last event, h_s an event's hour, h that of the question, d their distance on a circle: once of a day,
with bins that begin at `OF_DAY`, and once of a week, with `OF_WEEK`. r halves what is counted within
`FREQUENCY` events; F[j] is the sum of the first line over all bins, as of j's last occurrence. People have
coffee in the mornings, go to the same bar on Fridays, and put nothing into a basket twice.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from hyenarec.data.times import HOURS_OF_WEEK, Times, hour_of_week
from hyenarec.models.mixture.evidence import Evidence, Source, rows_and_lags
from hyenarec.models.mixture.fading import FREQUENCY, HALF_LIVES, FadingSums, OfItems, faded, frequency
from hyenarec.models.time import AGES

OF_DAY = (0, 1, 2, 3, 5, 8)
OF_WEEK = (0, 1, 2, 4, 8, 16, 36)
"""Hours at which bins begin; the last ones end with half a day and half a week."""


class RepeatsByTime(Source):
    """Counts the history's items by time; see the top of this file, and `Source`."""

    kinds = len(OF_DAY) + len(OF_WEEK) + len(AGES)
    bins = range(len(OF_DAY) + len(OF_WEEK), kinds)
    unit = 0.2
    of_day: Tensor
    of_week: Tensor
    ages: Tensor

    def __init__(self, num_items: int) -> None:
        super().__init__(num_items)
        for name, begins in (("of_day", OF_DAY), ("of_week", OF_WEEK), ("ages", AGES)):
            self.register_buffer(name, torch.tensor(begins[1:]), persistent=False)

    def evidence(self, items: Tensor, offsets: Tensor, seconds: Times | None = None) -> Evidence:
        """Amounts of the histories' items; see `Source`."""
        assert seconds is not None
        rows = len(offsets) - 1
        row, lag = rows_and_lags(offsets, len(items))
        occurred = OfItems.of(items, row, lag, self.num_items)
        age = seconds.asked.index_select(0, row) - seconds.events
        youngest = torch.zeros_like(occurred.latest)
        youngest = youngest.scatter_reduce_(0, occurred.entry, age, "amin", include_self=False)
        by_age = self.of_ages(
            occurred.row, occurred.item, frequency(occurred.sums, occurred.latest), youngest, rows
        )
        hour, asked = hour_of_week(seconds.events), hour_of_week(seconds.asked)
        amount = faded(lag)[:, HALF_LIVES.index(FREQUENCY)]
        return Evidence.joined(
            [by_age, self.of_hours(row, items, amount, hour - asked.index_select(0, row), rows)]
        )

    def of_hours(self, row: Tensor, item: Tensor, amount: Tensor, apart: Tensor, rows: int) -> Evidence:
        """The first line, from faded occurrences `[n]`, `apart` hours from the one that is asked for."""
        shape = (rows, self.kinds, self.num_items)
        of_day, of_week = _bin(apart, 24, self.of_day), _bin(apart, HOURS_OF_WEEK, self.of_week)
        kinds = (of_day, len(OF_DAY) + of_week)
        return Evidence.joined([Evidence(row, kind, item, amount, shape) for kind in kinds]).summed()

    def of_ages(self, row: Tensor, item: Tensor, amount: Tensor, age: Tensor, rows: int) -> Evidence:
        """The second line, from F `[n]` of distinct items of histories, and seconds since the last one."""
        kind = self.bins.start + torch.bucketize(age, self.ages, right=True)
        return Evidence(row, kind, item, amount, (rows, self.kinds, self.num_items))

    def memory(self, device: torch.device) -> TimeMemory:
        """A sum for each distinct item, and for each item and hour of the week."""
        return TimeMemory(self, device)


class TimeMemory:
    """The occurrences in one growing history: constant time an event, memory for each item and hour."""

    def __init__(self, source: RepeatsByTime, device: torch.device) -> None:
        self._source, self._device = source, device
        self._by_hour, self._occurred = FadingSums(), FadingSums()
        self._latest: dict[int, int] = {}  # second of each item's last occurrence, in the order of the rows
        self._length = 0

    def append(self, item: int, second: int | None = None) -> None:
        """Adds the next event."""
        assert second is not None
        self._by_hour.append((item, hour_of_week(second)), self._length)
        self._occurred.append(item, self._length)
        self._latest[item] = second
        self._length += 1

    def evidence(self, asked: int | None = None) -> Evidence:
        """Amounts of the history's items."""
        assert asked is not None
        which = HALF_LIVES.index(FREQUENCY)
        item, latest = self._tensor(list(self._latest.items())).view(-1, 2).unbind(1)
        amount = self._occurred.as_of_last()[:, which].to(self._device)
        by_age = self._source.of_ages(torch.zeros_like(item), item, amount, asked - latest, 1)
        item, hour = self._tensor(list(self._by_hour.rows)).view(-1, 2).unbind(1)
        amount = self._by_hour.at(self._length - 1)[0][:, which].to(self._device)
        apart = hour - hour_of_week(asked)
        by_hour = self._source.of_hours(torch.zeros_like(item), item, amount, apart, 1)
        return Evidence.joined([by_age, by_hour])

    def copy(self) -> Self:
        """An independent copy."""
        other = copy.copy(self)
        other._by_hour, other._occurred = self._by_hour.copy(), self._occurred.copy()
        other._latest = dict(self._latest)
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self._by_hour.nbytes + self._occurred.nbytes

    def _tensor(self, numbers: list[object]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


def _bin(apart: Tensor, around: int, bounds: Tensor) -> Tensor:
    """The bin of a distance on a circle of `around` hours, int64 `[n]`."""
    ahead = apart % around
    return torch.bucketize(torch.minimum(ahead, around - ahead), bounds, right=True)
