"""Splits: who gets which events, what is unknown, and what leaks."""

import dataclasses

import numpy as np
import pytest

from hyenarec.data import Histories, Vocabulary, leave_one_out, moments_by_share, temporal_split


def make(rows, times=None, num_items=9):
    """Histories from lists of items (and of their moments); item ``i`` has the external id 100 + i."""
    lengths = [len(row) for row in rows]
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        timestamps=None if times is None else np.array([t for row in times for t in row], dtype=np.int64),
        user_ids=np.arange(len(rows)),
        vocabulary=Vocabulary(np.arange(num_items) + 101),
    )


def rows_of(histories):
    return [histories[user].tolist() for user in range(histories.num_users)]


def table(targets):
    """Rows of targets as (user, history, targets)."""
    return [
        (
            int(user),
            targets.items[targets.offsets[row] : targets.offsets[row + 1]].tolist(),
            targets.target_items[targets.target_offsets[row] : targets.target_offsets[row + 1]].tolist(),
        )
        for row, user in enumerate(targets.users)
    ]


def test_leave_one_out():
    histories = make([[1, 2, 3, 4], [5, 6], [7, 8, 9], [1]])
    split = leave_one_out(histories)
    assert rows_of(split.train) == [[1, 2], [5, 6], [7], [1]]
    assert table(split.validation) == [(0, [1, 2], [3]), (2, [7], [8])]
    assert table(split.test) == [(0, [1, 2, 3], [4]), (2, [7, 8], [9])]
    assert split.name == "leave-one-out"
    assert "across users in time" in split.leaks
    assert split.train.vocabulary is histories.vocabulary
    assert len(split.test) == 2


def test_leave_one_out_with_a_higher_minimum():
    split = leave_one_out(make([[1, 2, 3, 4], [7, 8, 9]]), min_events=4)
    assert rows_of(split.train) == [[1, 2], [7, 8, 9]]
    assert split.test.users.tolist() == [0]
    with pytest.raises(ValueError, match="min_events must be at least 3"):
        leave_one_out(make([[1, 2, 3]]), min_events=2)


TIMED = (
    # user 0: trains, validates twice, tests on an item that training never met (5)
    [[1, 2, 3, 1, 5, 2], [3, 3], [4, 1], [2, 2, 4, 4, 1]],
    [[1, 4, 10, 11, 20, 21], [2, 3], [10, 25], [5, 20, 20, 22, 30]],
    # user 1 has training events only; user 2 comes in validation, with an item unknown to training;
    # user 3 skips validation and tests, first on a known item.
)


def test_temporal_next():
    split = temporal_split(make(*TIMED), 10, 20)
    assert rows_of(split.train) == [[1, 2], [3, 3], [], [2]]
    assert split.train.vocabulary.item_ids.tolist() == [101, 102, 103]
    assert table(split.validation) == [(0, [1, 2], [3])]
    # User 2's only event before the test is the unknown item 4: nothing to go on, counted, not evaluated.
    assert table(split.test) == [(0, [1, 2, 3, 1], [0]), (3, [2], [2])]
    assert (split.validation.without_history, split.test.without_history) == (1, 1)
    assert split.name == "temporal"


def test_temporal_targets_are_asked_for_when_the_first_of_them_comes():
    for kind in ("next", "all"):
        split = temporal_split(make(*TIMED), 10, 20, targets=kind, with_times=True)
        assert split.validation.timestamps.tolist() == [1, 4]
        assert split.validation.asked.tolist() == [10]
        assert split.test.timestamps.tolist() == [1, 4, 10, 11, 5]  # without those of unknown items
        assert split.test.asked.tolist() == [20, 20]
    assert temporal_split(make(*TIMED), 10, 20).test.times is None
    with pytest.raises(ValueError, match="timestamps and asked must be given together"):
        dataclasses.replace(split.test, asked=None)
    with pytest.raises(ValueError, match=r"timestamps and asked must have \(5, 2\) entries, got \(5, 1\)"):
        dataclasses.replace(split.test, asked=np.array([20]))


def test_temporal_all_is_the_set_of_later_items():
    split = temporal_split(make(*TIMED), 10, 20, targets="all")
    assert table(split.validation) == [(0, [1, 2], [3, 1])]
    # Item 4 comes twice and is one miss; the items are told apart before unknown ones become 0.
    assert table(split.test) == [(0, [1, 2, 3, 1], [0, 2]), (3, [2], [2, 0, 1])]


