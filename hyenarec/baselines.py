"""Simple recommenders to compare with, behind the same interface as HyenaRec: scores over the catalogue."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyenarec.data.histories import Histories


class Popularity:
    """Scores each item by how often it occurs in training, whatever the history."""

    def __init__(self, train: Histories) -> None:
        """Counts the events of each item; unknown items (0) are left out."""
        counts = np.bincount(train.items, minlength=train.num_items + 1)[1:]
        self.counts = torch.from_numpy(counts.astype(np.float64))

    @property
    def num_items(self) -> int:
        """V, size of the catalogue."""
        return len(self.counts)

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        """The counts once for each history: `[B, V]` float64, column j for item j + 1."""
        return self.score_tile(self.encode(items, offsets), 0, self.num_items)

    def encode(self, items: Tensor, offsets: Tensor) -> Tensor:
        """Each history's last item, `[B]`: of all that it holds, nothing matters but where it lies."""
        return items[offsets[1:] - 1]

    def score_tile(self, state: Tensor, first: int, last: int) -> Tensor:
        """The columns `first` up to `last` of the scores."""
        return self.counts[first:last].to(state.device).expand(len(state), -1)


class Markov:
    """First-order Markov counts: how often each item came right after the history's last one in training.

    Ties, such as all the items that never did, are broken by popularity. Memory is one entry for each
    distinct pair of neighbours, not V x V.
    """

    def __init__(self, train: Histories) -> None:
        """Counts the pairs of neighbouring events in each user's history; unknown items (0) are left out."""
        events = np.arange(1, train.num_events)
        follows = np.ones(train.num_events, dtype=bool)
        follows[train.offsets[:-1][train.lengths > 0]] = False  # the first event of a user follows nothing
        follows = follows[1:] & (train.items[:-1] > 0) & (train.items[1:] > 0)
        last = train.items[events[follows] - 1].astype(np.int64)
        following = train.items[events[follows]].astype(np.int64)
        pairs, counts = np.unique(last * (train.num_items + 1) + following, return_counts=True)
        self.pairs = torch.from_numpy(pairs)
        self.counts = torch.from_numpy(counts.astype(np.float64))
        popularity = Popularity(train).counts
        self.tie_break = popularity / (popularity.max() + 1)  # below 1, the smallest difference of two counts

    @property
    def num_items(self) -> int:
        """V, size of the catalogue."""
        return len(self.tie_break)

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        """The counts after each history's last event, plus popularity below 1: `[B, V]` float64."""
        return self.score_tile(self.encode(items, offsets), 0, self.num_items)

    def encode(self, items: Tensor, offsets: Tensor) -> Tensor:
        """Each history's last item, `[B]`."""
        return items[offsets[1:] - 1]

    def score_tile(self, state: Tensor, first: int, last: int) -> Tensor:
        """The columns `first` up to `last` of the scores."""
        scores = self.tie_break[first:last].repeat(len(state), 1)
        smallest = state.cpu() * (self.num_items + 1) + 1  # the pair of each last item with item 1
        starts, ends = (torch.searchsorted(self.pairs, smallest + column) for column in (first, last))
        lengths = ends - starts
        row = torch.repeat_interleave(torch.arange(len(state)), lengths)
        entry = torch.arange(len(row)) + (starts - lengths.cumsum(0) + lengths)[row]
        column = self.pairs[entry] - smallest[row] - first
        scores.index_put_((row, column), self.counts[entry], accumulate=True)
        return scores.to(state.device)
