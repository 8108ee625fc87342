"""Histories of events in compressed sparse form: three flat arrays, never a Python object an event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.vocabulary import Vocabulary

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]


def ragged_indices(starts: Int64Array, lengths: Int64Array) -> Int64Array:
    """Concatenate the ranges ``[starts[i], starts[i] + lengths[i])`` into one index array, without a loop."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    indices: Int64Array = np.arange(total, dtype=np.int64)
    indices += np.repeat(starts - (ends - lengths), lengths)
    return indices


def offsets_of(lengths: NDArray[Any]) -> Int64Array:
    """Offsets ``[n + 1]`` of consecutive segments with these lengths ``[n]``."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def check_offsets(name: str, offsets: Int64Array, total: int) -> None:
    """Raise ValueError unless ``offsets`` is int64, starts at 0, never falls and ends at ``total``."""
    if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) == 0:
        raise ValueError(
            f"{name} must be a one-dimensional int64 array of at least one number, "
            f"got {offsets.dtype} of shape {offsets.shape}"
        )
    if offsets[0] != 0 or offsets[-1] != total or bool(np.any(offsets[1:] < offsets[:-1])):
        raise ValueError(
            f"{name} must start at 0, never fall and end at {total}, got {offsets[0]} to {offsets[-1]}"
        )


@dataclass(frozen=True, eq=False)
class Histories:
    """Every user's events in time order.

    The events of user ``u`` are ``items[offsets[u]:offsets[u + 1]]``, oldest first.

    Attributes:
        offsets: int64 ``[U + 1]``.
        items: int32 ``[E]``, item ids 1..V of ``vocabulary``; 0 is an unknown item.
        timestamps: int64 ``[E]`` in the unit of the source, or None where the source has none. Columns of
            times and dates are read as seconds.
        user_ids: the users' external ids ``[U]``: int64, or strings in an object array.
        vocabulary: the items.
        skipped_rows: malformed rows that the reader left out (``on_bad_rows="skip"``).
    """

    offsets: Int64Array
    items: Int32Array
    timestamps: Int64Array | None
    user_ids: NDArray[Any]
    vocabulary: Vocabulary
    skipped_rows: int = 0

    def __post_init__(self) -> None:
        if self.items.dtype != np.int32 or self.items.ndim != 1:
            raise ValueError(f"items must be int32 [events], got {self.items.dtype} {self.items.shape}")
        check_offsets("offsets", self.offsets, len(self.items))
        if self.timestamps is not None and (
            self.timestamps.dtype != np.int64 or self.timestamps.shape != self.items.shape
        ):
            raise ValueError(
                f"timestamps must be int64 [{len(self.items)}], "
                f"got {self.timestamps.dtype} {self.timestamps.shape}"
            )
        if self.timestamps is not None:
            falls = np.flatnonzero(self.timestamps[1:] < self.timestamps[:-1]) + 1
            if not np.isin(falls, self.offsets).all():
                raise ValueError("timestamps must not fall within a user's history")
        if len(self.user_ids) != self.num_users:
            raise ValueError(f"user_ids must name {self.num_users} users, got {len(self.user_ids)}")
        if len(self.items) and (self.items.min() < 0 or self.items.max() > self.num_items):
            raise ValueError(
                f"items must lie in 0..{self.num_items}, got {self.items.min()}..{self.items.max()}"
            )

    @property
    def num_users(self) -> int:
        """Number of users U."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """Number of items V in the vocabulary."""
        return len(self.vocabulary)

    @property
    def num_events(self) -> int:
        """Number of events E."""
        return len(self.items)

    @property
    def lengths(self) -> Int64Array:
        """Events of each user, int64 ``[U]``."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return self.num_users

    def __getitem__(self, user: int) -> Int32Array:
        """The items of one user (by index, not external id), oldest first; a view."""
        if not -self.num_users <= user < self.num_users:
            raise IndexError(f"user must be below {self.num_users}, got {user}")
        user %= self.num_users
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def select(self, users: NDArray[Any]) -> Histories:
        """These users only (indices or a mask ``[U]``), in the order given; the vocabulary stays."""
        users = np.flatnonzero(users) if users.dtype == np.bool_ else users.astype(np.int64)
        return self.cut(users, np.zeros(len(users), dtype=np.int64), self.lengths[users])

    def cut(self, users: Int64Array, first: Int64Array, lengths: Int64Array) -> Histories:
        """Of each user ``users[i]`` keep ``lengths[i]`` events from its event number ``first[i]`` on."""
        events = ragged_indices(self.offsets[users] + first, lengths)
        return Histories(
            offsets=offsets_of(lengths),
            items=self.items[events],
            timestamps=None if self.timestamps is None else self.timestamps[events],
            user_ids=self.user_ids[users],
            vocabulary=self.vocabulary,
            skipped_rows=self.skipped_rows,
        )
