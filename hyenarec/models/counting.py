"""The models that count instead of learning: popularity, Markov chains, and what a user had before.

They are the reference baselines of every report, and models of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hyenarec.config import (
    MarkovConfig,
    PersonalConfig,
    PersonalMarkovConfig,
    PopularityConfig,
    RecommenderConfig,
)
from hyenarec.data.histories import Histories
from hyenarec.data.times import Times
from hyenarec.models.pretrained import PretrainedModel

FADING = 30
"""Events after which an occurrence counts 1 / e as much to `Personal`."""

PERSONAL_SHARE = 0.7
"""Of the user's own items in `PersonalMarkov`."""

POPULARITY = 1e-9
"""What the most popular item scores for that in `Personal` and `PersonalMarkov`.

It decides ties, and items that were last had some 600 events ago or more."""


class CountedHistories(NamedTuple):
    """Packed histories as the counts use them.

    Attributes:
        last: int64 `[B]`, the last item of each, 0 for none.
        row: int64 `[total]`, which history an event belongs to.
        items: int64 `[total]`.
        weight: float64 `[total]`, exp(-lag / FADING), the lag being the number of events since.
    """

    last: Tensor
    row: Tensor
    items: Tensor
    weight: Tensor

    @staticmethod
    def of(items: Tensor, offsets: Tensor) -> CountedHistories:
        """Of packed items `[total]` with `offsets` `[B + 1]`."""
        place = torch.arange(items.shape[0], device=items.device)
        row = torch.bucketize(place, offsets[1:], right=True)
        lag = offsets[1:][row] - 1 - place
        last = F.pad(items, (1, 0))[offsets[1:]].masked_fill(offsets.diff() < 1, 0)
        return CountedHistories(last, row, items, torch.exp(-lag.double() / FADING))


class CountingModel(PretrainedModel):
    """A recommender that counts instead of learning: its buffers are counts of training events; see `of`.

    Args:
        config: its settings; `num_items` must be set.
        counts: its tensors by name, as returned by `_count`.

    Raises:
        RuntimeError: the tensors do not belong to such a model.
    """

    def __init__(self, config: RecommenderConfig, counts: Mapping[str, Tensor]) -> None:
        super().__init__(config)
        for name, tensor in counts.items():
            self.register_buffer(name, tensor)
        shapes = {name: list(tensor.shape) for name, tensor in counts.items()}
        if shapes != (expected := self._shapes(len(counts.get("counts", ())))):
            raise RuntimeError(f"counts must be tensors of the shapes {expected}, got {shapes}")

    @classmethod
    def of(cls, train: Histories, config: RecommenderConfig | None = None) -> Self:
        """The model of these training events; unknown items (0) are left out."""
        config = cls.config_type(num_items=train.num_items) if config is None else config
        return cls(config, cls._count(train))

    @property
    def scores_empty_histories(self) -> bool:
        """They score what decides ties: popularity."""
        return True

    def encode(self, items: Tensor, offsets: Tensor, times: Times | None = None) -> CountedHistories:
        """What any count uses of packed histories; `times` are for other models."""
        self.require_times(times is not None)
        return CountedHistories.of(items, offsets)

    @staticmethod
    def _count(train: Histories) -> dict[str, Tensor]:
        raise NotImplementedError

    def _shapes(self, counts: int) -> dict[str, list[int]]:
        """The shapes that the tensors must have, given the number of counts."""
        raise NotImplementedError

    @classmethod
    def _restore(cls, config: RecommenderConfig, tensors: Mapping[str, Tensor]) -> Self:
        return cls(config, tensors)


class Popularity(CountingModel):
    """Scores each item by how often it occurs in training, regardless of the history."""

    config_type = PopularityConfig
    counts: Tensor

    @staticmethod
    def _count(train: Histories) -> dict[str, Tensor]:
        counts = np.bincount(train.items, minlength=train.num_items + 1)[1:]
        return {"counts": torch.from_numpy(counts.astype(np.float64))}

    def _shapes(self, counts: int) -> dict[str, list[int]]:
        return {"counts": [self.num_items]}

    def score_tile(self, state: CountedHistories, first: int, last: int) -> Tensor:
        """Counts of the columns `first` up to `last`, the same for each history, float64."""
        return self.counts[first:last].expand(len(state.last), -1)


