"""Sums over past events that fade exponentially, at several rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable
from typing import Self

import torch
from torch import Tensor

HALF_LIVES = (1, 4, 16, 64, 256, 1024)
"""Events after which one that occurred once counts half, of each kind of evidence."""


def rates(device: torch.device | None = None) -> Tensor:
    """The exponentials' rates, of one event, float64 `[K]`."""
    return math.log(2) / torch.tensor(HALF_LIVES, dtype=torch.float64, device=device)


def faded(lag: Tensor) -> Tensor:
    """exp(-rate · lag) of every kind: int64 `[n]` -> float64 `[n, K]`."""
    return torch.exp(-rates(lag.device) * lag[:, None])


class FadingSums:
    """How often things occurred in a growing history, fading: one row for each distinct thing."""

    def __init__(self, device: torch.device) -> None:
        self.rows: dict[Hashable, int] = {}
        self._sums = torch.zeros(0, len(HALF_LIVES), dtype=torch.float64, device=device)
        self._last = torch.zeros(0, dtype=torch.int64, device=device)

    def append(self, thing: Hashable, position: int) -> int:
        """Counts an occurrence at `position`, which is later than all before; returns its row."""
        row = self.rows.setdefault(thing, len(self.rows))
        if row == len(self._sums):
            room = max(row, 8)
            self._sums = torch.cat([self._sums, self._sums.new_zeros(room, len(HALF_LIVES))])
            self._last = torch.cat([self._last, self._last.new_zeros(room)])
        self._sums[row] = self._sums[row] * faded(position - self._last[row : row + 1])[0] + 1
        self._last[row] = position
        return row

    def at(self, position: int, rows: Tensor | None = None) -> Tensor:
        """Σ exp(-rate · lag) over the occurrences, `[rows, K]`, of some or all rows; lags from `position`."""
        sums, last = self._sums[: len(self.rows)], self._last[: len(self.rows)]
        if rows is not None:
            sums, last = sums[rows], last[rows]
        return sums * faded(position - last)

    def copy(self) -> Self:
        """An independent copy."""
        other = copy.copy(self)
        other.rows = dict(self.rows)
        other._sums, other._last = self._sums.clone(), self._last.clone()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the sums and positions."""
        return self._sums.nbytes + self._last.nbytes
