"""What evaluation and recommendation share: the recommender's interface, and histories scored in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from hyenarec.data.batches import history_batches
from hyenarec.data.histories import Int32Array, Int64Array, ragged_indices

TILE_SCORES = 2**21
"""Most scores that exist at one time, histories of a block times items of a tile: in float32 8 MiB, twice or
three times that with what is made of them. Few, so that they are read again while they are in cache."""


class Recommender(Protocol):
    """Whatever scores the catalogue after a history: HyenaRec, and every baseline.

    Of a recommender that has no more than this, `batch_size` x V scores exist at one time; a
    `TiledRecommender` is asked for a tile of the catalogue at a time instead.
    """

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        """Scores of the next event after each packed history; higher is better.

        Args:
            items: int64 `[total]`, ids 1..V, oldest event first.
            offsets: int64 `[B + 1]`; history b is `items[offsets[b]:offsets[b + 1]]`, at least one event.

        Returns:
            Finite floating-point numbers, `[B, V]`; column j belongs to item j + 1.
        """
        ...


@runtime_checkable
class TiledRecommender(Recommender, Protocol):
    """A recommender that reads the histories once and then scores any part of the catalogue."""

    @property
    def num_items(self) -> int:
        """V, size of the catalogue."""
        ...

    def encode(self, items: Tensor, offsets: Tensor) -> Tensor:
        """What the scores take from each packed history, `[B, ...]`; arguments as for `score`."""
        ...

    def score_tile(self, state: Tensor, first: int, last: int) -> Tensor:
        """The columns `first` up to `last` of `score`, `[B, last - first]`, from what `encode` gave.

        The same tile of the same state must be the same numbers, bit for bit, each time it is asked for.
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


