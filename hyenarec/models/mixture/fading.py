"""Sums over past events that fade exponentially, at several rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

HALF_LIVES = (1, 4, 16, 64, 256, 1024)
"""Events after which one that occurred once counts half, of each kind of evidence."""

FREQUENCY = 64
"""The half-life by which things count as frequent."""

RATES = math.log(2) / np.array(HALF_LIVES, np.float64)


def faded(lag: Tensor) -> Tensor:
    """exp(-rate · lag) of every half-life: int64 `[n]` -> float64 `[n, K]`."""
    return torch.exp(-torch.from_numpy(RATES).to(lag.device) * lag[:, None])


class OfItems(NamedTuple):
    """How often histories have each of their items, fading: one entry for each history and distinct item.

    Attributes:
        row: int64 `[n]`, of the history.
        item: int64 `[n]`, ids 1..V.
        sums: float64 `[n, K]`, Σ exp(-rate · lag).
        latest: int64 `[n]`, the least lag.
        entry: int64 `[total]`, where each event counts.
    """

    row: Tensor
    item: Tensor
    sums: Tensor
    latest: Tensor
    entry: Tensor

    @staticmethod
    def of(items: Tensor, row: Tensor, lag: Tensor, num_items: int) -> OfItems:
        """Of packed events, given each one's history and the number of events since."""
        key, entry = torch.unique(row * (num_items + 1) + items, return_inverse=True)
        sums = torch.zeros(len(key), len(RATES), dtype=torch.float64, device=items.device)
        sums = sums.index_add_(0, entry, faded(lag))
        latest = torch.full_like(key, len(items)).scatter_reduce_(0, entry, lag, "amin")
        return OfItems(key // (num_items + 1), key % (num_items + 1), sums, latest, entry)


def frequency(sums: Tensor, latest: Tensor) -> Tensor:
    """Σ with the half-life `FREQUENCY` as of the last occurrence: `[n, K]` and lags `[n]` -> `[n]`."""
    which = HALF_LIVES.index(FREQUENCY)
    # Both are 0 where the last occurrence is beyond what a float64 can tell.
    return (sums[:, which] / faded(latest)[:, which]).nan_to_num(1.0)


class FadingSums:
    """How often things occurred in a growing history, fading: one row for each distinct thing.

    Args:
        rates: of the exponentials, of one event, `[K]`.
    """

    def __init__(self, rates: npt.NDArray[np.float64] = RATES) -> None:
        self.rows: dict[Hashable, int] = {}
        # In numpy: an event takes a few operations of a few numbers each, which torch would need longer for.
        self._rates = rates
        self._sums = np.zeros((8, len(rates)))
        self._last = np.zeros(8, np.int64)

    def append(self, thing: Hashable, position: int) -> int:
        """Counts an occurrence at `position`, which is later than all before; returns its row."""
        row = self.rows.setdefault(thing, len(self.rows))
        if row == len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
            self._last = np.concatenate([self._last, np.zeros_like(self._last)])
        self._sums[row] *= np.exp(-self._rates * (position - self._last[row]))
        self._sums[row] += 1
        self._last[row] = position
        return row

    def at(self, position: int, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Σ exp(-rate · lag), `[rows, K]`, and the least lag of some or all rows, up to `position`."""
        chosen: slice | list[int] = slice(len(self.rows)) if rows is None else list(rows)
        lag = position - self._last[chosen]
        fade = np.exp(-self._rates * lag[:, None])
        return torch.from_numpy(self._sums[chosen] * fade), torch.from_numpy(lag)

    def as_of_last(self) -> Tensor:
        """Σ exp(-rate · lag) with lags from each row's last occurrence, `[rows, K]`."""
        return torch.from_numpy(self._sums[: len(self.rows)].copy())

    def copy(self) -> Self:
        """An independent copy."""
        other = copy.copy(self)
        other.rows = dict(self.rows)
        other._sums, other._last = self._sums.copy(), self._last.copy()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the sums and positions."""
        return self._sums.nbytes + self._last.nbytes
