"""When events happened and when what comes next is asked for; what a moment means in the calendar."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

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
