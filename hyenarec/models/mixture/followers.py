"""Followers: what came soon after the history's latest items in training.

    E[m, j] = C[item_{t-m}, j],   m = 0 .. LATEST - 1, t the last event

C[i, j] is how often j came 1 to REACH events after i in the training histories, each time weighted by FADE to
the power of the number of events between them; of each item, the KEPT most frequent followers are kept.

An item's vector needs many events to tell that one certain item often follows it; a count needs a few.

Source: counts in a window are the sequential rules of Ludewig and Jannach, "Evaluation of session-based
recommendation algorithms", UMUAI 2018; that the latest items add up is the Markov chain of high order of He
and McAuley, "Fusing similarity models with Markov chains for sparse sequential recommendation", ICDM 2016.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hyenarec.data.histories import Histories, Int64Array
from hyenarec.data.times import Times
from hyenarec.models.mixture.evidence import Evidence, Source

LATEST = 16
REACH = 8
FADE = 0.6
KEPT = 64

PAIRS_AT_ONCE = 1 << 24
"""Pairs of events that are counted together, about, unless a single item has more."""

Float64Array = npt.NDArray[np.float64]


class Followers(Source):
    """Counts what followed the latest items in training; see the top of this file, and `Source`.

    Before `count`, and unless it is loaded, nothing has followed.
    """

    kinds = LATEST
    unit = 1.0
    follower: Tensor
    """int32 `[V + 1, KEPT]`: the followers of each item, most frequent first; 0 where there are fewer."""
    counts: Tensor
    """`[V + 1, KEPT]`: C of them."""

    def __init__(self, num_items: int) -> None:
        super().__init__(num_items)
        self.register_buffer("follower", torch.zeros(num_items + 1, KEPT, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(num_items + 1, KEPT))

    def count(self, train: Histories) -> None:
        """Counts followers in the training events."""
        follower, counts = count_followers(train)
        self.follower.copy_(torch.from_numpy(follower))
        self.counts.copy_(torch.from_numpy(counts))

    def evidence(self, items: Tensor, offsets: Tensor, seconds: Times | None = None) -> Evidence:
        """Amounts of what followed the latest items; see `Source`."""
        end = offsets[1:, None] - torch.arange(LATEST, device=items.device)
        # With an item in front, so that there is one even without events.
        latest = F.pad(items, (1, 0))[end.clamp(min=0)].where(end > offsets[:-1, None], 0)
        return self.after(latest)

    def after(self, latest: Tensor) -> Evidence:
        """Amounts after histories with these latest items, int64 `[B, LATEST]`, last first, 0 for none."""
        rows = len(latest)
        follower, counts = self.follower[latest], self.counts[latest]
        kind = torch.arange(LATEST, device=latest.device)[:, None].expand(follower.shape)
        row = torch.arange(rows, device=latest.device)[:, None, None].expand(follower.shape)
        shape = (rows, LATEST, self.num_items)
        parts = (row.flatten(), kind.flatten(), follower.flatten().long(), counts.flatten().double())
        evidence = Evidence(*parts, shape)
        return evidence.where(evidence.amount > 0)

    def memory(self, device: torch.device) -> FollowerMemory:
        """The latest items."""
        return FollowerMemory(self)


class FollowerMemory:
    """The latest items of one growing history: constant time and memory."""

    def __init__(self, source: Followers, latest: tuple[int, ...] = (0,) * LATEST) -> None:
        self._source, self._latest = source, latest

    def append(self, item: int, second: int | None = None) -> None:
        """Adds the next event."""
        self._latest = (item, *self._latest[:-1])

    def evidence(self, asked: int | None = None) -> Evidence:
        """Amounts of what followed the latest items."""
        return self._source.after(torch.tensor([self._latest], device=self._source.counts.device))

    def copy(self) -> Self:
        """An independent copy."""
        return type(self)(self._source, self._latest)

    @property
    def nbytes(self) -> int:
        """Bytes of the ids."""
        return 8 * LATEST


def count_followers(train: Histories) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The most frequent followers of each item.

    Returns:
        Their ids and how often they followed, `[V + 1, KEPT]` each, most frequent first; equally frequent
        ones by id.
    """
    size = train.num_items + 1
    followers = np.zeros((size, KEPT), np.int32)
    counts = np.zeros((size, KEPT), np.float32)
    end = np.repeat(train.offsets[1:], train.lengths)
    places = np.argsort(train.items, kind="stable")
    bounds = np.concatenate([[0], np.bincount(train.items, minlength=size).cumsum()])
    for begin, stop in _blocks(bounds, max(PAIRS_AT_ONCE // REACH, 1)):
        item, follower, count = _pairs(train.items, end, places[bounds[begin] : bounds[stop]], size)
        rank = np.arange(len(item)) - np.searchsorted(item, item)
        kept = (rank < KEPT) & (item > 0)  # an unknown item is none
        followers[item[kept], rank[kept]] = follower[kept]
        counts[item[kept], rank[kept]] = count[kept]
    return followers, counts


def _blocks(bounds: Int64Array, most: int) -> list[tuple[int, int]]:
    """Splits `[0, n)` into ranges in each of which `bounds` grows by at most `most`, or single numbers."""
    blocks, begin, end = [], 0, len(bounds) - 1
    while begin < end:
        stop = int(np.searchsorted(bounds, bounds[begin] + most, side="right")) - 1
        stop = min(max(stop, begin + 1), end)
        blocks.append((begin, stop))
        begin = stop
    return blocks


def _pairs(
    items: npt.NDArray[np.int32], end: Int64Array, places: Int64Array, size: int
) -> tuple[Int64Array, Int64Array, Float64Array]:
    """The distinct pairs of the events at `places` with what followed, by item, how often, and follower.

    Args:
        items: of all events.
        end: the place after each event's history.
        places: of the events whose followers are counted.
        size: V + 1.

    Returns:
        Item, follower, and how often it followed.
    """
    keys, weights = [], []
    for lag in range(1, REACH + 1):
        here = places[places + lag < end[places]]
        here = here[items[here + lag] > 0]
        keys.append(items[here].astype(np.int64) * size + items[here + lag])
        weights.append(np.full(len(here), FADE ** (lag - 1)))
    key, pair = np.unique(np.concatenate(keys), return_inverse=True)
    count = np.bincount(pair, np.concatenate(weights), minlength=len(key))
    order = np.lexsort((key, -count, key // size))
    key = key[order]
    return key // size, key % size, np.asarray(count[order], np.float64)
