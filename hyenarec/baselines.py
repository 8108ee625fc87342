"""Simple recommenders to compare with, behind the same interface as HyenaRec: scores over the catalogue."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyenarec.data.histories import Histories, offsets_of


class Popularity:
    """Scores each item by how often it occurs in training, whatever the history."""

    def __init__(self, train: Histories) -> None:
        """Counts the events of each item; unknown items (0) are left out."""
        counts = np.bincount(train.items, minlength=train.num_items + 1)[1:]
        self.counts = torch.from_numpy(counts.astype(np.float64))

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        """The counts once for each history: `[B, V]` float64, column j for item j + 1."""
        return self.counts.to(items.device).expand(len(offsets) - 1, -1)


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
        last, following = np.divmod(pairs, train.num_items + 1)
        self.row_offsets = torch.from_numpy(offsets_of(np.bincount(last, minlength=train.num_items + 1)))
        self.columns = torch.from_numpy(following - 1)
        self.counts = torch.from_numpy(counts.astype(np.float64))
        popularity = Popularity(train).counts
        self.tie_break = popularity / (popularity.max() + 1)  # below 1, the smallest difference of two counts

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        """The counts after each history's last event, plus popularity below 1: `[B, V]` float64."""
        last = items[offsets[1:] - 1].cpu()
        scores = self.tie_break.repeat(len(last), 1)
        starts, ends = self.row_offsets[last], self.row_offsets[last + 1]
        lengths = ends - starts
        row = torch.repeat_interleave(torch.arange(len(last)), lengths)
        entry = torch.arange(len(row)) + (starts - lengths.cumsum(0) + lengths)[row]
        scores.index_put_((row, self.columns[entry]), self.counts[entry], accumulate=True)
        return scores.to(items.device)
