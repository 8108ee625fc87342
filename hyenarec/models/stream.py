"""One history, event by event: the scores of `HyenaRec.score`, in constant time and memory for each event.

The batch path sees a whole history at once. A stream keeps only what later events need: for each block the
Legendre coefficients and current chunk of its long convolutions (`ops.legendre_step`), and the last rows that
the short convolution still reaches; and, where counts are mixed in, what is counted of the history.
Everything else works on each event alone.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise, zip_longest
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from hyenarec.config import ModelConfig
from hyenarec.data.time_checks import require_range, whole_moment
from hyenarec.data.times import Times, in_seconds
from hyenarec.models.lag_bias import LAGS, LagBias, Latest, latest_of_histories
from hyenarec.models.mixture.count_mixture import CountMixture
from hyenarec.models.repeats import RepeatHead, RepeatMemory
from hyenarec.models.time import Moment, Question


class Step(Protocol):
    """A block of a model with the state of one history."""

    def __call__(self, x: Tensor, position: Tensor) -> Tensor:
        """The next events `[L, D]` through the block; `position` `[1]` is the first one's, counted from 0."""
        ...

    def copy(self) -> Self:
        """An independent copy of the state."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        ...


class StreamedModel(Protocol):
    """What a stream needs of `HyenaRec`."""

    config: ModelConfig
    items: nn.Embedding
    item_bias: nn.Parameter
    norm: nn.LayerNorm
    lag_bias: LagBias | None
    repeat_head: RepeatHead | None
    mixture: CountMixture | None
    start: Tensor | None
    moment: Moment | None
    question: Question | None

    @property
    def max_len(self) -> int:
        """The number of latest events of a history that the model sees."""
        ...

    @property
    def item_weight(self) -> Tensor:
        """The output layer's rows `[V, D]`: row j belongs to item j + 1."""
        ...

    def steps(self) -> Sequence[Step]:
        """The blocks of an empty history, to be advanced event by event."""
        ...


def _unchanged(x: Tensor) -> Tensor:
    return x


