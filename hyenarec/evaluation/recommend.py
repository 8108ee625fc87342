"""The best next items: for many histories in blocks, and by external item ids with a saved model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hyenarec.data import Histories, Vocabulary
from hyenarec.data.histories import Int64Array, offsets_of
from hyenarec.data.time_checks import whole_moments
from hyenarec.data.times import Times
from hyenarec.data.vocabulary import FILE_NAME as VOCABULARY_FILE
from hyenarec.evaluation.scoring import Block, Recommender, score_blocks, scoring_mode, uses_time
from hyenarec.models.pretrained import PretrainedModel
from hyenarec.models.registry import load_model

ItemId = int | str
"""An item as its catalogue calls it."""


@dataclass(frozen=True, eq=False)
class Recommendations:
    """The best items for each history, the best first.

    Attributes:
        items: int64 `[U, k]`, ids 1..V; 0 where the catalogue has too few items outside the history.
        scores: float64 `[U, k]`; -inf where the item is 0. Comparable within a row only.
    """

    items: Int64Array
    scores: npt.NDArray[np.float64]


def recommend(
    recommender: Recommender,
    histories: Histories,
    *,
    k: int = 10,
    max_len: int,
    exclude_history: bool = False,
    batch_size: int = 256,
    at: Sequence[int] | Int64Array | None = None,
) -> Recommendations:
    """The k best next items after each history.

    Args:
        recommender: scores the catalogue; a module is put in evaluation mode meanwhile.
        histories: no unknown items; with timestamps for a model that uses time. Those without events are for
            recommenders whose `scores_empty_histories` is true, as that of trained models is.
        k: items a history, from 1 to V; of items with equal scores the smaller id comes first.
        max_len: number of latest events of a history that the recommender sees.
        exclude_history: leave out the items of the whole history, not only of the part that is seen.
        batch_size: histories scored at a time. A `TiledRecommender` scores one tile of the items at a time,
            at most `TILE_SCORES` scores; any other recommender scores the whole catalogue.
        at: `[U]` whole numbers, the moments that are asked for, in the unit of the timestamps and not before
            the last event; if and only if the recommender uses time.

    Raises:
        ValueError: if k is out of range, a history is empty and must not be, moments don't fit, or scores are
            not finite.
    """
    _check_k(k, histories.num_items)
    times = _times_of(recommender, histories, at)
    best_items = np.zeros((histories.num_users, k), dtype=np.int64)
    best_scores = np.empty((histories.num_users, k))
    with scoring_mode(recommender):
        blocks = score_blocks(
            recommender,
            histories.offsets,
            histories.items,
            max_len=max_len,
            batch_size=batch_size,
            exclude_history=exclude_history,
            times=times,
        )
        for block in blocks:
            _check_k(k, block.num_items)
            scores, columns = _best(block, k)
            best_scores[block.rows] = scores.double().cpu().numpy()
            best_items[block.rows] = (columns + 1).cpu().numpy()
    best_items[np.isneginf(best_scores)] = 0
    return Recommendations(best_items, best_scores)


def _times_of(
    recommender: Recommender, histories: Histories, at: Sequence[int] | Int64Array | None
) -> Times | None:
    """The moments of histories and questions, for a recommender that uses them."""
    if not uses_time(recommender):
        if at is not None:
            raise ValueError(
                "at must not be given to a model that was trained without time_unit, got a moment"
            )
        return None
    if at is None:
        raise ValueError(
            "at must be the moment to recommend for: the model was trained with the time, got None"
        )
    timestamps = histories.timestamps
    if timestamps is None and histories.num_events > 0:
        raise ValueError("timestamps must say when the events of the histories happened, with at, got None")
    asked = whole_moments("at", at)
    of_events = np.zeros(0, np.int64) if timestamps is None else timestamps
    return Times(torch.from_numpy(of_events), torch.from_numpy(asked))


def _best(block: Block, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row and their columns, both `[B, k]`; of equal ones the first."""
    best: tuple[Tensor, Tensor] | None = None
    for tile in block:
        columns = _top_columns(tile.scores, min(k, tile.last - tile.first))
        scores = tile.scores.gather(1, columns)
        columns = columns + tile.first
        if best is not None:
            scores, columns = (torch.cat(pair, dim=1) for pair in zip(best, (scores, columns), strict=True))
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        best = scores[:, :k], columns.gather(1, order[:, :k])
    assert best is not None  # for k is from 1 to V
    return best


def _top_columns(scores: Tensor, k: int) -> Tensor:
    """The columns of the k highest scores of each row, ascending, `[B, k]`; of equal ones the first."""
    values, columns = scores.topk(k, dim=1)
    lowest = values[:, -1:]
    # topk chooses arbitrarily among those that equal the lowest; among items left out any will do.
    chosen = ((scores >= lowest).sum(dim=1, dtype=torch.int32) > k) & ~lowest[:, 0].isneginf()
    if chosen.any():
        columns[chosen] = scores[chosen].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return columns.sort(dim=1).values


