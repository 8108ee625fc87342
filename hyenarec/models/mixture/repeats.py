"""Repeats: how often the history has each of its items, fading with the number of events since.

    E[k, j] = Σ_{s: item_s = j} exp(-r_k (t - s)),   t the last event; `fading.py` has the rates r_k

Source: a copy mechanism as of Gu et al., "Incorporating Copying Mechanism in Sequence-to-Sequence Learning",
ACL 2016, with fixed exponentials of time in place of attention.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor

from hyenarec.models.mixture.evidence import Evidence, Source, rows_and_lags
from hyenarec.models.mixture.fading import HALF_LIVES, FadingSums, faded


class Repeats(Source):
    """Counts the items of the history; see the top of this file, and `Source`."""

    kinds = len(HALF_LIVES)

    def evidence(self, items: Tensor, offsets: Tensor) -> Evidence:
        """Amounts of the histories' items; see `Source`."""
        row, lag = rows_and_lags(offsets, len(items))
        return Evidence.of_every_kind(row, items, faded(lag), len(offsets) - 1, self.num_items)

    def memory(self, device: torch.device) -> RepeatMemory:
        """A sum for each distinct item."""
        return RepeatMemory(self.num_items, device)


class RepeatMemory:
    """The occurrences in one growing history: constant time an event, memory for each distinct item."""

    def __init__(self, num_items: int, device: torch.device) -> None:
        self._num_items, self._device = num_items, device
        self._occurred = FadingSums()
        self._length = 0

    def append(self, item: int) -> None:
        """Adds the next event."""
        self._occurred.append(item, self._length)
        self._length += 1

    def evidence(self) -> Evidence:
        """Amounts of the history's items."""
        item = torch.tensor(list(self._occurred.rows), dtype=torch.int64, device=self._device)
        amount = self._occurred.at(self._length - 1).to(self._device)
        return Evidence.of_every_kind(torch.zeros_like(item), item, amount, 1, self._num_items)

    def copy(self) -> Self:
        """An independent copy."""
        other = copy.copy(self)
        other._occurred = self._occurred.copy()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self._occurred.nbytes
