"""Packed batches without padding, each computed from (seed, epoch, step) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hyenarec.config import Windows
from hyenarec.config.names import takes_old_names
from hyenarec.data.balance import count_steps, deal, deal_epoch
from hyenarec.data.histories import Histories, Int32Array, Int64Array, offsets_of, ragged_indices
from hyenarec.data.split import Targets
from hyenarec.data.times import Times
from hyenarec.transfer import to_device

EVENTS_PER_BATCH = 2**17
"""Most events of the histories that are scored at one time, so that memory does not grow with `max_len`."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences end to end: sequence ``b`` is ``items[offsets[b]:offsets[b + 1]]``, oldest event first.

    The longest sequence comes first: a GPU starts with the first ones, and if a long one came last, most of
    the GPU would be idle until it is done.

    Attributes:
        items: int64 ``[total]``, ids 1..V.
        offsets: int64 ``[B + 1]``.
        targets: int64 ``[total]``, the next item at every position; 0 = none, ignored. All 0 in evaluation.
        users: int64 ``[B]``: in training indices into the histories' users, otherwise rows of the targets.
        times: of the events and the questions, where they are wanted.
    """

    items: Tensor
    offsets: Tensor
    targets: Tensor
    users: Tensor
    times: Times | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; nothing waits for a copy from the host."""
        return Batch(
            items=to_device(self.items, device),
            offsets=to_device(self.offsets, device),
            targets=to_device(self.targets, device),
            users=to_device(self.users, device),
            times=None if self.times is None else Times(*(to_device(x, device) for x in self.times)),
        )


