"""Histories: views, selection, checks, and the minimum-count filters."""

import numpy as np
import pytest

from hyenarec.data import Histories, Vocabulary, filter_histories
from hyenarec.data.histories import ragged_indices


def make(rows, num_items=9, timestamps=None):
    lengths = [len(row) for row in rows]
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        timestamps=None if timestamps is None else np.array(timestamps, dtype=np.int64),
        user_ids=np.arange(len(rows)) * 10,
        vocabulary=Vocabulary(np.arange(num_items) + 100),
    )


def rows_of(histories):
    return [histories[user].tolist() for user in range(histories.num_users)]


def test_ragged_indices_joins_ranges_also_empty_ones():
    got = ragged_indices(np.array([5, 0, 7, 2]), np.array([2, 0, 1, 3]))
    assert got.tolist() == [5, 6, 7, 2, 3, 4]
    assert ragged_indices(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []


def test_items_of_a_user_are_a_view():
    histories = make([[1, 2], [], [3]])
    assert rows_of(histories) == [[1, 2], [], [3]]
    assert histories[0].base is histories.items
    assert histories[-1].tolist() == [3]
    assert (histories.num_users, histories.num_items, histories.num_events) == (3, 9, 3)
    assert histories.lengths.tolist() == [2, 0, 1]
    with pytest.raises(IndexError):
        histories[3]


@pytest.mark.parametrize("users", [np.array([2, 0]), np.array([True, False, True])])
def test_select(users):
    histories = make([[1, 2], [5], [3]], timestamps=[7, 8, 1, 4])
    expected = [2, 0] if users.dtype != np.bool_ else [0, 2]
    picked = histories.select(users)
    assert rows_of(picked) == [histories[user].tolist() for user in expected]
    assert picked.user_ids.tolist() == [10 * user for user in expected]
    assert picked.timestamps.tolist() == ([4, 7, 8] if expected == [2, 0] else [7, 8, 4])


def test_malformed_histories_are_rejected():
    with pytest.raises(ValueError, match=r"items must lie in 0\.\.9, got 1\.\.10"):
        make([[1, 10]])
    with pytest.raises(ValueError, match="timestamps must not fall"):
        make([[1, 2]], timestamps=[5, 4])
    with pytest.raises(ValueError, match=r"timestamps must be int64 \[2\]"):
        make([[1, 2]], timestamps=[5])
    good = make([[1, 2], [3]])
    with pytest.raises(ValueError, match="offsets must start at 0, never fall and end at 3"):
        Histories(np.array([0, 4, 3]), good.items, None, good.user_ids, good.vocabulary)
    with pytest.raises(ValueError, match="user_ids must name 2 users, got 1"):
        Histories(good.offsets, good.items, None, good.user_ids[:1], good.vocabulary)
    with pytest.raises(ValueError, match="items must be int32"):
        Histories(good.offsets, good.items.astype(np.int64), None, good.user_ids, good.vocabulary)


def test_filter_repeats_until_stable():
    # Item 4 has one event; without it user 1 has one; without that one item 3 has one; so user 2 keeps 1, 2.
    histories = make([[1, 2, 1], [4, 3], [1, 2, 3]], num_items=5)
    filtered = filter_histories(histories, min_user_events=2, min_item_events=2)
    assert rows_of(filtered) == [[1, 2, 1], [1, 2]]
    assert filtered.user_ids.tolist() == [0, 20]
    assert filtered.vocabulary.item_ids.tolist() == [100, 101]


def test_filter_matches_a_plain_loop_on_random_events():
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 40, rng.integers(0, 12)).tolist() for _ in range(60)]
    events = [(user, item) for user, row in enumerate(rows) for item in row]
    total = len(events)
    while True:
        users, items = [u for u, _ in events], [i for _, i in events]
        kept = [(u, i) for u, i in events if users.count(u) >= 4 and items.count(i) >= 8]
        if kept == events:
            break
        events = kept
    assert 0 < len(events) < total
    filtered = filter_histories(make(rows, num_items=40), min_user_events=4, min_item_events=8)
    got = [
        (int(filtered.user_ids[user]) // 10, int(external) - 99)
        for user in range(filtered.num_users)
        for external in filtered.vocabulary.decode(filtered[user])
    ]
    assert got == events


def test_filter_drops_users_and_items_without_events_and_unknown_items():
    filtered = filter_histories(make([[0, 3], [], [7, 0]]))
    assert rows_of(filtered) == [[1], [2]]
    assert filtered.vocabulary.item_ids.tolist() == [102, 106]


def test_filter_errors():
    with pytest.raises(ValueError, match="min_item_events must be at least 1, got 0"):
        filter_histories(make([[1]]), min_item_events=0)
    with pytest.raises(ValueError, match="must leave events, got none of 3"):
        filter_histories(make([[1, 2, 3]]), min_item_events=2)
