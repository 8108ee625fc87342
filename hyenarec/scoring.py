"""What evaluation and recommendation share: the recommender's interface, and histories scored in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hyenarec.data.batches import history_batches
from hyenarec.data.histories import Int32Array, Int64Array, ragged_indices


class Recommender(Protocol):
    """Whatever scores the catalogue after a history: HyenaRec, and every baseline."""

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        """Scores of the next event after each packed history; higher is better.

        Args:
            items: int64 `[total]`, ids 1..V, oldest event first.
            offsets: int64 `[B + 1]`; history b is `items[offsets[b]:offsets[b + 1]]`, at least one event.

        Returns:
            Finite floating-point numbers, `[B, V]`; column j belongs to item j + 1.
        """
        ...


@contextmanager
def scoring_mode(recommender: Recommender) -> Iterator[None]:
    """No gradients, and evaluation mode if the recommender is a module; every submodule's mode comes back."""
    modules = list(recommender.modules()) if isinstance(recommender, nn.Module) else []
    were_training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.inference_mode():
            yield
    finally:
        for module, training in zip(modules, were_training, strict=True):
            module.training = training


def score_blocks(
    recommender: Recommender, offsets: Int64Array, items: Int32Array, *, max_len: int, batch_size: int
) -> Iterator[tuple[Int64Array, Tensor]]:
    """Scores every history, `batch_size` of them at a time; call it within `scoring_mode`.

    Args:
        recommender: sees the last `max_len` events of each history.
        offsets: int64 `[R + 1]`.
        items: int32, ids 1..V; no history may be empty.
        max_len: length of the window.
        batch_size: most histories a block: scores of so many exist at one time. Of long ones a block has
            fewer: `EVENTS_PER_BATCH` events at most.

    Yields:
        The rows of a block, `[B]`, and their scores `[B, V]` on the recommender's device.

    Raises:
        ValueError: if a history is empty, or the scores are not finite numbers `[B, V]`.
    """
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if len(empty):
        raise ValueError(f"histories must hold at least one item, got none in row {empty[0]}")
    device = device_of(recommender)
    if items.min(initial=1) < 1:
        raise ValueError(f"items must be known ones, from 1 on, got {items.min()}")
    largest = items.max(initial=0)
    num_items: int | None = None
    for batch in history_batches(offsets, items, max_len, batch_size):
        rows = batch.users.numpy()
        batch = batch.to(device)
        scores = recommender.score(batch.items, batch.offsets)
        num_items = scores.shape[-1] if num_items is None else num_items
        if scores.shape != (len(rows), num_items) or not scores.is_floating_point():
            raise ValueError(
                f"scores must be floating-point [B, V] with B = {len(rows)}, V = {num_items}, "
                f"got {scores.dtype} {list(scores.shape)}"
            )
        if largest > num_items:
            raise ValueError(f"items must lie in 1..V = 1..{num_items}, got {largest}")
        _check_finite(scores, rows)
        yield rows, scores


def leave_out_history(scores: Tensor, rows: Int64Array, offsets: Int64Array, items: Int32Array) -> Tensor:
    """A copy of `scores` `[B, V]` with -inf for every item of a row's whole history, not only its window."""
    lengths = offsets[rows + 1] - offsets[rows]
    seen = items[ragged_indices(offsets[rows], lengths)].astype(np.int64) - 1
    row = torch.from_numpy(np.repeat(np.arange(len(rows)), lengths)).to(scores.device)
    column = torch.from_numpy(seen).to(scores.device)
    return scores.index_put((row, column), scores.new_tensor(-torch.inf))


def _check_finite(scores: Tensor, rows: Int64Array) -> None:
    # Both extremes are NaN if any score is; one pass, where isfinite takes several.
    if torch.stack(torch.aminmax(scores)).isfinite().all():
        return
    row, column = (int(index) for index in scores.isfinite().logical_not().nonzero()[0])
    raise ValueError(
        f"scores must be finite, got {scores[row, column]} for item {column + 1} in row {rows[row]}"
    )


def device_of(recommender: Recommender) -> torch.device:
    """Where the recommender wants its histories: the device of its tensors, the CPU if it has none."""
    if not isinstance(recommender, nn.Module):
        return torch.device("cpu")
    tensor = next(chain(recommender.parameters(), recommender.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