class TrainingBatches:
    """The training batches of every epoch, the same for any number of processes.

    A step trains on as many windows as ``batch_events`` events allow, counted over all processes together; a
    longer window is a step of its own. Lengths are mixed, and all steps have the same number of events, up to
    about the shortest window. The ranks divide a step's windows, and their events, evenly. The content of a
    step is determined by (seed, epoch, step), so that a run resumes at any step and processes need not
    communicate. An epoch visits every window once; every epoch has the same number of steps, on every rank.

    A window is up to ``max_len`` consecutive events of one user as inputs, and the event after each as its
    target. Users with fewer than two events have none.
    """

    @takes_old_names
    def __init__(
        self,
        histories: Histories,
        max_len: int,
        batch_events: int,
        seed: int,
        windows: Windows = "last",
        rank: int = 0,
        world_size: int = 1,
        with_times: bool = False,
    ) -> None:
        """Lay out the windows.

        Args:
            histories: the training events; unknown items (0) are not allowed here.
            max_len: most positions in a window.
            batch_events: most events a step, over all ranks.
            seed: any integer >= 0.
            windows: "last" takes each user's last ``max_len`` positions; "all" cuts the whole history into
                windows that together predict every event but the first exactly once: a window starts with
                the event that was the previous one's last target, and only the oldest may be shorter.
            rank: this process.
            world_size: number of processes.
            with_times: whether batches have ``times``: what comes next is asked for when it happens.

        Raises:
            ValueError: if an argument is out of range, a step might have fewer windows than ranks, or
                timestamps are missing.
        """
        for name, value, least in (
            ("max_len", max_len, 1),
            ("batch_events", batch_events, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..world_size - 1 = {world_size - 1}, got {rank}")
        if len(histories.items) and histories.items.min() < 1:
            raise ValueError("histories must hold known items (1..V) only when training, got item 0")
        if with_times and histories.timestamps is None:
            raise ValueError("histories must have timestamps for batches with times, got None")
        self._timestamps = histories.timestamps if with_times else None
        self._histories, self._batch_events = histories, batch_events
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._users, self._starts, self._lengths = _cut_windows(histories, max_len, windows)
        if self.num_windows == 0:
            raise ValueError("histories must have a user with at least two events, got none")
        self._steps = count_steps(self._lengths, batch_events)
        self._require_windows_for_all_ranks()
        # One epoch's order at a time: it is asked for again at every step of that epoch.
        self._epoch = lru_cache(maxsize=1)(self._deal)

    @property
    def num_windows(self) -> int:
        """Windows in an epoch, over all ranks."""
        return len(self._lengths)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, the same for every rank."""
        return self._steps

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of ``epoch``, from ``start_step`` on."""
        if not 0 <= start_step <= self._steps:
            raise ValueError(f"start_step must lie in 0..{self._steps}, got {start_step}")
        for step in range(start_step, self._steps):
            yield self._pack(self._share(self._step_windows(epoch, step)))

    def global_targets(self, epoch: int, step: int) -> int:
        """Number of targets of a step over all ranks, so that loss = sum * world_size / global targets."""
        return int(self._lengths[self._step_windows(epoch, step)].sum())

    def step_items(self, epoch: int, step: int) -> Int32Array:
        """The items that a step has as inputs or targets on any rank, ascending, each once."""
        windows = self._step_windows(epoch, step)
        items = self._histories.items[ragged_indices(self._starts[windows], self._lengths[windows] + 1)]
        return np.unique(items)

    def _require_windows_for_all_ranks(self) -> None:
        if self.num_windows < self._world_size:
            raise ValueError(
                f"histories must have a window for each of {self._world_size} ranks, got {self.num_windows}: "
                "use fewer processes"
            )
        if self._steps == 1:  # it has all of them
            return
        # Steps differ by at most the longest window, so each has more than (world_size - 1) x longest events.
        needed = self._world_size * int(self._lengths.max())
        events = int(self._lengths.sum()) // self._steps
        if self._world_size > 1 and events < needed:
            raise ValueError(
                f"batch_events must allow a window for each of {self._world_size} ranks in every step, which "
                f"takes {needed} events, got {events} a step with batch_events = {self._batch_events}: "
                "raise it or use fewer processes"
            )

    def _deal(self, epoch: int) -> tuple[Int64Array, Int64Array]:
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
        return deal_epoch(self._lengths, self._steps, self._batch_events, generator)

    def _step_windows(self, epoch: int, step: int) -> Int64Array:
        """Windows of one step, over all ranks."""
        order, offsets = self._epoch(epoch)
        return order[offsets[step] : offsets[step + 1]]

    def _share(self, windows: Int64Array) -> Int64Array:
        """This rank's part of a step's windows, the longest first."""
        windows = windows[np.argsort(-self._lengths[windows], kind="stable")]
        share: Int64Array = windows[deal(self._lengths[windows], self._world_size) == self._rank]
        return share

    def _pack(self, windows: Int64Array) -> Batch:
        lengths = self._lengths[windows]
        events = ragged_indices(self._starts[windows], lengths)
        items, timestamps = self._histories.items, self._timestamps
        times = None
        if timestamps is not None:
            times = Times(*(torch.from_numpy(timestamps[place]) for place in (events, events + 1)))
        return Batch(
            items=torch.from_numpy(items[events].astype(np.int64)),
            offsets=torch.from_numpy(offsets_of(lengths)),
            targets=torch.from_numpy(items[events + 1].astype(np.int64)),
            users=torch.from_numpy(self._users[windows]),
            times=times,
        )


def _cut_windows(
    histories: Histories, max_len: int, windows: Windows
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """User, first event (index into ``histories.items``) and number of positions of every window."""
    positions = np.maximum(histories.lengths - 1, 0)
    if windows == "last":
        users = np.flatnonzero(positions).astype(np.int64)
        lengths = np.minimum(positions[users], max_len)
        return users, histories.offsets[users] + positions[users] - lengths, lengths
    if windows != "all":
        raise ValueError(f'windows must be "last" or "all", got {windows!r}')
    count = -(-positions // max_len)
    users = np.repeat(np.arange(histories.num_users, dtype=np.int64), count)
    number = ragged_indices(np.zeros_like(count), count)  # 0 .. count - 1 for each user
    # Cut from the newest event backwards: every window is full but the oldest.
    last = positions[users] - (count[users] - 1 - number) * max_len
    first = np.maximum(last - max_len, 0)
    return users, histories.offsets[users] + first, last - first


@takes_old_names
def history_batches(
    offsets: Int64Array,
    items: Int32Array,
    max_len: int,
    batch_size: int,
    batch_events: int = EVENTS_PER_BATCH,
    times: Times | None = None,
) -> Iterator[Batch]:
    """Pack the last ``max_len`` items of each row, longest first; ``Batch.users`` says which row each is.

    Args:
        offsets: int64 ``[R + 1]`` into ``items``.
        items: int32, ids 1..V.
        max_len: most items of a row.
        batch_size: most rows a batch.
        batch_events: most items a batch; a row with more is alone.
        times: of ``items``, and ``[R]`` of the questions.
    """
    for name, value in (("max_len", max_len), ("batch_size", batch_size), ("batch_events", batch_events)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    lengths = np.minimum(np.diff(offsets), max_len)
    starts = offsets[1:] - lengths
    order = np.argsort(-lengths, kind="stable")  # alike lengths together: batches are alike in rows or items
    ends = np.cumsum(lengths[order])
    first = 0
    while first < len(order):
        before = ends[first] - lengths[order[first]]
        fitting = int(np.searchsorted(ends, before + batch_events, side="right"))
        last = min(max(fitting, first + 1), first + batch_size)
        rows = order[first:last]
        events = ragged_indices(starts[rows], lengths[rows])
        packed = torch.from_numpy(items[events].astype(np.int64))
        of_batch = None if times is None else Times(times.events[events], times.asked[rows])
        yield Batch(
            items=packed,
            offsets=torch.from_numpy(offsets_of(lengths[rows])),
            targets=torch.zeros_like(packed),
            users=torch.from_numpy(rows.astype(np.int64)),
            times=of_batch,
        )
        first = last


def evaluation_batches(targets: Targets, max_len: int, batch_size: int) -> Iterator[Batch]:
    """Pack what is known before each target, as `history_batches` does; ``Batch.users`` are target rows."""
    return history_batches(targets.offsets, targets.items, max_len, batch_size, times=targets.times)
