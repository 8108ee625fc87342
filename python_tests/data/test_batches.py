"""Batches: packing, windows, determinism, ranks, resume."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from devices import needs_gpu

from hyenarec.data import (
    Histories,
    TrainingBatches,
    Vocabulary,
    evaluation_batches,
    history_batches,
    leave_one_out,
)


def make(rows, num_items=1000):
    lengths = [len(row) for row in rows]
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        timestamps=None,
        user_ids=np.arange(len(rows)),
        vocabulary=Vocabulary(np.arange(num_items)),
    )


def random_histories(users=53, seed=0):
    rng = np.random.default_rng(seed)
    return make([rng.integers(1, 1000, rng.integers(0, 40)).tolist() for _ in range(users)])


def windows_of(batch):
    """A batch as (user, inputs, targets)."""
    bounds = batch.offsets.tolist()
    return [
        (user, batch.items[first:last].tolist(), batch.targets[first:last].tolist())
        for user, first, last in zip(batch.users.tolist(), bounds[:-1], bounds[1:], strict=True)
    ]


def epoch_of(batches, epoch, start_step=0):
    return [windows_of(batch) for batch in batches.batches(epoch, start_step)]


def test_last_window():
    histories = make([[1, 2, 3, 4, 5], [6], [], [7, 8]])
    batches = TrainingBatches(histories, max_len=3, batch_events=9, seed=0)
    (batch,) = batches.batches(0)
    assert sorted(windows_of(batch)) == [(0, [2, 3, 4], [3, 4, 5]), (3, [7], [8])]
    assert {t.dtype for t in (batch.items, batch.offsets, batch.targets, batch.users)} == {torch.int64}
    assert (batches.num_windows, batches.steps_per_epoch, batches.global_targets(0, 0)) == (2, 1, 4)


def test_all_windows():
    histories = make([[1, 2, 3, 4, 5, 6, 7, 8], [9], [10, 11, 12, 13]])
    batches = TrainingBatches(histories, max_len=3, batch_events=20, seed=0, windows="all")
    (batch,) = batches.batches(0)
    assert sorted(windows_of(batch)) == [
        (0, [1], [2]),
        (0, [2, 3, 4], [3, 4, 5]),
        (0, [5, 6, 7], [6, 7, 8]),
        (2, [10, 11, 12], [11, 12, 13]),
    ]


@pytest.mark.parametrize("windows", ["last", "all"])
def test_a_step_names_its_items_on_every_rank(windows):
    ranks = [
        TrainingBatches(random_histories(), 5, 200, 0, windows, rank=rank, world_size=2) for rank in range(2)
    ]
    for step, batches in enumerate(zip(*(rank.batches(1) for rank in ranks), strict=True)):
        items = {item for batch in batches for item in batch.items.tolist() + batch.targets.tolist()}
        assert [rank.step_items(1, step).tolist() for rank in ranks] == [sorted(items)] * 2


@pytest.mark.parametrize("max_len", [1, 7, 39, 100])
def test_all_windows_predict_every_event_once(max_len):
    histories = random_histories()
    batches = TrainingBatches(histories, max_len, batch_events=80, seed=3, windows="all")
    predicted = {user: [] for user in range(histories.num_users)}
    for step in epoch_of(batches, 0):
        for user, inputs, targets in step:
            assert inputs[1:] == targets[:-1] and 1 <= len(inputs) <= max_len
            predicted[user].append(targets)
    for user in range(histories.num_users):
        events = histories[user].tolist()
        assert sorted(t for targets in predicted[user] for t in targets) == sorted(events[1:])


def test_an_epoch_has_every_window_once_in_full_steps_alike_in_events():
    batches = TrainingBatches(random_histories(), max_len=40, batch_events=200, seed=1)
    steps = epoch_of(batches, 0)
    events = [sum(len(inputs) for _, inputs, _ in step) for step in steps]
    assert len(steps) == batches.steps_per_epoch == -(-sum(events) // 200)
    assert max(events) <= 200 and max(events) - min(events) <= 2
    assert events == [batches.global_targets(0, step) for step in range(len(steps))]
    users = [user for step in steps for user, _, _ in step]
    assert len(set(users)) == len(users) == batches.num_windows
    assert all(len({len(inputs) for _, inputs, _ in step}) > 2 for step in steps)  # short and long together


def test_a_batch_has_no_padding():
    for batch in TrainingBatches(random_histories(), max_len=40, batch_events=200, seed=1).batches(0):
        assert len(batch.items) == len(batch.targets) == batch.offsets[-1]
        assert batch.items.min() >= 1 and batch.targets.min() >= 1


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_longest_window_of_a_batch_comes_first(world_size):
    lengths_of_batches = []
    for rank in range(world_size):
        batches = TrainingBatches(random_histories(), 40, 200, seed=1, rank=rank, world_size=world_size)
        lengths_of_batches += [batch.offsets.diff().tolist() for batch in batches.batches(0)]
    assert max(map(len, lengths_of_batches)) > 3
    assert all(lengths == sorted(lengths, reverse=True) for lengths in lengths_of_batches)


def test_a_window_above_the_budget_is_alone():
    long, short = list(range(1, 102)), [[1, 2, 3, 4, 5, 6]] * 12
    batches = TrainingBatches(make([long, *short]), max_len=100, batch_events=20, seed=0)
    steps = epoch_of(batches, 0)
    lengths = sorted([len(inputs) for _, inputs, _ in step] for step in steps)
    assert lengths == [[5, 5, 5, 5]] * 3 + [[100]]
    places = {epoch: [len(step) for step in epoch_of(batches, epoch)].index(1) for epoch in range(9)}
    assert len(set(places.values())) > 1  # not always the first or the last


def test_windows_meet_others_in_another_epoch():
    histories = make([list(range(1, length + 1)) for length in range(10, 40)])  # no two alike
    batches = TrainingBatches(histories, max_len=40, batch_events=120, seed=0)
    companions = [
        {tuple(sorted(user for user, _, _ in step)) for step in epoch_of(batches, e)} for e in (0, 1)
    ]
    assert len(companions[0] & companions[1]) <= 1


def test_the_order_depends_on_seed_and_epoch_alone():
    histories = random_histories()
    batches = TrainingBatches(histories, max_len=40, batch_events=200, seed=1)
    first = epoch_of(batches, 0)
    assert epoch_of(batches, 1) != first
    assert epoch_of(batches, 0) == first  # after another epoch, too
    assert epoch_of(TrainingBatches(histories, max_len=40, batch_events=200, seed=1), 0) == first
    assert epoch_of(TrainingBatches(histories, max_len=40, batch_events=200, seed=2), 0) != first


def test_resume_from_any_step():
    histories = random_histories()
    whole = epoch_of(TrainingBatches(histories, max_len=40, batch_events=200, seed=1), 4)
    for step in range(len(whole) + 1):
        assert (
            epoch_of(TrainingBatches(histories, max_len=40, batch_events=200, seed=1), 4, step)
            == whole[step:]
        )


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_steps_of_one_process(world_size):
    histories = random_histories()
    alone = TrainingBatches(histories, max_len=40, batch_events=200, seed=1)
    ranks = [
        TrainingBatches(histories, max_len=40, batch_events=200, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [epoch_of(rank, 2) for rank in ranks]
    for number, step in enumerate(epoch_of(alone, 2)):
        parts = [share[number] for share in shares]
        assert sorted(window for part in parts for window in part) == sorted(step)
        assert min(map(len, parts)) >= 1
        loads = [sum(len(targets) for _, _, targets in part) for part in parts]
        assert max(loads) - min(loads) <= 6  # windows have 1 to 39 events
        targets = sum(len(targets) for _, _, targets in step)
        assert all(rank.global_targets(2, number) == targets for rank in ranks)


def test_a_single_step_needs_as_many_windows_as_ranks_only():
    """However unlike they are: no other step may have got fewer."""
    histories = make([list(range(1, 40)), [1, 2]])
    for rank, length in enumerate([38, 1]):
        batches = TrainingBatches(histories, 50, batch_events=100, seed=0, rank=rank, world_size=2)
        assert [len(batch.items) for batch in batches.batches(0)] == [length]


def test_batches_move_and_keep_their_fields():
    (batch,) = TrainingBatches(make([[1, 2, 3]]), max_len=3, batch_events=9, seed=0).batches(0)
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.items, moved.offsets, moved.targets, moved.users)} == {"meta"}
    assert moved.items.shape == batch.items.shape


@needs_gpu
def test_batches_reach_the_gpu():
    (batch,) = TrainingBatches(make([[1, 2, 3]]), max_len=3, batch_events=9, seed=0).batches(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = batch.to("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert windows_of(moved) == windows_of(batch)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_len": 0}, "max_len must be at least 1, got 0"),
        ({"batch_events": 0}, "batch_events must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in 0\.\.world_size - 1 = 1, got 2"),
        ({"windows": "some"}, 'windows must be "last" or "all"'),
        (
            {"batch_events": 15, "world_size": 2},
            "a window for each of 2 ranks in every step, which takes 16 events, got 9 a step with batch_",
        ),
        (
            {"batch_events": 10**6, "world_size": 60},
            r"histories must have a window for each of 60 ranks, got \d\d: use fewer processes",
        ),
        ({"histories": make([[1], []])}, "at least two events"),
        ({"histories": make([[1, 0]])}, "known items"),
    ],
)
def test_errors(changes, message):
    arguments = {"histories": random_histories(), "max_len": 8, "batch_events": 40, "seed": 0, **changes}
    with pytest.raises(ValueError, match=message):
        TrainingBatches(**arguments)


def test_start_step_is_checked():
    batches = TrainingBatches(random_histories(), max_len=40, batch_events=200, seed=1)
    with pytest.raises(ValueError, match=r"start_step must lie in 0\.\."):
        next(batches.batches(0, batches.steps_per_epoch + 1))


def test_evaluation_batches_pack_the_last_items_of_every_row():
    histories = random_histories()
    targets = leave_one_out(histories).test
    seen = {}
    lengths = []
    for batch in evaluation_batches(targets, max_len=9, batch_size=7):
        assert batch.targets.eq(0).all() and len(batch.users) <= 7
        for row, inputs, _ in windows_of(batch):
            seen[row] = inputs
            lengths.append(len(inputs))
    assert seen == {row: histories[user][:-1][-9:].tolist() for row, user in enumerate(targets.users)}
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("batch_events", [1, 20, 45, 10_000])
def test_history_batches_keep_to_rows_and_items(batch_events):
    histories = random_histories()
    sizes = []
    for batch in history_batches(
        histories.offsets, histories.items, 9, batch_size=7, batch_events=batch_events
    ):
        assert len(batch.users) <= 7 and (len(batch.items) <= batch_events or len(batch.users) == 1)
        sizes.append((len(batch.users), len(batch.items), np.diff(batch.offsets).tolist()))
    assert sum(rows for rows, _, _ in sizes) == len(histories)
    for (rows, items, _), (_, _, following) in pairwise(sizes):  # none could have taken one more
        assert rows == 7 or items + following[0] > batch_events


def test_history_batches_take_empty_rows_and_check_their_arguments():
    offsets, items = np.array([0, 0, 2], dtype=np.int64), np.array([4, 5], dtype=np.int32)
    (batch,) = history_batches(offsets, items, max_len=5, batch_size=5)
    assert windows_of(batch) == [(1, [4, 5], [0, 0]), (0, [], [])]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(history_batches(offsets, items, max_len=5, batch_size=0))


def test_times_follow_their_events_and_what_comes_next_is_asked_for_when_it_happens():
    histories = random_histories()
    moments = np.arange(histories.num_events, dtype=np.int64) * 7  # the same for an event as its place
    histories = dataclasses.replace(histories, timestamps=moments)
    place = dict(zip(moments.tolist(), histories.items.tolist(), strict=True))
    batches = TrainingBatches(histories, 9, batch_events=80, seed=0, windows="all", with_times=True)
    for batch in batches.batches(0):
        assert [place[moment] for moment in batch.times.events.tolist()] == batch.items.tolist()
        assert torch.equal(batch.times.asked, batch.times.events + 7)
        assert [place[moment] for moment in batch.times.asked.tolist()] == batch.targets.tolist()
    targets = leave_one_out(histories, with_times=True).test
    some = targets.select(np.arange(0, len(targets), 2))
    for batch in evaluation_batches(some, max_len=9, batch_size=7):
        assert [place[moment] for moment in batch.times.events.tolist()] == batch.items.tolist()
        assert [place[moment] for moment in batch.times.asked.tolist()] == some.target_items[
            batch.users
        ].tolist()
        assert batch.times.asked.tolist() == (batch.times.events[batch.offsets[1:] - 1] + 7).tolist()
    assert all(batch.times is None for batch in TrainingBatches(histories, 9, 80, seed=0).batches(0))
    with pytest.raises(ValueError, match="histories must have timestamps for batches with times, got None"):
        TrainingBatches(random_histories(), 9, 80, seed=0, with_times=True)


def test_batch_tokens_is_the_old_name_of_batch_events() -> None:
    histories = random_histories()
    new, old = (
        TrainingBatches(histories, max_len=40, seed=1, **{name: 200})
        for name in ("batch_events", "batch_tokens")
    )
    assert epoch_of(new, 0) == epoch_of(old, 0)
    batches = history_batches(histories.offsets, histories.items, 9, batch_size=7, batch_tokens=20)
    assert max(len(batch.items) for batch in batches if len(batch.users) > 1) <= 20
