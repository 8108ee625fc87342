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
from hyenarec.transfer import to_device

TILE_SCORES = {"cpu": 2**21, "cuda": 2**26}
"""Most scores that exist at one time, by type of device: histories of a block times items of a tile. In
float32 they are 8 MiB on a CPU, which reads them again while they are in cache, and 256 MiB on a GPU, which
would be done with a small tile before it is asked for the next. Two or three times that with what is made of
them."""


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
            Finite floating-point numbers, `[B, V]`, on a module's own device; column j belongs to item j + 1.
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
        scores: `[B, last - first]`, -inf where an item is left out. Whether the others are finite, a block
            says when all is computed.
    """

    first: int
    last: int
    scores: Tensor


@dataclass(eq=False)
class Block:
    """Some histories and, tile by tile, the scores after them; each iteration computes the tiles anew.

    Whether all scores are finite is noted where they are computed, so that no tile waits for a GPU's answer.
    Only when `score_blocks` goes on is it looked at, and an error if they are not: no result of a block
    counts before.

    Attributes:
        rows: int64 `[B]`, which histories they are.
        num_items: V, size of the catalogue.
        width: most items of a tile.
        score_tile: gives the scores `[B, last - first]` of the columns `first` up to `last`.
        left_out: the scores that are -inf, None for none.
        finite: bool scalar on the recommender's device, whether all scores that were computed so far are.
    """

    rows: Int64Array
    num_items: int
    width: int
    score_tile: Callable[[int, int], Tensor]
    left_out: Places | None
    finite: Tensor

    def __len__(self) -> int:
        return -(-self.num_items // self.width)

    def __iter__(self) -> Iterator[Tile]:
        for first, last in self._bounds():
            scores = self.score_tile(first, last)
            shape = (len(self.rows), last - first)
            if scores.shape != shape or not scores.is_floating_point():
                raise ValueError(
                    f"a tile of scores must be floating-point [B, v] with B = {shape[0]}, v = {shape[1]}, "
                    f"got {scores.dtype} {list(scores.shape)}"
                )
            # Both extremes are NaN if any score is; one pass, where isfinite takes several.
            finite = torch.stack(torch.aminmax(scores)).isfinite().all()
            # Only a recommender that is no module may have its scores on another device.
            self.finite &= finite.to(self.finite.device)
            if self.left_out is not None:
                # Filled on the device: a number from the host would make a GPU wait.
                out = scores.new_full((), -torch.inf)
                scores = scores.index_put(self.left_out.index(first, last), out)
            yield Tile(first, last, scores)

    def require_finite(self) -> None:
        """Waits for the tiles that were computed, and raises ValueError if a score in them is not finite."""
        if bool(self.finite):
            return
        for first, last in self._bounds():  # the same numbers again, to say where
            scores = self.score_tile(first, last)
            places = scores.isfinite().logical_not().nonzero()
            if len(places):
                row, column = places[0].tolist()
                raise ValueError(
                    f"scores must be finite, got {scores[row, column]} for item {first + column + 1} "
                    f"in row {self.rows[row]}"
                )
        raise ValueError("scores must be finite and the same each time, got others for the same histories")

    def _bounds(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.num_items, self.width):
            yield first, min(first + self.width, self.num_items)


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
        ValueError: if a history is empty, or the scores are not finite numbers of the right shape. Whether
            those of a block were finite is told when the next block is asked for, or the end.
    """
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if len(empty):
        raise ValueError(f"histories must hold at least one item, got none in row {empty[0]}")
    device = device_of(recommender)
    if items.min(initial=1) < 1:
        raise ValueError(f"items must be known ones, from 1 on, got {items.min()}")
    largest = items.max(initial=0)
    tiled = recommender if isinstance(recommender, TiledRecommender) else _Whole(recommender)
    most_scores = TILE_SCORES.get(device.type, TILE_SCORES["cpu"])
    for batch in history_batches(offsets, items, max_len, batch_size):
        rows = batch.users.numpy()
        batch = batch.to(device)
        state = tiled.encode(batch.items, batch.offsets)
        if largest > tiled.num_items:
            raise ValueError(f"items must lie in 1..V = 1..{tiled.num_items}, got {largest}")
        left_out = _places_of_histories(rows, offsets, items, device) if exclude_history else None
        width = max(most_scores // len(rows), 1)
        finite = torch.ones((), dtype=torch.bool, device=device)
        block = Block(rows, tiled.num_items, width, partial(tiled.score_tile, state), left_out, finite)
        yield block
        block.require_finite()


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
class Places:
    """Places in `[B, V]`, in the order of their columns, so that those of a tile are found at once.

    Attributes:
        row: int64 `[n]`.
        column: int64 `[n]`, ascending.
        columns: the same on the host, where a tile's bounds are looked up: no GPU has to wait for that.
    """

    row: Tensor
    column: Tensor
    columns: Int64Array

    @staticmethod
    def of(row: Int64Array, column: Int64Array, device: torch.device) -> Places:
        """The host's places for scores on a device."""
        of_row, of_column = (to_device(torch.from_numpy(index), device) for index in (row, column))
        return Places(of_row, of_column, column)

    def within(self, first: int, last: int) -> slice:
        """Which of the places lie in the columns `first` up to `last`."""
        return slice(*np.searchsorted(self.columns, (first, last)))

    def index(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Where those lie in a tile of these columns."""
        here = self.within(first, last)
        return self.row[here], self.column[here] - first


def _places_of_histories(
    rows: Int64Array, offsets: Int64Array, items: Int32Array, device: torch.device
) -> Places:
    """The items of the whole history of each row."""
    lengths = offsets[rows + 1] - offsets[rows]
    columns = items[ragged_indices(offsets[rows], lengths)].astype(np.int64) - 1
    order = np.argsort(columns, kind="stable")
    return Places.of(np.repeat(np.arange(len(rows)), lengths)[order], columns[order], device)


def device_of(recommender: Recommender) -> torch.device:
    """Where the recommender wants its histories: the device of its tensors, the CPU if it has none."""
    if not isinstance(recommender, nn.Module):
        return torch.device("cpu")
    tensor = next(chain(recommender.parameters(), recommender.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
