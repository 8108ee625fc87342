"""Cut histories into training, validation and test, and say what each way of cutting leaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hyenarec.config import TargetKind
from hyenarec.data.filters import core_events, keep_events, new_numbers
from hyenarec.data.histories import (
    Histories,
    Int32Array,
    Int64Array,
    check_offsets,
    offsets_of,
    ragged_indices,
)
from hyenarec.data.times import Times

MOMENTS_GIVEN = " Models that use time were given the moment of each target, which tells something of it."


@dataclass(frozen=True, eq=False)
class Targets:
    """Users to evaluate: what is known of each before its target, and the target.

    Row ``r`` is user ``users[r]``: it has seen ``items[offsets[r]:offsets[r + 1]]``, oldest first and never
    empty, and the items to find are ``target_items[target_offsets[r]:target_offsets[r + 1]]``.

    Attributes:
        offsets: int64 ``[R + 1]``.
        items: int32, ids 1..V.
        target_offsets: int64 ``[R + 1]``; at least one target a row.
        target_items: int32, distinct within a row; 0 is an item that the vocabulary does not know: a miss.
        users: int64 ``[R]``, indices into the users of the histories that were split.
        without_history: users who have a target but no known item before it; they are no rows here.
        timestamps: int64, of ``items``; None unless times are wanted.
        asked: int64 ``[R]``, when the targets are asked for, the moment of a row's first one; None likewise.
    """

    offsets: Int64Array
    items: Int32Array
    target_offsets: Int64Array
    target_items: Int32Array
    users: Int64Array
    without_history: int = 0
    timestamps: Int64Array | None = None
    asked: Int64Array | None = None

    def __post_init__(self) -> None:
        check_offsets("offsets", self.offsets, len(self.items))
        check_offsets("target_offsets", self.target_offsets, len(self.target_items))
        if not len(self.users) == len(self.offsets) - 1 == len(self.target_offsets) - 1:
            raise ValueError(
                f"offsets, target_offsets and users must describe as many rows, got {len(self.offsets) - 1}, "
                f"{len(self.target_offsets) - 1} and {len(self.users)}"
            )
        if (self.timestamps is None) != (self.asked is None):
            raise ValueError("timestamps and asked must be given together, got one of them")
        if self.timestamps is not None and self.asked is not None:
            got, expected = (len(self.timestamps), len(self.asked)), (len(self.items), len(self.users))
            if got != expected:
                raise ValueError(f"timestamps and asked must have {expected} entries, got {got}")

    def __len__(self) -> int:
        """Number of rows, that is of evaluated users."""
        return len(self.users)

    @property
    def times(self) -> Times | None:
        """When the events happened and the targets are asked for, if that is wanted."""
        if self.timestamps is None or self.asked is None:
            return None
        return Times(torch.from_numpy(self.timestamps), torch.from_numpy(self.asked))

    def select(self, rows: Int64Array) -> Targets:
        """Some of the rows; ``without_history`` stays."""
        lengths, counts = np.diff(self.offsets)[rows], np.diff(self.target_offsets)[rows]
        events = ragged_indices(self.offsets[rows], lengths)
        return Targets(
            offsets=offsets_of(lengths),
            items=self.items[events],
            target_offsets=offsets_of(counts),
            target_items=self.target_items[ragged_indices(self.target_offsets[rows], counts)],
            users=self.users[rows],
            without_history=self.without_history,
            timestamps=None if self.timestamps is None else self.timestamps[events],
            asked=None if self.asked is None else self.asked[rows],
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Training histories, and the users to evaluate: for choosing a model and for the reported figure.

    Attributes:
        train: what a model may learn from; its vocabulary is the catalogue that is ranked.
        validation: targets for early stopping and for choosing between models.
        test: targets for the one reported figure; their histories include the validation events.
        name: "leave-one-out" or "temporal".
        leaks: one sentence on what training learns that it would not know when serving.
    """

    train: Histories
    validation: Targets
    test: Targets
    name: str
    leaks: str


def leave_one_out(histories: Histories, min_events: int = 3, with_times: bool = False) -> Split:
    """Each user's last event is the test target and the one before it the validation target.

    Users with fewer than ``min_events`` events (at least 3) stay in training whole and are not evaluated. The
    catalogue is every item of the histories, as in the literature. Targets have their times ``with_times``.
    Raises ValueError if nobody is evaluated, or timestamps are missing.
    """
    if with_times and histories.timestamps is None:
        raise ValueError("histories must have timestamps for targets with times, got None")
    if min_events < 3:
        raise ValueError(f"min_events must be at least 3 (train, validation, test), got {min_events}")
    lengths = histories.lengths
    if not np.any(lengths >= min_events):
        raise ValueError(
            f"histories must have a user with at least {min_events} events to evaluate, got none"
        )
    held_out = np.where(lengths >= min_events, 2, 0)
    everyone = np.arange(histories.num_users, dtype=np.int64)
    evaluated = np.flatnonzero(held_out).astype(np.int64)
    return Split(
        train=histories.cut(everyone, np.zeros_like(everyone), lengths - held_out),
        validation=_one_target_each(histories, evaluated, lengths[evaluated] - 2, with_times),
        test=_one_target_each(histories, evaluated, lengths[evaluated] - 1, with_times),
        name="leave-one-out",
        leaks=(
            "Leave-one-out leaks across users in time: training sees events that other users made after a "
            "target, and the catalogue and every minimum-count filter have seen the targets."
            + (MOMENTS_GIVEN if with_times else "")
        ),
    )