class Tile(NamedTuple):
    """The scores of a part of the catalogue after the histories of a block.

    Attributes:
        first: column of the first item, whose id is `first + 1`.
        last: column behind the last item.
        scores: `[B, last - first]`, finite, or -inf where an item is left out.
    """

    first: int
    last: int
    scores: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """Some histories and, tile by tile, the scores after them; each iteration computes the tiles anew.

    Attributes:
        rows: int64 `[B]`, which histories they are.
        num_items: V, size of the catalogue.
        score_tile: gives the scores `[B, last - first]` of the columns `first` up to `last`.
        left_out: the scores that are -inf, None for none.
    """

    rows: Int64Array
    num_items: int
    score_tile: Callable[[int, int], Tensor]
    left_out: _Places | None

    @property
    def width(self) -> int:
        """Most items of a tile."""
        return max(TILE_SCORES // len(self.rows), 1)

    def __len__(self) -> int:
        return -(-self.num_items // self.width)

    def __iter__(self) -> Iterator[Tile]:
        for first in range(0, self.num_items, self.width):
            last = min(first + self.width, self.num_items)
            scores = self.score_tile(first, last)
            shape = (len(self.rows), last - first)
            if scores.shape != shape or not scores.is_floating_point():
                raise ValueError(
                    f"a tile of scores must be floating-point [B, v] with B = {shape[0]}, v = {shape[1]}, "
                    f"got {scores.dtype} {list(scores.shape)}"
                )
            _check_finite(scores, self.rows, first)
            if self.left_out is not None:
                scores = self.left_out.mask(scores, first, last)
            yield Tile(first, last, scores)


def score_blocks(
    recommender: Recommender,
    offsets: Int64Array,
    items: Int32Array,
    *,
    max_len: int,
    batch_size: int,
    exclude_history: bool,
) -> Iterator[Block]:
    """Scores every history, `batch_size` of them at a time; call it within `scoring_mode`.

    Args:
        recommender: sees the last `max_len` events of each history.
        offsets: int64 `[R + 1]`.
        items: int32, ids 1..V; no history may be empty.
        max_len: length of the window.
        batch_size: most histories a block. Of long ones a block has fewer: `EVENTS_PER_BATCH` events at most.
        exclude_history: whether the scores of a history's items, not only of its window's, are -inf.

    Yields:
        The blocks, whose scores are on the recommender's device.

    Raises:
        ValueError: if a history is empty, or the scores are not finite numbers of the right shape.
    """
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if len(empty):
        raise ValueError(f"histories must hold at least one item, got none in row {empty[0]}")
    device = device_of(recommender)
    if items.min(initial=1) < 1:
        raise ValueError(f"items must be known ones, from 1 on, got {items.min()}")
    largest = items.max(initial=0)
    tiled = recommender if isinstance(recommender, TiledRecommender) else _Whole(recommender)
    for batch in history_batches(offsets, items, max_len, batch_size):
        rows = batch.users.numpy()
        batch = batch.to(device)
        state = tiled.encode(batch.items, batch.offsets)
        if largest > tiled.num_items:
            raise ValueError(f"items must lie in 1..V = 1..{tiled.num_items}, got {largest}")
        left_out = _Places.of_histories(rows, offsets, items, device) if exclude_history else None
        yield Block(rows, tiled.num_items, partial(tiled.score_tile, state), left_out)


class _Whole:
    """A recommender without tiles as one with tiles: they are cut from all of its scores."""

    def __init__(self, recommender: Recommender) -> None:
        self.score = recommender.score
        self.num_items = -1

    def encode(self, items: Tensor, offsets: Tensor) -> Tensor:
        scores, rows = self.score(items, offsets), len(offsets) - 1
        if self.num_items < 0:
            self.num_items = scores.shape[-1]
        if scores.shape != (rows, self.num_items) or not scores.is_floating_point():
            raise ValueError(
                f"scores must be floating-point [B, V] with B = {rows}, V = {self.num_items}, "
                f"got {scores.dtype} {list(scores.shape)}"
            )
        return scores

    def score_tile(self, state: Tensor, first: int, last: int) -> Tensor:
        return state[:, first:last]


@dataclass(frozen=True, eq=False)
class _Places:
    """Places in `[B, V]`, in the order of their columns, so that those of a tile are found at once."""

    row: Tensor
    column: Tensor
    columns: Int64Array  # the same where the bounds are looked up, which no GPU has to wait for

    @staticmethod
    def of_histories(
        rows: Int64Array, offsets: Int64Array, items: Int32Array, device: torch.device
    ) -> _Places:
        """The items of the whole history of each row."""
        lengths = offsets[rows + 1] - offsets[rows]
        columns = items[ragged_indices(offsets[rows], lengths)].astype(np.int64) - 1
        order = np.argsort(columns, kind="stable")
        columns = columns[order]
        row = np.repeat(np.arange(len(rows)), lengths)[order]
        return _Places(torch.from_numpy(row).to(device), torch.from_numpy(columns).to(device), columns)

    def mask(self, scores: Tensor, first: int, last: int) -> Tensor:
        """A copy of the scores of the columns `first` up to `last` with -inf at the places."""
        here = slice(*np.searchsorted(self.columns, (first, last)))
        return scores.index_put((self.row[here], self.column[here] - first), scores.new_tensor(-torch.inf))


def _check_finite(scores: Tensor, rows: Int64Array, first: int) -> None:
    # Both extremes are NaN if any score is; one pass, where isfinite takes several.
    if torch.stack(torch.aminmax(scores)).isfinite().all():
        return
    row, column = (int(index) for index in scores.isfinite().logical_not().nonzero()[0])
    raise ValueError(
        f"scores must be finite, got {scores[row, column]} for item {first + column + 1} in row {rows[row]}"
    )


def device_of(recommender: Recommender) -> torch.device:
    """Where the recommender wants its histories: the device of its tensors, the CPU if it has none."""
    if not isinstance(recommender, nn.Module):
        return torch.device("cpu")
    tensor = next(chain(recommender.parameters(), recommender.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