class Markov(CountingModel):
    """First-order Markov counts: how often each item directly followed the history's last item in training.

    Ties, such as between all items that never did, are broken by popularity. Memory is one entry for each
    distinct pair of neighbours, not V x V.
    """

    config_type: ClassVar[type[RecommenderConfig]] = MarkovConfig
    pairs: Tensor
    """int64, ascending: (V + 1) times an item's id, plus the id of an item that directly followed it."""
    counts: Tensor
    tie_break: Tensor

    @staticmethod
    def _count(train: Histories) -> dict[str, Tensor]:
        events = np.arange(1, train.num_events)
        follows = np.ones(train.num_events, dtype=bool)
        follows[train.offsets[:-1][train.lengths > 0]] = False  # the first event of a user follows nothing
        follows = follows[1:] & (train.items[:-1] > 0) & (train.items[1:] > 0)
        last = train.items[events[follows] - 1].astype(np.int64)
        following = train.items[events[follows]].astype(np.int64)
        pairs, counts = np.unique(last * (train.num_items + 1) + following, return_counts=True)
        popularity = Popularity.of(train).counts
        return {
            "pairs": torch.from_numpy(pairs),
            "counts": torch.from_numpy(counts.astype(np.float64)),
            # Below 1, the smallest difference of two counts.
            "tie_break": popularity / (popularity.max() + 1),
        }

    def _shapes(self, counts: int) -> dict[str, list[int]]:
        return {"pairs": [counts], "counts": [counts], "tie_break": [self.num_items]}

    def score_tile(self, state: CountedHistories, first: int, last: int) -> Tensor:
        """Counts of columns `first` up to `last` after each last item, plus popularity below 1, float64."""
        scores = self.tie_break[first:last].repeat(len(state.last), 1)
        row, column, entry = self._followers(state.last, first, last)
        return scores.index_put_((row, column), self.counts[entry], accumulate=True)

    def _followers(self, items: Tensor, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs that begin with `items` `[B]` and end in these columns: row, column, number of the pair."""
        smallest = items * (self.num_items + 1) + 1  # the pair of each item with item 1
        starts, ends = (torch.searchsorted(self.pairs, smallest + column) for column in (first, last))
        lengths = ends - starts
        row = torch.repeat_interleave(torch.arange(len(items), device=items.device), lengths)
        entry = torch.arange(len(row), device=items.device) + (starts - lengths.cumsum(0) + lengths)[row]
        return row, self.pairs[entry] - smallest[row] - first, entry


class Personal(CountingModel):
    """How often the user had each item, fading with the number of events since; ties by popularity."""

    config_type: ClassVar[type[RecommenderConfig]] = PersonalConfig
    tie_break: Tensor

    @staticmethod
    def _count(train: Histories) -> dict[str, Tensor]:
        popularity = Popularity.of(train).counts
        return {"tie_break": POPULARITY * popularity / (popularity.max() + 1)}

    def _shapes(self, counts: int) -> dict[str, list[int]]:
        return {"tie_break": [self.num_items]}

    def score_tile(self, state: CountedHistories, first: int, last: int) -> Tensor:
        """Faded counts of the columns `first` up to `last`, float64."""
        scores = self.tie_break[first:last].repeat(len(state.last), 1)
        return _add_own(scores, state, state.weight, first)


class PersonalMarkov(Markov):
    """0.7 of the user's own items, fading as in `Personal`, and 0.3 of what follows the last item.

    Both are probabilities. A last item that nothing followed leaves the user's own; ties by popularity.
    """

    config_type = PersonalMarkovConfig

    def score_tile(self, state: CountedHistories, first: int, last: int) -> Tensor:
        """The mixture for the columns `first` up to `last`, float64."""
        scores = POPULARITY * self.tie_break[first:last].repeat(len(state.last), 1)
        row, column, entry = self._followers(state.last, first, last)
        rows, _, entries = self._followers(state.last, 0, self.num_items)
        total = scores.new_zeros(len(state.last)).index_add_(0, rows, self.counts[entries])
        markov = (1 - PERSONAL_SHARE) * self.counts[entry] / total[row]
        scores.index_put_((row, column), markov, accumulate=True)
        own = scores.new_zeros(len(state.last)).index_add_(0, state.row, state.weight)
        return _add_own(scores, state, PERSONAL_SHARE * state.weight / own[state.row], first)


def _add_own(scores: Tensor, state: CountedHistories, weight: Tensor, first: int) -> Tensor:
    """Adds each event's weight to its item's score, if the item is among the columns from `first` on."""
    column = state.items - 1 - first
    here = ((column >= 0) & (column < scores.shape[1])).nonzero()[:, 0]
    return scores.index_put_((state.row[here], column[here]), weight[here], accumulate=True)
