"""Figures against values tabulated by hand, and the bootstrap against its known distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hyenarec.evaluation import metrics
from hyenarec.evaluation.metrics import MISS, Ranks


def ranks_of(*users: list[int]) -> Ranks:
    offsets = np.cumsum([0, *map(len, users)], dtype=np.int64)
    return Ranks(np.array([rank for user in users for rank in user], dtype=np.int64), offsets)


def test_one_target_a_user_by_hand() -> None:
    ranks = Ranks.of_single_targets([1, 2, 3, 7, 10, 11, MISS])
    assert metrics.hit_rate(ranks, 10).tolist() == [1, 1, 1, 1, 1, 0, 0]
    # 1 / log2(rank + 1): log2 of 2, 3, 4, 8 and 11.
    np.testing.assert_allclose(
        metrics.ndcg(ranks, 10), [1, 0.6309297535714574, 0.5, 1 / 3, 0.2890648263178879, 0, 0], rtol=1e-15
    )
    np.testing.assert_allclose(metrics.mrr(ranks, 10), [1, 1 / 2, 1 / 3, 1 / 7, 1 / 10, 0, 0], rtol=1e-15)
    assert metrics.recall(ranks, 10).tolist() == metrics.hit_rate(ranks, 10).tolist()


def test_several_targets_by_hand() -> None:
    ranks = ranks_of([3, 1], [2, 6, 40, MISS], [8, 9], [MISS, MISS])
    assert metrics.hit_rate(ranks, 5).tolist() == [1, 1, 0, 0]
    assert metrics.recall(ranks, 5).tolist() == [1, 1 / 4, 0, 0]
    assert metrics.mrr(ranks, 5).tolist() == [1, 1 / 2, 0, 0]
    second = 1 / math.log2(3)
    ideal_of_two, ideal_of_four = 1 + second, 1 + second + 1 / 2 + 1 / math.log2(5)
    np.testing.assert_allclose(
        metrics.ndcg(ranks, 5), [(1 + 1 / 2) / ideal_of_two, second / ideal_of_four, 0, 0], rtol=1e-15
    )


def test_ideal_gain_stops_at_k() -> None:
    ranks = ranks_of([1, 2, 3, 4, 5])
    assert metrics.ndcg(ranks, 2).tolist() == [1.0]
    assert metrics.recall(ranks, 2).tolist() == [2 / 5]
    assert metrics.ndcg(ranks, 100).tolist() == [1.0]


def test_a_miss_stays_a_miss_for_every_k() -> None:
    ranks = Ranks.of_single_targets([MISS])
    for name, metric in metrics.PER_USER.items():
        assert metric(ranks, 10**6).tolist() == [0.0], name


def test_no_users() -> None:
    ranks = Ranks.of_single_targets([])
    assert ranks.num_users == 0
    for metric in metrics.PER_USER.values():
        assert metric(ranks, 10).shape == (0,)
    with pytest.raises(ValueError, match="at least one user"):
        metrics.mean_with_interval(metrics.hit_rate(ranks, 10))


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        ([1, 2], [0, 1], "offsets must run from 0 to the number of ranks, 2"),
        ([1, 2], [1, 2], "offsets must run from 0"),
        ([1, 2], [0, 2, 2], "got none for user 1"),
        ([1, 0], [0, 1, 2], "ranks of at least 1, got 0"),
    ],
)
def test_malformed_ranks(values: list[int], offsets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ranks(np.array(values, dtype=np.int64), np.array(offsets, dtype=np.int64))


def test_ranks_must_be_integers() -> None:
    with pytest.raises(ValueError, match="int64"):
        Ranks(np.array([1.0]), np.array([0, 1], dtype=np.int64))  # type: ignore[arg-type]


def test_k_must_be_positive() -> None:
    for metric in metrics.PER_USER.values():
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            metric(Ranks.of_single_targets([1]), 0)


def test_interval_of_a_share_is_the_normal_one() -> None:
    values = np.zeros(10_000)
    values[:3_000] = 1
    figure = metrics.mean_with_interval(values, resamples=4_000)
    error = 1.96 * math.sqrt(0.3 * 0.7 / 10_000)
    assert figure.mean == pytest.approx(0.3, abs=1e-12)
    assert figure.low == pytest.approx(0.3 - error, abs=0.1 * error)
    assert figure.high == pytest.approx(0.3 + error, abs=0.1 * error)


def test_interval_agrees_with_drawing_the_users_one_by_one() -> None:
    generator = np.random.default_rng(1)
    values = generator.exponential(size=400)
    figure = metrics.mean_with_interval(values, resamples=4_000, seed=2)
    means = values[generator.integers(400, size=(4_000, 400))].mean(axis=1)
    assert [figure.low, figure.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


def test_interval_is_reproducible_and_independent_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = metrics.mean_with_interval(values, seed=3)
    assert metrics.mean_with_interval(values, seed=3) == whole
    assert metrics.mean_with_interval(values, seed=4) != whole
    monkeypatch.setattr(metrics, "DRAWS_PER_BLOCK", 7 * 50)
    blocked = metrics.mean_with_interval(values, seed=3)
    assert (blocked.low, blocked.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


def test_interval_of_equal_values_has_no_width() -> None:
    figure = metrics.mean_with_interval(np.full(7, 0.25))
    assert (figure.mean, figure.low, figure.high) == (0.25, 0.25, 0.25)
    assert str(figure) == "0.2500 [0.2500, 0.2500]"
