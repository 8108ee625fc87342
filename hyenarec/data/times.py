"""When events happened and when what comes next is asked for; what a moment means in the calendar."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from hyenarec.config import TimeUnit
from hyenarec.data.histories import Int64Array

T = TypeVar("T", Tensor, Int64Array, int)

HOUR, DAY, WEEK = 3600, 86_400, 604_800
"""Seconds."""

HOURS_OF_WEEK = WEEK // HOUR

SECONDS: dict[TimeUnit, tuple[int, int]] = {
    "nanosecond": (1, 10**9),
    "microsecond": (1, 10**6),
    "millisecond": (1, 1000),
    "second": (1, 1),
    "minute": (60, 1),
    "hour": (HOUR, 1),
    "day": (DAY, 1),
}
"""Seconds of each unit, as a fraction."""

SHORTEST, LONGEST = 60, 200 * 365 * DAY
"""Seconds between the first and the last event of some data, for a unit to be believed."""


class Times(NamedTuple):
    """When packed events happened, and when what comes next is asked for, in the unit of the data.

    Attributes:
        events: int64 `[total]`, of each event; it never falls within a history.
        asked: int64, of the questions: one after each event, `[total]`, in training; else one after each
            history, `[B]`. None is before the event that it follows.
    """

    events: Tensor
    asked: Tensor


def in_seconds(moments: T, unit: TimeUnit) -> T:
    """Moments in whole seconds, rounded down: a number, or a tensor or array of int64."""
    numerator, denominator = SECONDS[unit]
    return moments * numerator // denominator


def hour_of_week(seconds: T) -> T:
    """The hour within a week, 0..167: of a number, or a tensor or array of int64.

    Weeks begin with the moment 0, which is a Thursday's midnight in UTC where moments count from 1970.
    """
    return seconds // HOUR % HOURS_OF_WEEK


def require_unit(timestamps: Int64Array, unit: TimeUnit) -> None:
    """Raises ValueError unless events of a unit span a believable time; `timestamps` is `[E]`."""
    if len(timestamps) < 2:
        return
    numerator, denominator = SECONDS[unit]
    seconds = (int(timestamps.max()) - int(timestamps.min())) * numerator / denominator
    if not SHORTEST <= seconds <= LONGEST:
        span = f"{seconds:.3g} seconds" if seconds < DAY else f"{seconds / (365 * DAY):,.0f} years"
        raise ValueError(
            f"model.time_unit must be the unit of the timestamps, got {unit!r}, by which they span {span}, "
            f"from {timestamps.min()} to {timestamps.max()}"
        )


def require_questions(times: Times, offsets: Tensor) -> None:
    """Raises ValueError unless there is a moment for each packed history, not before its last event.

    A GPU would have to wait for the latter, which is checked on the CPU only.
    """
    asked, rows = times.asked, len(offsets) - 1
    if asked.shape != (rows,) or asked.dtype != torch.int64:
        raise ValueError(
            f"at must be int64 [{rows}], a moment for each history, got {asked.dtype} {list(asked.shape)}"
        )
    if asked.device.type != "cpu" or len(times.events) == 0:
        return
    last = times.events[(offsets[1:] - 1).clamp(min=0)]
    early = ((asked < last) & (offsets.diff() > 0)).nonzero()
    if len(early) > 0:
        row = int(early[0])
        raise ValueError(
            f"at must not be before the last event, {int(last[row])}, got {int(asked[row])} in row {row}"
        )
