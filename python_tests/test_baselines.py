"""Counts against counts made by hand and in plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from hyenarec.baselines import Markov, Popularity
from hyenarec.data import Histories, Vocabulary
from hyenarec.scoring import Recommender


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
    scores = score(Popularity(histories_of(TRAIN, 5)), [1, 2], [5])
    assert scores.tolist() == [[3, 2, 3, 1, 0]] * 2


def test_markov_by_hand() -> None:
    # Events: 1 five times, 4 four times, 3 three times, 2 twice, 5 never.
    markov = Markov(histories_of([*TRAIN, [1], [1], [4], [4], [4]], 5))
    after_3, after_1, after_4 = best(markov, [4, 3], [5, 1], [4])
    assert after_3 == [1, 2, 4, 3, 5]  # 1 came twice and 2 once
    assert after_1 == [3, 1, 4, 2, 5]  # only 3 came
    assert after_4 == [1, 4, 3, 2, 5]  # nothing came: popularity alone
    assert score(markov, [4]).max() < 1


def test_no_pair_reaches_from_one_user_to_the_next() -> None:
    markov = Markov(histories_of([[1, 2], [3, 4], [], [5], [1]], 5))
    assert (score(markov, [2], [4], [5]) < 1).all()
    assert score(markov, [1])[0, 1] >= 1
    assert score(markov, [3])[0, 3] >= 1


def test_unknown_events_are_left_out() -> None:
    train = histories_of([[1, 0, 2], [0, 1], [2, 0]], 2)
    assert Popularity(train).counts.tolist() == [2, 2]
    assert (score(Markov(train), [1], [2]) < 1).all()


def test_markov_equals_plain_python_counts() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(1, 31, size=generator.integers(0, 40)).tolist() for _ in range(60)]
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    events = Counter(item for row in rows for item in row)
    markov = Markov(histories_of(rows, 30))
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


def test_histories_score_the_same_alone_and_together() -> None:
    markov = Markov(histories_of(TRAIN, 5))
    together = score(markov, [1, 3], [3, 1], [2])
    alone = torch.cat([score(markov, row) for row in ([1, 3], [3, 1], [2])])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", [Markov, Popularity])
def test_tiles_are_columns_of_the_scores(kind: type[Markov] | type[Popularity]) -> None:
    recommender = kind(histories_of([*TRAIN, [1, 5, 4, 5], [2, 2, 1]], 5))
    items, offsets = torch.tensor([3, 1, 4, 5, 2]), torch.arange(6)
    whole = recommender.score(items, offsets)
    state = recommender.encode(items, offsets)
    for first in range(6):
        for last in range(first, 6):
            assert torch.equal(recommender.score_tile(state, first, last), whole[:, first:last])


def test_empty_training_scores_zero() -> None:
    empty = histories_of([[]], 3)
    assert score(Popularity(empty), [1]).tolist() == [[0, 0, 0]]
    assert score(Markov(empty), [1]).tolist() == [[0, 0, 0]]


def test_scores_are_the_callers_to_change() -> None:
    markov = Markov(histories_of(TRAIN, 5))
    before = score(markov, [3]).clone()
    score(markov, [3]).zero_()
    assert torch.equal(score(markov, [3]), before)
