"""Own followers: what came right after the last item earlier in the same history, fading with time.

    E[k, j] = Σ_{s < t: item_s = item_t, item_{s+1} = j} exp(-r_k (t - s)),   t the last event

This is a first-order Markov chain of the user's own: a step taken before is likely to be taken again.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from hyenarec.data.times import Times
from hyenarec.models.mixture.evidence import Evidence, Source, rows_and_lags
from hyenarec.models.mixture.fading import HALF_LIVES, FadingSums, faded


class OwnFollowers(Source):
    """Counts what followed the last item before; see the top of this file, and `Source`."""

    kinds = len(HALF_LIVES)
    unit = 0.2

    def evidence(self, items: Tensor, offsets: Tensor, seconds: Times | None = None) -> Evidence:
        """Amounts of the last items' followers; see `Source`."""
        row, lag = rows_and_lags(offsets, len(items))
        last = F.pad(items, (1, 0)).index_select(0, offsets[1:])  # of an empty history that of another
        (place,) = ((items == last.index_select(0, row)) & (lag > 0)).nonzero(as_tuple=True)
        row, lag, follower = row[place], lag[place], items[place + 1]
        shape = (len(offsets) - 1, self.kinds, self.num_items)
        return Evidence.of_first_kinds(row, follower, faded(lag), shape).summed()

    def memory(self, device: torch.device) -> OwnFollowerMemory:
        """A sum for each distinct step."""
        return OwnFollowerMemory(self.num_items, device)


class OwnFollowerMemory:
    """The steps of one growing history: constant time an event, memory for each distinct step."""

    def __init__(self, num_items: int, device: torch.device) -> None:
        self._num_items, self._device = num_items, device
        self._steps = FadingSums()
        self._followers: dict[int, dict[int, int]] = {}  # of each item, by item, their rows in `_steps`
        self._last = 0
        self._length = 0

    def append(self, item: int, second: int | None = None) -> None:
        """Adds the next event."""
        if self._length > 0:
            row = self._steps.append((self._last, item), self._length - 1)
            self._followers.setdefault(self._last, {})[item] = row
        self._last = item
        self._length += 1

    def evidence(self, asked: int | None = None) -> Evidence:
        """Amounts of the last item's followers."""
        followers = self._followers.get(self._last, {})
        item = torch.tensor(list(followers), dtype=torch.int64, device=self._device)
        amount, _ = self._steps.at(self._length - 1, list(followers.values()))
        shape = (1, OwnFollowers.kinds, self._num_items)
        return Evidence.of_first_kinds(torch.zeros_like(item), item, amount.to(self._device), shape)

    def copy(self) -> Self:
        """An independent copy."""
        other = copy.copy(self)
        other._steps = self._steps.copy()
        other._followers = {item: dict(followers) for item, followers in self._followers.items()}
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self._steps.nbytes
