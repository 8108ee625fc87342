"""Repeats by hour: how often the history has each of its items at about the hour that is asked for.

    E[b, j] = Σ_{s: item_s = j, d(h_s, h) in bin b} exp(-r (t - s))

t is the last event, h_s an event's hour, h that of the question, d their distance on a circle: once of a day,
with bins that begin at `OF_DAY`, and once of a week, with `OF_WEEK`. r halves what is counted within
`HALF_LIFE` events. People have coffee in the mornings, and go to the same bar on Fridays.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from hyenarec.data.times import HOURS_OF_WEEK, Times, hour_of_week
from hyenarec.models.mixture.evidence import Evidence, Source, rows_and_lags
from hyenarec.models.mixture.fading import HALF_LIVES, FadingSums, faded

OF_DAY = (0, 1, 2, 3, 5, 8)
OF_WEEK = (0, 1, 2, 4, 8, 16, 36)
"""Hours at which bins begin; the last ones end with half a day and half a week."""

HALF_LIFE = 64


class RepeatsByHour(Source):
    """Counts the history's items by hour; see the top of this file, and `Source`."""

    kinds = len(OF_DAY) + len(OF_WEEK)

    def evidence(self, items: Tensor, offsets: Tensor, seconds: Times | None = None) -> Evidence:
        """Amounts of the histories' items; see `Source`."""
        assert seconds is not None
        row, lag = rows_and_lags(offsets, len(items))
        hour, asked = hour_of_week(seconds.events), hour_of_week(seconds.asked)
        amount = faded(lag)[:, HALF_LIVES.index(HALF_LIFE)]
        return self.of_hours(row, items, amount, hour - asked.index_select(0, row), len(offsets) - 1)

    def of_hours(self, row: Tensor, item: Tensor, amount: Tensor, apart: Tensor, rows: int) -> Evidence:
        """From faded occurrences `[n]` of items, `apart` hours from those that are asked for."""
        kind_of_day = _bin(apart, 24, OF_DAY)
        kind_of_week = len(OF_DAY) + _bin(apart, HOURS_OF_WEEK, OF_WEEK)
        return Evidence(
            torch.cat([row, row]),
            torch.cat([kind_of_day, kind_of_week]),
            torch.cat([item, item]),
            torch.cat([amount, amount]),
            (rows, self.kinds, self.num_items),
        )

    def memory(self, device: torch.device) -> HourMemory:
        """A sum for each distinct item and hour of the week."""
        return HourMemory(self, device)


class HourMemory:
    """The occurrences in one growing history: constant time an event, memory for each item and hour."""

    def __init__(self, source: RepeatsByHour, device: torch.device) -> None:
        self._source, self._device = source, device
        self._occurred = FadingSums()
        self._length = 0

    def append(self, item: int, second: int | None = None) -> None:
        """Adds the next event."""
        assert second is not None
        self._occurred.append((item, hour_of_week(second)), self._length)
        self._length += 1

    def evidence(self, asked: int | None = None) -> Evidence:
        """Amounts of the history's items."""
        assert asked is not None
        things = torch.tensor(list(self._occurred.rows), dtype=torch.int64, device=self._device)
        item, hour = things.view(-1, 2).unbind(1)
        sums, _ = self._occurred.at(self._length - 1)
        amount = sums[:, HALF_LIVES.index(HALF_LIFE)].to(self._device)
        return self._source.of_hours(torch.zeros_like(item), item, amount, hour - hour_of_week(asked), 1)

    def copy(self) -> Self:
        """An independent copy."""
        other = copy.copy(self)
        other._occurred = self._occurred.copy()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self._occurred.nbytes


def _bin(apart: Tensor, around: int, begins: tuple[int, ...]) -> Tensor:
    """The bin of a distance on a circle of `around` hours, int64 `[n]`."""
    ahead = apart % around
    distance = torch.minimum(ahead, around - ahead)
    return torch.bucketize(distance, torch.tensor(begins[1:], device=apart.device), right=True)