def test_two_different_unknown_targets_are_two_misses():
    split = temporal_split(make([[1, 1, 7, 8, 7]], [[1, 4, 6, 7, 8]]), 3, 5, targets="all")
    assert table(split.test) == [(0, [1, 1], [0, 0])]


def test_temporal_filters_count_training_events_only():
    rows, times = [[1, 1, 2, 2, 2], [1, 9, 1]], [[1, 2, 3, 8, 9], [1, 5, 8]]
    split = temporal_split(make(rows, times), 5, 7, min_item_events=2)
    assert split.train.vocabulary.item_ids.tolist() == [101]
    assert rows_of(split.train) == [[1, 1], [1]]
    assert table(split.test) == [(0, [1, 1], [0]), (1, [1], [1])]
    split = temporal_split(make(rows, times), 5, 7, min_user_events=2)
    assert rows_of(split.train) == [[1, 1, 2], []]
    assert table(split.test) == [(0, [1, 1, 2], [2]), (1, [1], [1])]


def test_temporal_training_is_untouched_by_what_comes_later():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 30, 50)
    times = [np.sort(rng.integers(0, 100, n)).tolist() for n in lengths]
    rows = [rng.integers(1, 10, n).tolist() for n in lengths]
    changed = [
        [i if t < 60 else 1 + i % 9 for i, t in zip(*pair, strict=True)]
        for pair in zip(rows, times, strict=True)
    ]
    assert changed != rows
    one, other = (temporal_split(make(r, times), 60, 80, min_item_events=3) for r in (rows, changed))
    assert np.array_equal(one.train.items, other.train.items)
    assert np.array_equal(one.train.offsets, other.train.offsets)
    assert one.train.vocabulary == other.train.vocabulary
    assert np.array_equal(one.validation.items, other.validation.items)
    assert not np.array_equal(one.validation.target_items, other.validation.target_items)


def test_temporal_matches_a_plain_loop():
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, 25, 80)
    times = [np.sort(rng.integers(0, 100, n)).tolist() for n in lengths]
    rows = [rng.integers(1, 60, n).tolist() for n in lengths]
    split = temporal_split(make(rows, times, num_items=60), 40, 70, targets="all")
    known = sorted(
        {i for r, ts in zip(rows, times, strict=True) for i, t in zip(r, ts, strict=True) if t < 40}
    )
    number = {item: position + 1 for position, item in enumerate(known)}
    expected = []
    for user, (row, ts) in enumerate(zip(rows, times, strict=True)):
        history = [number[i] for i, t in zip(row, ts, strict=True) if t < 70 and i in number]
        later = dict.fromkeys(i for i, t in zip(row, ts, strict=True) if t >= 70)
        if history and later:
            expected.append((user, history, [number.get(i, 0) for i in later]))
    assert 0 < len(known) < 60
    assert table(split.test) == expected


def test_moments_by_share_leave_the_shares():
    times = np.array([5, 1, 4, 2, 3, 6, 8, 7, 10, 9])
    assert moments_by_share(times, 0.2, 0.3) == (6, 8)
    with_ties = np.array([1, 1, 1, 1, 1, 1, 1, 2, 2, 2])
    assert moments_by_share(with_ties, 0.1, 0.2) == (2, 2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: temporal_split(make([[1]]), 1, 2), "histories must have timestamps"),
        (lambda: temporal_split(make(*TIMED), 20, 10), "validation_start must be before test_start = 10"),
        (lambda: temporal_split(make(*TIMED), 1, 10), "validation_start must leave events before it"),
        (lambda: temporal_split(make(*TIMED), 6, 8), "before a validation event"),
        (lambda: temporal_split(make(*TIMED), 10, 40), "before a test event"),
        (lambda: leave_one_out(make([[1, 2]])), "a user with at least 3 events to evaluate, got none"),
        (lambda: temporal_split(make(*TIMED), 5, 10, targets="some"), 'targets must be "next" or "all"'),
        (lambda: moments_by_share(np.arange(9), 0.0, 0.5), "validation_fraction must lie between 0 and 1"),
        (lambda: moments_by_share(np.arange(9), 0.5, 0.5), "must be below 1, got 1.0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
