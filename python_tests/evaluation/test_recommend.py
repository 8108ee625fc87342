"""Top-k lists against a full sort, and the way from external ids to external ids."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hyenarec import HyenaRec, ModelConfig
from hyenarec.data import Histories, Vocabulary
from hyenarec.evaluation import scoring
from hyenarec.evaluation.recommend import Recommendation, SavedModel, load, recommend

NUM_ITEMS = 12


def histories_of(rows: list[list[int]]) -> Histories:
    return Histories(
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        timestamps=None,
        user_ids=np.arange(len(rows), dtype=np.int64),
        vocabulary=Vocabulary(np.arange(NUM_ITEMS)),
    )


class Table:
    """Scores that depend on the last event only."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.rand(NUM_ITEMS + 1, NUM_ITEMS, generator=generator)

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        return self.table[items[offsets[1:] - 1]]


ROWS = [[1, 2, 3, 4, 5], [7], [3, 3, 9], [12, 11], [6, 1, 7]]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("exclude_history", [False, True])
def test_lists_equal_a_full_sort(batch_size: int, exclude_history: bool) -> None:
    recommender = Table()
    best = recommend(
        recommender,
        histories_of(ROWS),
        k=4,
        max_len=1,
        exclude_history=exclude_history,
        batch_size=batch_size,
    )
    for row, items, scores in zip(ROWS, best.items.tolist(), best.scores.tolist(), strict=True):
        score = {item + 1: value for item, value in enumerate(recommender.table[row[-1]].tolist())}
        left = [item for item in score if not (exclude_history and item in row)]
        assert items == sorted(left, key=score.__getitem__, reverse=True)[:4]
        assert scores == [score[item] for item in items]


class Ties:
    """Scores of which many are equal, a tile at a time."""

    def __init__(self, rows: int, num_items: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randint(4, (rows, num_items), generator=generator).float()
        self.num_items = num_items

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        return self.score_tile(self.encode(items, offsets), 0, self.num_items)

    def encode(self, items: Tensor, offsets: Tensor) -> Tensor:
        return items[offsets[1:] - 1]

    def score_tile(self, state: Tensor, first: int, last: int) -> Tensor:
        return self.table[state, first:last]


@pytest.mark.parametrize("tile_scores", [1, 8, 15, 1000])
@pytest.mark.parametrize("k", [1, 4, NUM_ITEMS])
def test_of_equal_scores_the_smaller_id_comes_first(
    monkeypatch: pytest.MonkeyPatch, tile_scores: int, k: int
) -> None:
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", tile_scores)
    recommender = Ties(NUM_ITEMS + 1, NUM_ITEMS)
    best = recommend(recommender, histories_of(ROWS), k=k, max_len=1, exclude_history=True, batch_size=3)
    for row, items in zip(ROWS, best.items.tolist(), strict=True):
        scores = recommender.table[row[-1]].tolist()
        left = [item for item in range(1, NUM_ITEMS + 1) if item not in row]
        expected = sorted(left, key=lambda item, scores=scores: (-scores[item - 1], item))[:k]
        assert items == expected + [0] * (k - len(expected))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tile_scores", [1, 1000])
def test_scores_that_are_not_finite_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tile_scores: int, bad: float
) -> None:
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", tile_scores)
    recommender = Ties(NUM_ITEMS + 1, NUM_ITEMS)
    recommender.table[9, 10] = bad
    with pytest.raises(ValueError, match=rf"scores must be finite, got {bad} for item 11 in row 2"):
        recommend(recommender, histories_of(ROWS), k=1, max_len=1, exclude_history=True, batch_size=3)


def test_a_list_ends_where_the_catalogue_does() -> None:
    almost_all = list(range(1, NUM_ITEMS))
    best = recommend(Table(), histories_of([almost_all]), k=3, max_len=20, exclude_history=True)
    assert best.items.tolist() == [[NUM_ITEMS, 0, 0]]
    assert np.isneginf(best.scores[0, 1:]).all()


