"""Counts against counts made by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import needs_gpu

from hyenarec.data import Histories, Vocabulary
from hyenarec.evaluation.scoring import Recommender
from hyenarec.models.counting import CountingModel, Markov, Personal, PersonalMarkov, Popularity
from hyenarec.models.registry import COUNT_BASED, load_model

KINDS = list(COUNT_BASED.values())


def histories_of(rows: Sequence[Sequence[int]], num_items: int) -> Histories:
    return Histories(
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        timestamps=None,
        user_ids=np.arange(len(rows), dtype=np.int64),
        vocabulary=Vocabulary(np.arange(100, 100 + num_items)),
    )


def score(recommender: Recommender, *rows: list[int]) -> torch.Tensor:
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return recommender.score(torch.tensor([item for row in rows for item in row]), offsets)


def best(recommender: Recommender, *rows: list[int]) -> list[list[int]]:
    return (score(recommender, *rows).argsort(dim=1, descending=True) + 1).tolist()


# Item 3 is followed by 1 twice and by 2 once, item 1 by 3 once.
TRAIN = [[3, 1, 3, 1], [3, 2], [], [1], [2], [4]]


def test_popularity_by_hand() -> None:
    scores = score(Popularity.of(histories_of(TRAIN, 5)), [1, 2], [5])
    assert scores.tolist() == [[3, 2, 3, 1, 0]] * 2


def test_markov_by_hand() -> None:
    # Events: 1 five times, 4 four times, 3 three times, 2 twice, 5 never.
    markov = Markov.of(histories_of([*TRAIN, [1], [1], [4], [4], [4]], 5))
    after_3, after_1, after_4 = best(markov, [4, 3], [5, 1], [4])
    assert after_3 == [1, 2, 4, 3, 5]  # 1 came twice and 2 once
    assert after_1 == [3, 1, 4, 2, 5]  # only 3 came
    assert after_4 == [1, 4, 3, 2, 5]  # nothing came: popularity alone
    assert score(markov, [4]).max() < 1


def test_no_pair_reaches_from_one_user_to_the_next() -> None:
    markov = Markov.of(histories_of([[1, 2], [3, 4], [], [5], [1]], 5))
    assert (score(markov, [2], [4], [5]) < 1).all()
    assert score(markov, [1])[0, 1] >= 1
    assert score(markov, [3])[0, 3] >= 1


def test_unknown_events_are_left_out() -> None:
    train = histories_of([[1, 0, 2], [0, 1], [2, 0]], 2)
    assert Popularity.of(train).counts.tolist() == [2, 2]
    assert (score(Markov.of(train), [1], [2]) < 1).all()


def test_markov_equals_plain_python_counts() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(1, 31, size=generator.integers(0, 40)).tolist() for _ in range(60)]
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    events = Counter(item for row in rows for item in row)
    markov = Markov.of(histories_of(rows, 30))
    scores = score(markov, *([item] for item in range(1, 31)))
    assert len(markov.counts) == len(pairs)
    for last in range(1, 31):
        for item in range(1, 31):
            assert scores[last - 1, item - 1].floor() == pairs[last, item]
        order = sorted(range(1, 31), key=lambda item: (pairs[last, item], events[item]), reverse=True)
        keys = [
            (pairs[last, item], events[item])
            for item in (scores[last - 1].argsort(descending=True) + 1).tolist()
        ]
        assert keys == [(pairs[last, item], events[item]) for item in order]


def own(history: list[int]) -> np.ndarray:
    """What the user had, fading, and its popularity below."""
    counts = np.zeros(5)
    for lag, item in enumerate(reversed(history)):
        counts[item - 1] += math.exp(-lag / 30)
    return counts


OWN_TRAIN = [[1, 2, 3, 2, 1], [2, 3, 2, 3], [4, 4]]
OWN_HISTORIES = ([3, 1, 3, 2], [5], [4, 4, 1])


def test_own_items_fade() -> None:
    expected = np.stack([own(history) for history in OWN_HISTORIES])
    scores = score(Personal.of(histories_of(OWN_TRAIN, 5)), *OWN_HISTORIES).numpy()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)
    popularity = np.array([2, 4, 3, 2, 0])
    np.testing.assert_allclose(scores - expected, np.tile(1e-9 * popularity / 5, (3, 1)), rtol=0, atol=1e-15)


def test_own_items_mixed_with_what_follows() -> None:
    expected = np.stack([0.7 * own(history) / own(history).sum() for history in OWN_HISTORIES])
    expected[0] += 0.3 * np.array([1, 0, 3, 0, 0]) / 4  # 2 is followed by 1 once and by 3 three times
    expected[2] += 0.3 * np.array([0, 1, 0, 0, 0])  # 1 only by 2; nothing follows 5
    scores = score(PersonalMarkov.of(histories_of(OWN_TRAIN, 5)), *OWN_HISTORIES).numpy()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9)


def test_histories_score_the_same_alone_and_together() -> None:
    markov = Markov.of(histories_of(TRAIN, 5))
    together = score(markov, [1, 3], [3, 1], [2])
    alone = torch.cat([score(markov, row) for row in ([1, 3], [3, 1], [2])])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_are_columns_of_the_scores(kind: type[CountingModel]) -> None:
    recommender = kind.of(histories_of([*TRAIN, [1, 5, 4, 5], [2, 2, 1]], 5))
    items, offsets = torch.tensor([3, 1, 4, 5, 2]), torch.arange(6)
    whole = recommender.score(items, offsets)
    state = recommender.encode(items, offsets)
    for first in range(6):
        for last in range(first, 6):
            assert torch.equal(recommender.score_tile(state, first, last), whole[:, first:last])


def test_empty_training_scores_zero() -> None:
    empty = histories_of([[]], 3)
    assert score(Popularity.of(empty), [1]).tolist() == [[0, 0, 0]]
    assert score(Markov.of(empty), [1]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_saved_and_loaded(kind: type[CountingModel], tmp_path: Path) -> None:
    model = kind.of(histories_of(TRAIN, 5))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is kind and loaded.config == model.config
    assert torch.equal(score(loaded, [1, 3], [2]), score(model, [1, 3], [2]))
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_items": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"must be what config\.json describes: counts must be"):
        load_model(tmp_path)


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_counts_on_a_gpu_are_those_of_the_cpu(kind: type[CountingModel]) -> None:
    model = kind.of(histories_of(TRAIN, 5))
    items, offsets = torch.tensor([1, 3, 2]), torch.tensor([0, 2, 3])
    expected = model.score(items, offsets)
    assert torch.equal(model.cuda().score(items.cuda(), offsets.cuda()).cpu(), expected)


def test_scores_are_the_callers_to_change() -> None:
    markov = Markov.of(histories_of(TRAIN, 5))
    before = score(markov, [3]).clone()
    score(markov, [3]).zero_()
    assert torch.equal(score(markov, [3]), before)