class Stream:
    """A growing history and the scores of its next item; `HyenaRec.stream()` makes one.

    After each event, `scores()` equals `HyenaRec.score` of the history so far up to rounding (1e-5), in
    evaluation mode and without gradients. The cost of an event does not depend on the history's length, nor
    does the size of the state (`nbytes`): `num_blocks · ((order - 1)(N + C) + (order + 1)(W - 1)) · D + D`
    numbers, where N is `num_coeffs`, C the 32 events of a chunk (16 for N <= 9), and W is `short_conv_width`.
    With a repeat head, or where own items are counted, 40 to 112 bytes and the entry of a dictionary come
    to that for each distinct item or step (by time also item and hour of the week), and `copy()` and
    `scores()` take time in proportion.

    The model's weights must not change while its streams live: what the convolutions need of them is computed
    once, here, and shared with copies. To serve many users, make one stream and `copy()` it while it is
    empty. A stream must not be used by several threads at once; different streams of one model may be.

    Args:
        model: a model with `legendre` kernels.

    Raises:
        ValueError: if the kernels are of another family, which has no state of constant size.
    """

    @torch.inference_mode()
    def __init__(self, model: StreamedModel) -> None:
        if model.config.kernel != "legendre":
            raise ValueError(
                f"a stream needs a model with kernel 'legendre', got {model.config.kernel!r}: only "
                "polynomials sum up all past events in a state of constant size"
            )
        self._model = model
        self._blocks = model.steps()
        norm, norm_first = model.norm.forward, model.config.norm == "pre"
        self._enter: Callable[[Tensor], Tensor] = _unchanged if norm_first else norm
        self._leave: Callable[[Tensor], Tensor] = norm if norm_first else _unchanged
        self._items: list[int] = []  # the latest ones, and their seconds if the model knows time
        self._seconds_of_items: list[int] = []
        self._repeats = None if model.repeat_head is None else RepeatMemory(model.repeat_head)
        self._memories = [] if model.mixture is None else model.mixture.memories(model.item_bias.device)
        self._length = 0
        self._latest: int | None = None  # the last event's moment, if the model knows time
        self._whole = True
        self._last = model.items.weight[0].clone()  # what the last block gave for the last event

    def __len__(self) -> int:
        """Number of events so far."""
        return self._length

    def append(self, item: int, timestamp: int | None = None) -> None:
        """Adds the next event.

        Args:
            item: its id, 1..V.
            timestamp: when it happened, in the model's `time_unit`, if and only if the model has one.

        Raises:
            ValueError: if the id is not in the catalogue, the timestamp is before the last one or not asked
                for, or the stream already has `max_len` events. The stream is unchanged.
            RuntimeError: if an earlier call was interrupted (Ctrl-C, out of memory) between two blocks, which
                then no longer hold the same events. Earlier copies of the stream are still valid.
        """
        self.extend((item,), None if timestamp is None else (timestamp,))

    @torch.inference_mode()
    def extend(self, items: Iterable[int], timestamps: Iterable[int] | None = None) -> None:
        """Adds several events, oldest first: like `append` for each, but faster.

        Args:
            items: ids, 1..V.
            timestamps: one for each of `items`, as for `append`.

        Raises:
            ValueError: as for `append`; no event is added.
            RuntimeError: as for `append`.
        """
        self._require_whole()
        ids = [self._checked(item) for item in items]
        moments = self._checked_moments("timestamps", timestamps, len(ids))
        max_len = self._model.max_len
        if self._length + len(ids) > max_len:
            raise ValueError(
                f"a stream must have at most max_len = {max_len} events, got {self._length + len(ids)}: "
                "start a new one and extend it by the latest events"
            )
        if not ids:
            return
        items_weight, seconds = self._model.items.weight, self._seconds(moments)
        position = torch.tensor([self._length], device=items_weight.device)
        x = items_weight[torch.tensor(ids, device=items_weight.device)] * math.sqrt(self._model.config.dim)
        if self._model.moment is not None:
            x = x + self._model.moment(*self._of_moments(seconds))
        x = self._enter(x)
        self._whole = False
        for block in self._blocks:
            x = block(x, position)
        self._items = [*self._items, *ids][-LAGS:]
        self._seconds_of_items = [*self._seconds_of_items, *seconds][-LAGS:]
        if self._repeats is not None:
            for place, item in enumerate(ids, self._length):
                self._repeats.append(item, place)
        for memory in self._memories:
            for item, second in zip_longest(ids, seconds):
                memory.append(item, second)
        self._last = x[-1].clone()
        self._length += len(ids)
        self._latest = moments[-1] if moments else None
        self._whole = True

    @torch.no_grad()  # not inference mode, whose tensors cannot be changed in place: callers mask scores
    def scores(self, at: int | None = None) -> Tensor:
        """Scores of the next event, `[V]`: entry j belongs to item j + 1.

        Args:
            at: the moment that is asked for, in the model's `time_unit`, if and only if the model has one.
                The stream is unchanged: any number of moments may be asked for.

        Raises:
            ValueError: if the moment is before the last event or not asked for, or there are no events yet
                and the model has no row for an empty history.
            RuntimeError: as for `append`.
        """
        self._require_whole()
        asked = self._seconds(self._checked_moments("at", None if at is None else (at,), 1))
        model = self._model
        hidden = self._row()
        if model.question is not None:
            hidden = model.question(hidden[None], *self._of_moments(asked))[0]
        scores = torch.addmv(model.item_bias, model.item_weight, hidden)
        if model.lag_bias is not None:
            scores = model.lag_bias.add_to(scores[None], self._latest_items(asked), 0)[0]
        if self._repeats is not None:
            scores = self._repeats.scores(hidden, self._length).add_to(scores[None], 0)[0]
        if model.mixture is None:
            return scores
        added = model.mixture.weigh([memory.evidence(*asked) for memory in self._memories])
        return model.mixture.mix(scores[None], added, 0)[0]

    @torch.inference_mode()
    def copy(self) -> Stream:
        """An independent stream with the same history.

        Raises:
            RuntimeError: as for `append`.
        """
        self._require_whole()
        other = copy.copy(self)
        other._blocks = [block.copy() for block in self._blocks]
        other._repeats = None if self._repeats is None else self._repeats.copy()
        other._memories = [memory.copy() for memory in self._memories]
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of this stream's own state, without the model and what copies share."""
        counted = sum(memory.nbytes for memory in (self._repeats, *self._memories) if memory is not None)
        return self._last.nbytes + counted + sum(block.nbytes for block in self._blocks)

    def _require_whole(self) -> None:
        if not self._whole:
            raise RuntimeError(
                "the stream was interrupted while it took an event: make another one and give it the history"
            )

    def _row(self) -> Tensor:
        """The last event's row `[D]`, or that of an empty history."""
        if self._length > 0:
            return self._leave(self._last)
        start = self._model.start
        if start is None:
            raise ValueError(
                "a stream must have at least one event before it has scores, got none: its model has no row "
                "for an empty history"
            )
        return start

    def _latest_items(self, asked: list[int]) -> Latest:
        """The latest items, at the second that is asked for if the model knows time."""
        items, events, questions = (
            torch.tensor(numbers, dtype=torch.int64, device=self._last.device)
            for numbers in (self._items, self._seconds_of_items, asked)
        )
        offsets = torch.tensor([0, len(items)], device=items.device)
        return latest_of_histories(items, offsets, Times(events, questions) if asked else None)

    def _checked_moments(self, name: str, moments: Iterable[int] | None, count: int) -> list[int]:
        """As many moments, none before the last event; none at all where time is not known."""
        unit = self._model.config.time_unit
        if (moments is None) != (unit is None) and count > 0:
            given = "none" if moments is None else "some"
            raise ValueError(f"{name} must be given if and only if the model has a time_unit, got {given}")
        if moments is None or unit is None:
            return []
        try:
            checked = [whole_moment(name, moment) for moment in moments]
        except TypeError:
            raise ValueError(f"{name} must be whole numbers, one for each item, got {moments!r}") from None
        if len(checked) != count:
            raise ValueError(f"{name} must be {count}, one for each item, got {len(checked)}")
        last = [] if self._latest is None else [self._latest]
        for before, now in pairwise(last + checked):
            if now < before:
                raise ValueError(f"{name} must not be before the event before, {before}, got {now}")
        if checked:
            require_range(name, min(checked), max(checked), unit)
        return checked

    def _seconds(self, moments: Sequence[int]) -> list[int]:
        unit = self._model.config.time_unit
        return [] if unit is None else [in_seconds(moment, unit) for moment in moments]

    def _of_moments(self, seconds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What `Moment` takes: int64 `[L]` seconds, and those since the event before."""
        before = self._seconds([] if self._latest is None else [self._latest])
        since = [now - earlier for earlier, now in pairwise((*before, *seconds))]
        since = since if before else [-1, *since]
        device = self._last.device
        return torch.tensor(seconds, device=device), torch.tensor(since, device=device)

    def _checked(self, item: int) -> int:
        num_items = self._model.item_bias.shape[0]
        try:
            index = operator.index(item)
        except TypeError:
            index = 0
        if not 1 <= index <= num_items:
            raise ValueError(f"item must be an integer in 1..V = 1..{num_items}, got {item!r}")
        return index
