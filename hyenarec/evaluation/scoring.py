"""What evaluation and recommendation share: the interface of a recommender, and scoring in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from hyenarec.data.batches import history_batches
from hyenarec.data.histories import Int32Array, Int64Array, ragged_indices
from hyenarec.data.time_checks import require_questions
from hyenarec.data.times import Times
from hyenarec.transfer import to_device

TILE_SCORES = {"cpu": 2**21, "cuda": 2**26}
"""Most scores that exist at a time, by type of device: histories of a block times items of a tile. In float32
they are 8 MiB on a CPU, which still has them in cache when it reads them again, and 256 MiB on a GPU, which
would finish a smaller tile before the next one is queued. With what is computed from them it is two or three
times as much."""


def tile_width(rows: int, device: torch.device) -> int:
    """How many scores of each row a tile of that many rows has."""
    return max(TILE_SCORES.get(device.type, TILE_SCORES["cpu"]) // rows, 1)


class Recommender(Protocol):
    """Anything that scores the catalogue after a history: HyenaRec, and every baseline.

    A recommender with no more than this makes `batch_size` x V scores at a time; a `TiledRecommender` is
    asked for one tile of the catalogue at a time instead. One with an attribute `uses_time` that is true also
    gets the events' timestamps `[total]` and the moments `[B]` that are asked for, int64 both.
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
    """A recommender that encodes the histories once and can then score any part of the catalogue."""

    @property
    def num_items(self) -> int:
        """V, size of the catalogue."""
        ...

    def encode(self, items: Tensor, offsets: Tensor) -> Any:
        """What the scores need of each packed history, for `score_tile`; arguments as for `score`.

        A model that uses time gets `Times` as a third one.
        """
        ...

    def score_tile(self, state: Any, first: int, last: int) -> Tensor:
        """The columns `first` up to `last` of `score`, `[B, last - first]`, from what `encode` gave.

        The same tile of the same state must give the same numbers, bit for bit, every time.
        """
        ...


@contextmanager
def scoring_mode(recommender: Recommender) -> Iterator[None]:
    """Disables gradients and puts a module in evaluation mode; afterwards restores each submodule's mode."""
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
    """The scores of a part of the catalogue, for the histories of a block.

    Attributes:
        first: column of the first item, whose id is `first + 1`.
        last: column after the last item.
        scores: `[B, last - first]`, -inf for items left out. `Block.require_finite` checks the others.
    """

    first: int
    last: int
    scores: Tensor


