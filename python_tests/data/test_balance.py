"""Dealing: the vectorised rule against a heap, budgets, chance."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from hyenarec.data import balance
from hyenarec.data.balance import count_steps, deal, deal_epoch

LENGTHS = {
    "alike": np.full(60, 7),
    "all different": np.arange(1, 61)[::-1],
    "few long ones": np.sort(np.random.default_rng(0).lognormal(2, 1.5, 300).astype(np.int64) + 1)[::-1],
    "in no order": np.random.default_rng(1).integers(1, 50, 200),
    "some empty": np.random.default_rng(2).integers(0, 3, 100),
}


@pytest.mark.parametrize("shares", [1, 2, 7, 60])
@pytest.mark.parametrize("kind", LENGTHS)
def test_each_goes_to_the_emptiest_share(kind, shares):
    lengths = LENGTHS[kind]
    loads = [0] * shares
    for length in lengths.tolist():
        heapq.heappush(loads, heapq.heappop(loads) + length)
    share_of = deal(lengths, shares)
    assert sorted(np.bincount(share_of, weights=lengths, minlength=shares)) == sorted(loads)
    assert kind == "some empty" or len(set(share_of)) == min(shares, len(lengths))


def test_nothing_is_dealt_from_nothing():
    assert deal(np.zeros(0, dtype=np.int64), 3).tolist() == []


@pytest.mark.parametrize(
    ("lengths", "budget", "steps"),
    [
        ([5] * 12, 20, 3),
        ([5] * 12, 19, 4),  # 60 events would fill 4 steps of 15
        ([5] * 12, 4, 12),
        ([5000] * 100, 8192, 100),  # 62 would hold them, were they not whole
        ([100_000, *[5] * 20], 50, 3),  # the long one counts as one step
        ([1], 100, 1),
        ([6, 6, 4, 4, 4], 12, 3),  # 24 events, but longest first gives 14 and 10
    ],
)
def test_the_number_of_steps(lengths, budget, steps):
    assert count_steps(np.array(lengths), budget) == steps


@pytest.mark.parametrize("kind", ["alike", "all different", "few long ones", "in no order"])
@pytest.mark.parametrize("budget", [7, 61, 65, 130, 1000])
def test_no_epoch_exceeds_the_budget(kind, budget):
    lengths = LENGTHS[kind]
    steps = count_steps(lengths, budget)
    for epoch in range(20):
        order, offsets = deal_epoch(lengths, steps, budget, np.random.default_rng(epoch))
        assert sorted(order) == list(range(len(lengths))) and len(offsets) == steps + 1
        sizes = np.diff(offsets)
        events = np.add.reduceat(lengths[order], offsets[:-1])
        assert sizes.min() >= 1 and ((events <= budget) | (sizes == 1)).all()


def test_a_draw_above_the_budget_is_drawn_anew(monkeypatch):
    """With little room some orders don't fit; the longest first does."""
    lengths, budget = np.array([11, 10, 18, 10, 9, 18, 5, 11, 9, 5]), 53
    steps = count_steps(lengths, budget)
    again = []
    by_length = balance._by_length
    monkeypatch.setattr(balance, "_by_length", lambda *args: again.append(1) or by_length(*args))
    for epoch in range(20):
        order, offsets = deal_epoch(lengths, steps, budget, np.random.default_rng(epoch))
        assert sorted(order) == list(range(10))
        assert max(np.add.reduceat(lengths[order], offsets[:-1])) <= budget
    assert 0 < len(again) < 20