def _one_target_each(
    histories: Histories, users: Int64Array, position: Int64Array, with_times: bool
) -> Targets:
    """Rows whose target is event number ``position[i]`` of ``users[i]``; all before it is their history."""
    starts, timestamps = histories.offsets[users], histories.timestamps if with_times else None
    events = ragged_indices(starts, position)
    return Targets(
        offsets=offsets_of(position),
        items=histories.items[events],
        target_offsets=np.arange(len(users) + 1, dtype=np.int64),
        target_items=histories.items[starts + position],
        users=users,
        timestamps=None if timestamps is None else timestamps[events],
        asked=None if timestamps is None else timestamps[starts + position],
    )


def temporal_split(
    histories: Histories,
    validation_start: int,
    test_start: int,
    *,
    targets: TargetKind = "next",
    min_user_events: int = 1,
    min_item_events: int = 1,
    with_times: bool = False,
) -> Split:
    """Cut all users at the same two moments, as serving does: what is later than a cut is unknown before it.

    Training is every event before ``validation_start``. Validation targets lie from there to before
    ``test_start``, test targets from there on. The vocabulary holds the items of training only: a later event
    outside it is 0 as a target, a miss, and left out of the histories. Users keep their index; those without
    a training event have an empty history in ``train``.

    Args:
        histories: the events, with timestamps, and not filtered by count: such a filter sees the future.
        validation_start: first moment of validation, in the unit of the timestamps (see `moments_by_share`).
        test_start: first moment of testing.
        targets: "next", a user's first event in the period, or "all", the set of its items there.
        min_user_events: users with fewer training events are not trained on, and
        min_item_events: items with fewer are not in the vocabulary; counted in training until both hold.
        with_times: whether targets have their times. All of a user are asked for when the first one comes.

    Raises:
        ValueError: without timestamps, with the cuts in the wrong order, or if nothing is left to train on or
            nobody to validate or test on.
    """
    if histories.timestamps is None:
        raise ValueError("histories must have timestamps for a temporal split, got None")
    if targets not in ("next", "all"):
        raise ValueError(f'targets must be "next" or "all", got {targets!r}')
    if validation_start >= test_start:
        raise ValueError(f"validation_start must be before test_start = {test_start}, got {validation_start}")
    past = histories.timestamps < validation_start
    if not past.any():
        raise ValueError(f"validation_start must leave events before it to train on, got {validation_start}")
    trained_on = core_events(histories, past, min_user_events, min_item_events)
    numbers = new_numbers(histories.items[trained_on], histories.num_items)
    validation = _targets_between(histories, numbers, validation_start, test_start, targets, with_times)
    test = _targets_between(histories, numbers, test_start, None, targets, with_times)
    for name, period in (("validation", validation), ("test", test)):
        if len(period) == 0:
            raise ValueError(f"histories must have a user with known items before a {name} event")
    return Split(
        train=keep_events(histories, trained_on),
        validation=validation,
        test=test,
        name="temporal",
        leaks=(
            "The global temporal split leaks nothing: training, catalogue and minimum-count filters end "
            "before the first target." + (MOMENTS_GIVEN if with_times else "")
        ),
    )


def moments_by_share(
    timestamps: Int64Array, validation_fraction: float, test_fraction: float
) -> tuple[int, int]:
    """Moments (validation_start, test_start) that leave these shares of all events to validation and test.

    Events of one moment stay together, on the later side of the cut.
    """
    for name, value in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    if validation_fraction + test_fraction >= 1:
        raise ValueError(
            f"validation_fraction + test_fraction must be below 1, got {validation_fraction + test_fraction}"
        )
    ranks = [
        int(len(timestamps) * (1 - later)) for later in (validation_fraction + test_fraction, test_fraction)
    ]
    ordered = np.partition(timestamps, ranks)
    return int(ordered[ranks[0]]), int(ordered[ranks[1]])


def _targets_between(
    histories: Histories,
    numbers: Int32Array,
    start: int,
    end: int | None,
    kind: TargetKind,
    with_times: bool,
) -> Targets:
    """Rows for the users with an event from ``start`` to before ``end``; ``numbers`` are the vocabulary's."""
    assert histories.timestamps is not None
    first = _events_before(histories, start)
    last = histories.lengths if end is None else _events_before(histories, end)
    users = np.flatnonzero(first < last).astype(np.int64)

    events = ragged_indices(histories.offsets[users], first[users])
    known = numbers[histories.items[events]]
    before = offsets_of(known > 0)  # known events before each event
    lengths = np.diff(before[offsets_of(first[users])])
    with_history = lengths > 0
    users = users[with_history]

    count = np.ones_like(users) if kind == "next" else (last - first)[users]
    items = histories.items[ragged_indices(histories.offsets[users] + first[users], count)]
    rows = np.repeat(np.arange(len(users), dtype=np.int64), count)
    _, distinct = np.unique(rows * (histories.num_items + 1) + items, return_index=True)
    distinct.sort()
    return Targets(
        offsets=offsets_of(lengths[with_history]),
        items=known[known > 0],
        target_offsets=offsets_of(np.bincount(rows[distinct], minlength=len(users))),
        target_items=numbers[items[distinct]],
        users=users,
        without_history=int((~with_history).sum()),
        timestamps=histories.timestamps[events[known > 0]] if with_times else None,
        asked=histories.timestamps[histories.offsets[users] + first[users]] if with_times else None,
    )


def _events_before(histories: Histories, moment: int) -> Int64Array:
    """How many events of each user, int64 ``[U]``, come before ``moment``."""
    assert histories.timestamps is not None
    before = offsets_of(histories.timestamps < moment)
    return np.diff(before[histories.offsets])
