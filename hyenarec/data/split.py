"""Cut histories into training, validation and test, and say what each way of cutting leaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyenarec.data.histories import (
    Histories,
    Int32Array,
    Int64Array,
    check_offsets,
    offsets_of,
    ragged_indices,
)


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
    """

    offsets: Int64Array
    items: Int32Array
    target_offsets: Int64Array
    target_items: Int32Array
    users: Int64Array
    without_history: int = 0

    def __post_init__(self) -> None:
        check_offsets("offsets", self.offsets, len(self.items))
        check_offsets("target_offsets", self.target_offsets, len(self.target_items))
        if not len(self.users) == len(self.offsets) - 1 == len(self.target_offsets) - 1:
            raise ValueError(
                f"offsets, target_offsets and users must describe as many rows, got {len(self.offsets) - 1}, "
                f"{len(self.target_offsets) - 1} and {len(self.users)}"
            )

    def __len__(self) -> int:
        """Number of rows, that is of evaluated users."""
        return len(self.users)


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


def leave_one_out(histories: Histories, min_events: int = 3) -> Split:
    """Each user's last event is the test target and the one before it the validation target.

    Users with fewer than ``min_events`` events (at least 3) stay in training whole and are not evaluated. The
    catalogue is every item of the histories, as in the literature.
    """
    if min_events < 3:
        raise ValueError(f"min_events must be at least 3 (train, validation, test), got {min_events}")
    lengths = histories.lengths
    held_out = np.where(lengths >= min_events, 2, 0)
    everyone = np.arange(histories.num_users, dtype=np.int64)
    evaluated = np.flatnonzero(held_out).astype(np.int64)
    return Split(
        train=histories.cut(everyone, np.zeros_like(everyone), lengths - held_out),
        validation=_one_target_each(histories, evaluated, lengths[evaluated] - 2),
        test=_one_target_each(histories, evaluated, lengths[evaluated] - 1),
        name="leave-one-out",
        leaks=(
            "Leave-one-out leaks across users in time: training sees events that other users made after a "
            "target, and the catalogue and every minimum-count filter have seen the targets."
        ),
    )


def _one_target_each(histories: Histories, users: Int64Array, position: Int64Array) -> Targets:
    """Rows whose target is event number ``position[i]`` of ``users[i]`` and whose history is all before it."""
    starts = histories.offsets[users]
    return Targets(
        offsets=offsets_of(position),
        items=histories.items[ragged_indices(starts, position)],
        target_offsets=np.arange(len(users) + 1, dtype=np.int64),
        target_items=histories.items[starts + position],
        users=users,
    )