@dataclass(eq=False)
class Block:
    """Some histories and, tile by tile, their scores; each iteration computes the tiles again.

    Whether all scores are finite is recorded on the device, so that no tile waits for a GPU. It is read only
    when `score_blocks` goes on to the next block, and raises an error if they are not; until then no result
    of the block is final.

    Attributes:
        rows: int64 `[B]`, the indices of the histories.
        num_items: V, size of the catalogue.
        width: most items of a tile.
        score_tile: computes the scores `[B, last - first]` of the columns `first` up to `last`.
        left_out: the places that become -inf; None for none.
        finite: bool scalar on the recommender's device: whether all scores computed so far are finite.
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
            # Both extremes are NaN if any score is: one pass, while isfinite takes several.
            finite = torch.stack(torch.aminmax(scores)).isfinite().all()
            # Only a recommender that is not a module may have its scores on another device.
            self.finite &= finite.to(self.finite.device)
            if self.left_out is not None:
                # Made on the device: copying a number from the host would wait for a GPU.
                out = scores.new_full((), -torch.inf)
                scores = scores.index_put(self.left_out.index(first, last), out)
            yield Tile(first, last, scores)

    def require_finite(self) -> None:
        """Waits for the tiles computed so far, and raises ValueError if a score is not finite."""
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
    times: Times | None = None,
) -> Iterator[Block]:
    """Scores every history, `batch_size` at a time; call it within `scoring_mode`.

    Args:
        recommender: sees the last `max_len` events of each history.
        offsets: int64 `[R + 1]`.
        items: int32, ids 1..V; a history may be empty if the recommender's `scores_empty_histories` is true.
        max_len: length of the window.
        batch_size: most histories a block; fewer if they are long: a block has at most `EVENTS_PER_BATCH`
            events.
        exclude_history: whether all items of a history, not only of its window, score -inf.
        times: of `items`, and the moment of each row's question; only for a recommender that uses them.

    Yields:
        The blocks, with scores on the recommender's device.

    Raises:
        ValueError: if a history is empty and must not be, moments are missing, or the scores are not finite
            numbers of the right shape. Scores of a block that are not finite raise it when the next block is
            requested, or at the end.
    """
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if len(empty) and not getattr(recommender, "scores_empty_histories", False):
        raise ValueError(
            f"histories must hold at least one item, got none in row {empty[0]}: this recommender scores no "
            "empty ones"
        )
    device = device_of(recommender)
    if items.min(initial=1) < 1:
        raise ValueError(f"items must be known ones, from 1 on, got {items.min()}")
    largest = items.max(initial=0)
    tiled = recommender if isinstance(recommender, TiledRecommender) else _Whole(recommender)
    if not uses_time(recommender):
        times = None
    elif times is None:
        raise ValueError(
            "times must be given for a recommender that uses them, got none: split histories with_times"
        )
    else:
        require_questions(times, torch.from_numpy(offsets))
    for batch in history_batches(offsets, items, max_len, batch_size, times=times):
        rows = batch.users.numpy()
        batch = batch.to(device)
        arguments: tuple[Any, ...] = (batch.items, batch.offsets)
        state = tiled.encode(*arguments, *([] if batch.times is None else [batch.times]))
        if largest > tiled.num_items:
            raise ValueError(f"items must lie in 1..V = 1..{tiled.num_items}, got {largest}")
        left_out = places_of_histories(rows, offsets, items, device) if exclude_history else None
        width = tile_width(len(rows), device)
        finite = torch.ones((), dtype=torch.bool, device=device)
        block = Block(rows, tiled.num_items, width, partial(tiled.score_tile, state), left_out, finite)
        yield block
        block.require_finite()


class _Whole:
    """Gives a recommender without tiles the interface of one with tiles, cut from all of its scores."""

    def __init__(self, recommender: Recommender) -> None:
        self.score: Callable[..., Tensor] = recommender.score
        self.num_items = -1

    def encode(self, items: Tensor, offsets: Tensor, times: Times | None = None) -> Tensor:
        scores, rows = self.score(items, offsets, *(times or ())), len(offsets) - 1
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
    """Positions in `[B, V]`, sorted by column, so that those within a tile are a slice.

    Attributes:
        row: int64 `[n]`.
        column: int64 `[n]`, ascending.
        columns: the same on the host, where a tile's bounds are looked up without waiting for a GPU.
    """

    row: Tensor
    column: Tensor
    columns: Int64Array

    @staticmethod
    def of(row: Int64Array, column: Int64Array, device: torch.device) -> Places:
        """Copies positions from the host to the device of the scores."""
        of_row, of_column = (to_device(torch.from_numpy(index), device) for index in (row, column))
        return Places(of_row, of_column, column)

    def within(self, first: int, last: int) -> slice:
        """The slice of the positions in the columns `first` up to `last`."""
        return slice(*np.searchsorted(self.columns, (first, last)))

    def index(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Their indices within a tile of these columns."""
        here = self.within(first, last)
        return self.row[here], self.column[here] - first


def places_of_histories(
    rows: Int64Array, offsets: Int64Array, items: Int32Array, device: torch.device
) -> Places:
    """The items of the whole history of each row."""
    lengths = offsets[rows + 1] - offsets[rows]
    columns = items[ragged_indices(offsets[rows], lengths)].astype(np.int64) - 1
    order = np.argsort(columns, kind="stable")
    return Places.of(np.repeat(np.arange(len(rows)), lengths)[order], columns[order], device)


def uses_time(recommender: Recommender) -> bool:
    """Whether a recommender is to be given moments; see `Recommender`."""
    return bool(getattr(recommender, "uses_time", False))


def device_of(recommender: Recommender) -> torch.device:
    """The device of the recommender's tensors; the CPU if it has none."""
    if not isinstance(recommender, nn.Module):
        return torch.device("cpu")
    tensor = next(chain(recommender.parameters(), recommender.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