class Recommendation(NamedTuple):
    """One recommended item and its score, higher is better; comparable only within one history."""

    item: ItemId
    score: float


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A trained model with the catalogue's own item ids; `load` reads one from a folder.

    Attributes:
        model: the recommender.
        vocabulary: its items.
    """

    model: PretrainedModel
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        expected, got = self.model.config.num_items, len(self.vocabulary)
        if expected != got:
            raise ValueError(f"vocabulary must name the model's {expected} items, got {got}")

    def recommend(
        self,
        history: Sequence[ItemId],
        *,
        k: int = 10,
        exclude_history: bool = False,
        timestamps: Sequence[int] | None = None,
        at: int | None = None,
    ) -> list[Recommendation]:
        """The k best next items after one user's history, the best first.

        Args:
            history: external item ids, the oldest first; those the model does not know are left out. Without
                any, the best first items.
            k: from 1 to the size of the catalogue.
            exclude_history: recommend no item of the history; there may be fewer than k others.
            timestamps: when the events of the history happened, in the model's `time_unit`; with `at`, if and
                only if the model has one. A history without items needs none.
            at: the moment to recommend for, not before the last event.

        Raises:
            ValueError: if k is out of range, an id has the wrong type, moments don't fit, or no item of the
                history is known and the model was saved before it had scores for that.
        """
        return self.recommend_many(
            [history],
            k=k,
            exclude_history=exclude_history,
            timestamps=None if timestamps is None else [timestamps],
            at=None if at is None else [at],
        )[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[ItemId]],
        *,
        k: int = 10,
        exclude_history: bool = False,
        batch_size: int = 256,
        timestamps: Sequence[Sequence[int]] | None = None,
        at: Sequence[int] | None = None,
    ) -> list[list[Recommendation]]:
        """`recommend` for many users at once, `batch_size` of them at a time."""
        best = recommend(
            self.model,
            self._encode(histories, timestamps),
            k=k,
            max_len=self.model.max_len,
            exclude_history=exclude_history,
            batch_size=batch_size,
            at=at,
        )
        found = best.items > 0
        ids = self.vocabulary.decode(best.items[found]).tolist()
        pairs = [Recommendation(*pair) for pair in zip(ids, best.scores[found].tolist(), strict=True)]
        ends = offsets_of(found.sum(axis=1))
        return [pairs[begin:end] for begin, end in pairwise(ends)]

    def _encode(
        self, histories: Sequence[Sequence[ItemId]], timestamps: Sequence[Sequence[int]] | None
    ) -> Histories:
        """The histories as item numbers, without items that the model does not know."""
        if any(isinstance(history, str | int) for history in histories):
            raise ValueError("histories must be sequences of item ids, one a user, got a single id")
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        numbers = self.vocabulary.encode(list(chain.from_iterable(histories)))
        known = numbers > 0
        user = np.repeat(np.arange(len(lengths)), lengths)
        kept = np.bincount(user[known], minlength=len(lengths))
        moments = None
        if timestamps is not None:
            moments = self._moments(timestamps, lengths)[known]
        return Histories(offsets_of(kept), numbers[known], moments, np.arange(len(kept)), self.vocabulary)

    def _moments(self, timestamps: Sequence[Sequence[int]], lengths: Int64Array) -> Int64Array:
        """The moments of all items of the histories, one after the other."""
        if not self.model.uses_time:
            raise ValueError("timestamps must not be given to a model that was trained without time_unit")
        if not isinstance(timestamps, Sequence):
            raise ValueError(
                f"timestamps must be a sequence of sequences of whole numbers, got {timestamps!r}"
            )
        rows = [whole_moments("timestamps", row) for row in timestamps]
        given = [len(row) for row in rows]
        if len(given) != len(lengths):
            raise ValueError(f"timestamps must be of {len(lengths)} histories, got those of {len(given)}")
        for row, (wanted, count) in enumerate(zip(lengths, given, strict=True)):
            if wanted != count:
                raise ValueError(
                    f"timestamps must be one for each of the {wanted} items of history {row}, got {count}"
                )
        return np.concatenate([np.zeros(0, np.int64), *rows])


def load(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> SavedModel:
    """The model that a training run saved in `folder`, with its vocabulary.

    Args:
        folder: holds `config.json`, `model.safetensors` and `vocabulary.safetensors`.
        device: where the model will run.

    Raises:
        ValueError: if a file is missing or does not match the others.
    """
    model = load_model(folder).to(device)
    if not (Path(folder) / VOCABULARY_FILE).is_file():
        raise ValueError(f"folder must hold {VOCABULARY_FILE} beside the model, but {folder} has none")
    return SavedModel(model, Vocabulary.load(folder))


def _check_k(k: int, num_items: int) -> None:
    if not 1 <= k <= num_items:
        raise ValueError(f"k must be from 1 to {num_items}, the size of the catalogue, got {k}")