@pytest.mark.parametrize("k", [0, NUM_ITEMS + 1])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(
        ValueError, match=f"k must be from 1 to {NUM_ITEMS}, the size of the catalogue, got {k}"
    ):
        recommend(Table(), histories_of(ROWS), k=k, max_len=5)


def test_empty_and_unknown_histories_are_errors() -> None:
    with pytest.raises(ValueError, match="histories must hold at least one item, got none in row 1"):
        recommend(Table(), histories_of([[1], []]), k=1, max_len=5)
    with pytest.raises(ValueError, match="items must be known ones, from 1 on, got 0"):
        recommend(Table(), histories_of([[1, 0]]), k=1, max_len=5)


def test_nobody_gets_nothing() -> None:
    assert recommend(Table(), histories_of([]), k=3, max_len=5).items.shape == (0, 3)


def small_model() -> HyenaRec:
    torch.manual_seed(0)
    config = ModelConfig(num_items=NUM_ITEMS, dim=8, num_blocks=1, max_len=6, num_coeffs=4)
    model = HyenaRec(config)
    torch.nn.init.normal_(model.items.weight)  # scores that differ clearly
    return model


INTEGERS = [7 * item for item in range(NUM_ITEMS)]
STRINGS = [f"film {item} é" for item in range(NUM_ITEMS)]


@pytest.fixture(params=["integers", "strings"])
def names(request: pytest.FixtureRequest) -> list[Any]:
    return INTEGERS if request.param == "integers" else STRINGS


@pytest.fixture
def folder(tmp_path: Path, names: list[Any]) -> Path:
    small_model().save_pretrained(tmp_path)
    Vocabulary(names).save(tmp_path)
    return tmp_path


def test_a_saved_model_speaks_external_ids(folder: Path, names: list[Any]) -> None:
    history = [3, 1, 4, 1, 5, 9, 2, 6]
    best = load(folder).recommend([names[item - 1] for item in history], k=NUM_ITEMS)
    model = small_model().eval()
    window = torch.tensor(history[-6:])
    with torch.no_grad():
        scores = model.score(window, torch.tensor([0, 6]))[0]
    assert [entry.item for entry in best] == [names[index] for index in scores.argsort(descending=True)]
    assert [entry.score for entry in best] == pytest.approx(
        scores.sort(descending=True).values.tolist(), abs=1e-5
    )
    assert isinstance(best[0], Recommendation)
    assert type(best[0].item) is type(names[0])


def test_many_users_get_what_each_gets_alone(folder: Path, names: list[Any]) -> None:
    saved = load(folder)
    histories = [[names[item - 1] for item in row] for row in ROWS]
    together = saved.recommend_many(histories, k=5, exclude_history=True, batch_size=2)
    for history, best in zip(histories, together, strict=True):
        alone = saved.recommend(history, k=5, exclude_history=True)
        assert [entry.item for entry in best] == [entry.item for entry in alone]
        assert [entry.score for entry in best] == pytest.approx([entry.score for entry in alone], abs=1e-5)
        assert not {entry.item for entry in best} & set(history)


def test_unknown_items_are_left_out(folder: Path, names: list[Any]) -> None:
    saved = load(folder)
    unknown: Any = "nobody's" if isinstance(names[0], str) else -1
    assert saved.recommend([names[0], unknown, names[1]]) == saved.recommend(names[:2])
    message = "histories must hold at least one item, got none in row"  # for the model was not trained
    with pytest.raises(ValueError, match=f"{message} 1"):
        saved.recommend_many([[names[0]], [unknown, unknown]])
    with pytest.raises(ValueError, match=f"{message} 0"):
        saved.recommend([])


def test_a_list_of_ids_may_be_short(folder: Path, names: list[Any]) -> None:
    best = load(folder).recommend(names[1:], k=4, exclude_history=True)
    assert [entry.item for entry in best] == [names[0]]


def test_no_users_and_wrong_ids(folder: Path, names: list[Any]) -> None:
    saved = load(folder)
    assert saved.recommend_many([]) == []
    other: list[Any] = INTEGERS if names is STRINGS else STRINGS
    with pytest.raises(ValueError, match="item_ids must be"):
        saved.recommend(other[:2])
    with pytest.raises(
        ValueError, match="histories must be sequences of item ids, one a user, got a single id"
    ):
        saved.recommend_many(names[:2])


