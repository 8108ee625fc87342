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

from hyenarec.data import Histories, Vocabulary
from hyenarec.data.histories import Int64Array, offsets_of
from hyenarec.data.vocabulary import FILE_NAME as VOCABULARY_FILE
from hyenarec.pretrained import PretrainedModel
from hyenarec.registry import load_model
from hyenarec.scoring import Recommender, leave_out_history, score_blocks, scoring_mode

ItemId = int | str
"""An item as its catalogue calls it."""


@dataclass(frozen=True, eq=False)
class Recommendations:
    """The best items for each history, the best first.

    Attributes:
        items: int64 `[U, k]`, ids 1..V; 0 where the catalogue holds too few items outside the history.
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
) -> Recommendations:
    """The k best next items after each history.

    Args:
        recommender: scores the catalogue; a module is put in evaluation mode and then back in its own.
        histories: at least one event each, and no unknown items.
        k: items a history, from 1 to V; equal scores come in no particular order.
        max_len: events of the history that the recommender sees, the last ones.
        exclude_history: leave out the items of the whole history, not only of the part that is seen.
        batch_size: histories whose scores exist at one time, `batch_size` x V.

    Raises:
        ValueError: if k is out of range, a history is empty, or scores are not finite.
    """
    _check_k(k, histories.num_items)
    best_items = np.zeros((histories.num_users, k), dtype=np.int64)
    best_scores = np.empty((histories.num_users, k))
    with scoring_mode(recommender):
        blocks = score_blocks(
            recommender, histories.offsets, histories.items, max_len=max_len, batch_size=batch_size
        )
        for rows, scores in blocks:
            _check_k(k, scores.shape[1])
            if exclude_history:
                scores = leave_out_history(scores, rows, histories.offsets, histories.items)
            best = scores.topk(k, dim=1)
            best_scores[rows] = best.values.double().cpu().numpy()
            best_items[rows] = (best.indices + 1).cpu().numpy()
    best_items[np.isneginf(best_scores)] = 0
    return Recommendations(best_items, best_scores)


class Recommendation(NamedTuple):
    """One recommended item and its score, higher is better; scores of one history can be compared."""

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
        self, history: Sequence[ItemId], *, k: int = 10, exclude_history: bool = False
    ) -> list[Recommendation]:
        """The k best next items after one user's history, the best first.

        Args:
            history: external item ids, the oldest first; those the model does not know are left out.
            k: from 1 to the size of the catalogue.
            exclude_history: recommend no item of the history; there may be fewer than k others.

        Raises:
            ValueError: if no item of the history is known, k is out of range, or an id has the wrong type.
        """
        return self.recommend_many([history], k=k, exclude_history=exclude_history)[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[ItemId]],
        *,
        k: int = 10,
        exclude_history: bool = False,
        batch_size: int = 256,
    ) -> list[list[Recommendation]]:
        """`recommend` for many users at once, `batch_size` of them at a time."""
        best = recommend(
            self.model,
            self._encode(histories),
            k=k,
            max_len=self.model.config.max_len,
            exclude_history=exclude_history,
            batch_size=batch_size,
        )
        found = best.items > 0
        ids = self.vocabulary.decode(best.items[found]).tolist()
        pairs = [Recommendation(*pair) for pair in zip(ids, best.scores[found].tolist(), strict=True)]
        ends = offsets_of(found.sum(axis=1))
        return [pairs[begin:end] for begin, end in pairwise(ends)]

    def _encode(self, histories: Sequence[Sequence[ItemId]]) -> Histories:
        """The histories by number, without the items that the model does not know."""
        if any(isinstance(history, str | int) for history in histories):
            raise ValueError("histories must be sequences of item ids, one a user, got a single id")
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        numbers = self.vocabulary.encode(list(chain.from_iterable(histories)))
        known = numbers > 0
        user = np.repeat(np.arange(len(lengths)), lengths)
        kept = np.bincount(user[known], minlength=len(lengths))
        if len(kept) and kept.min() == 0:
            first = int(kept.argmin())
            raise ValueError(
                "a history must hold at least one item that the model knows, "
                f"got {lengths[first]} items and none that it knows in history {first}"
            )
        return Histories(offsets_of(kept), numbers[known], None, np.arange(len(kept)), self.vocabulary)


def load(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> SavedModel:
    """The model that a training run left in `folder`, with its vocabulary.

    Args:
        folder: holds `config.json`, `model.safetensors` and `vocabulary.safetensors`.
        device: where the model will run.

    Raises:
        ValueError: if a file is missing or does not fit the others.
    """
    model = load_model(folder).to(device)
    if not (Path(folder) / VOCABULARY_FILE).is_file():
        raise ValueError(f"folder must hold {VOCABULARY_FILE} beside the model, but {folder} has none")
    return SavedModel(model, Vocabulary.load(folder))


def _check_k(k: int, num_items: int) -> None:
    if not 1 <= k <= num_items:
        raise ValueError(f"k must be from 1 to {num_items}, the size of the catalogue, got {k}")
