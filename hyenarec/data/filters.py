"""Minimum-count filters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.histories import Histories, Int32Array, offsets_of
from hyenarec.data.vocabulary import Vocabulary


def filter_histories(histories: Histories, min_user_events: int = 1, min_item_events: int = 1) -> Histories:
    """Drop users and items with too few events until all that are left have enough: the k-core.

    Unknown items (0) go too. The items that stay are numbered anew, in the same order.

    Raises:
        ValueError: if a minimum is below 1, or nothing is left.
    """
    for name, value in (("min_user_events", min_user_events), ("min_item_events", min_item_events)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if histories.num_events and histories.lengths.min() >= min_user_events:
        counts = np.bincount(histories.items, minlength=histories.num_items + 1)
        if counts[0] == 0 and counts[1:].min() >= min_item_events:
            return histories  # the common case, without the arrays that the loop needs
    everyone = np.ones(histories.num_events, dtype=np.bool_)
    kept = keep_events(histories, core_events(histories, everyone, min_user_events, min_item_events))
    return kept.select(kept.lengths > 0) if bool(np.any(kept.lengths == 0)) else kept


def core_events(
    histories: Histories, candidates: NDArray[np.bool_], min_user_events: int, min_item_events: int
) -> NDArray[np.bool_]:
    """Mask ``[E]`` of the ``candidates`` whose user and item have enough events in it."""
    events = np.flatnonzero(candidates & (histories.items > 0))
    users = np.repeat(np.arange(histories.num_users, dtype=np.int32), histories.lengths)[events]
    items = histories.items[events]
    while True:
        enough = np.bincount(users, minlength=1)[users] >= min_user_events
        enough &= np.bincount(items, minlength=1)[items] >= min_item_events
        if bool(enough.all()):
            break
        users, items, events = users[enough], items[enough], events[enough]
    if len(events) == 0:
        raise ValueError(
            f"min_user_events = {min_user_events} and min_item_events = {min_item_events} must leave events, "
            f"got none of {int(candidates.sum())}"
        )
    mask = np.zeros(histories.num_events, dtype=np.bool_)
    mask[events] = True
    return mask


def keep_events(histories: Histories, events: NDArray[np.bool_]) -> Histories:
    """The ``events`` (mask ``[E]``) alone: every user stays, items without events leave the vocabulary."""
    items = histories.items[events]
    lookup = new_numbers(items, histories.num_items)
    kept = np.flatnonzero(lookup[1:])
    before = offsets_of(events)  # kept events before each event
    return Histories(
        offsets=before[histories.offsets],
        items=lookup[items],
        timestamps=None if histories.timestamps is None else histories.timestamps[events],
        user_ids=histories.user_ids,
        vocabulary=Vocabulary(histories.vocabulary.item_ids[kept]),
        skipped_rows=histories.skipped_rows,
    )


def new_numbers(items: Int32Array, num_items: int) -> Int32Array:
    """Numbers 1.. for the items that occur, in their old order, 0 for the others: int32 ``[V + 1]``."""
    occurs = np.bincount(items, minlength=num_items + 1) > 0
    occurs[0] = False
    return (np.cumsum(occurs) * occurs).astype(np.int32)