def test_a_broken_folder_is_named(folder: Path, names: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"folder must hold config\.json and model\.safetensors"):
        load(folder / "elsewhere")
    (folder / "vocabulary.safetensors").unlink()
    with pytest.raises(ValueError, match=r"folder must hold vocabulary\.safetensors beside the model"):
        load(folder)
    with pytest.raises(ValueError, match="vocabulary must name the model's 12 items, got 3"):
        SavedModel(small_model(), Vocabulary(names[:3]))


def test_moments_go_with_their_histories(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(num_items=NUM_ITEMS, dim=8, num_blocks=1, max_len=6, num_coeffs=5, time_unit="hour")
    saved = SavedModel(HyenaRec(config).eval(), Vocabulary(np.arange(NUM_ITEMS)))
    rows = [[4, 99, 2, 3], [7], [3, 3, 9]]  # item 99 is unknown, and its moment goes with it
    moments = [[5, 8, 8, 30], [100], [1, 2, 400]]
    at = [31, 300, 400]
    many = saved.recommend_many(rows, k=5, timestamps=moments, at=at)
    for row, times, moment, best in zip(rows, moments, at, many, strict=True):
        alone = saved.recommend(row, k=5, timestamps=times, at=moment)
        assert [item for item, _ in alone] == [item for item, _ in best]
        assert [score for _, score in alone] == pytest.approx([score for _, score in best], abs=1e-5)
    assert saved.recommend([4, 2, 3], k=5, timestamps=[5, 8, 30], at=31) == saved.recommend(
        rows[0], k=5, timestamps=moments[0], at=31
    )
    for arguments, message in (
        ({}, "at must be the moment to recommend for: the model was trained with the time"),
        ({"at": [1] * 3}, "timestamps must say when the events of the histories happened, with at"),
        (
            {"at": [1, 2], "timestamps": moments},
            r"at must be int64 \[3\], a moment for each history, got .*\[2\]",
        ),
        ({"at": [31, 300, 399], "timestamps": moments}, "at must not be before the last event, 400, got 399"),
        ({"at": [31.5] * 3, "timestamps": moments}, "at must be a sequence of whole numbers, got"),
        ({"at": 31, "timestamps": moments}, "at must be a sequence of whole numbers, got 31"),
        ({"at": [True] * 3, "timestamps": moments}, "at must be a sequence of whole numbers, got"),
        (
            {"at": [2**63] * 3, "timestamps": moments},
            "at must fit in 64 bits, got one of 9223372036854775808",
        ),
        (
            {"at": [2**60] * 3, "timestamps": moments},
            "at must be in hours, the model's time_unit, and within 10,000 years of 0, got",
        ),
        ({"at": at, "timestamps": 5}, "timestamps must be a sequence of sequences of whole numbers, got 5"),
        ({"at": at, "timestamps": [[None] * 4, *moments[1:]]}, "timestamps must be a sequence of whole"),
        ({"at": at, "timestamps": [[5, 8, 30, 9], *moments[1:]]}, "timestamps must not fall within a user's"),
        ({"at": at, "timestamps": moments[:2]}, "timestamps must be of 3 histories, got those of 2"),
        (
            {"at": at, "timestamps": [[5, 8], *moments[1:]]},
            "timestamps must be one for each of the 4 items of history 0, got 2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            saved.recommend_many(rows, **arguments)
    timeless = SavedModel(HyenaRec(dataclasses.replace(config, time_unit=None)).eval(), saved.vocabulary)
    with pytest.raises(ValueError, match="timestamps must not be given to a model that was trained without"):
        timeless.recommend_many(rows, timestamps=moments, at=at)
    with pytest.raises(
        ValueError, match="at must not be given to a model that was trained without time_unit"
    ):
        timeless.recommend_many(rows, at=at)
    assert saved.recommend_many([], timestamps=[], at=[]) == []
