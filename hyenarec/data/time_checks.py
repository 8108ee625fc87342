"""Checks of moments that come from outside: whole numbers of a believable unit, in order."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hyenarec.config import TimeUnit
from hyenarec.data.histories import Int64Array
from hyenarec.data.times import DAY, HOUR, SECONDS, Times, in_seconds

SHORTEST, LONGEST = 60, 50 * 365 * DAY
"""Seconds between the first and the last event of some data, for a unit to be believed."""

FARTHEST = 10_000 * 365 * DAY
"""Seconds from moment 0 to any moment. Unix time in thousandths, taken for seconds, is beyond."""

UNIX_UNITS: tuple[TimeUnit, ...] = ("second", "millisecond", "microsecond", "nanosecond")
UNIX_SECONDS = (20 * 365 * DAY, 130 * 365 * DAY)
"""What Unix time is taken to be: 1990 to 2099."""


def whole_moments(name: str, values: Sequence[int] | Int64Array) -> Int64Array:
    """Moments as int64 `[n]`; ValueError if they are none, or don't fit in 64 bits."""
    if isinstance(values, np.ndarray) and values.dtype == np.int64 and values.ndim == 1:
        return values
    try:
        moments = [_whole(value) for value in values]
    except TypeError:
        raise ValueError(f"{name} must be a sequence of whole numbers, got {values!r}") from None
    try:
        return np.array(moments, dtype=np.int64)
    except OverflowError:
        raise ValueError(f"{name} must fit in 64 bits, got one of {min(moments)} to {max(moments)}") from None


def whole_moment(name: str, value: int) -> int:
    """One moment; ValueError if it is not a whole number."""
    try:
        return _whole(value)
    except TypeError:
        raise ValueError(f"{name} must be whole numbers, got {value!r}") from None


def _whole(value: int) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def require_range(name: str, least: int, most: int, unit: TimeUnit) -> None:
    """Raises ValueError unless moments from `least` to `most` are believable in that unit."""
    numerator, denominator = SECONDS[unit]
    limit = FARTHEST * denominator // numerator
    if not -limit <= least <= most <= limit:
        moment = least if least < -limit else most
        raise ValueError(
            f"{name} must be in {unit}s, the model's time_unit, and within 10,000 years of 0, got {moment}"
        )


def require_timestamps(timestamps: Int64Array | None, unit: TimeUnit, source: str) -> None:
    """Raises ValueError unless there are timestamps, `[E]`, that are believable in that unit.

    Args:
        timestamps: of some events.
        unit: of the model.
        source: where they come from, for the message.
    """
    if timestamps is None:
        raise ValueError(f"model.time_unit must be null without timestamps, which {source} lacks")
    if len(timestamps) < 2:
        return
    least, most = int(timestamps.min()), int(timestamps.max())
    unix = unix_unit(least, most)
    numerator, denominator = SECONDS[unit]
    seconds = (most - least) * numerator / denominator
    if unix not in (None, unit) or not SHORTEST <= seconds <= LONGEST:
        hint = "" if unix is None else f" ({unix!r}, if they are Unix time)"
        raise ValueError(
            f"model.time_unit must be the unit of the timestamps of {source}{hint}, got {unit!r}, by which "
            f"they run {span(least, most, unit)}, from {least} to {most}"
        )
    require_range("timestamps", least, most, unit)


def unix_unit(least: int, most: int) -> TimeUnit | None:
    """The unit in which moments from `least` to `most` are Unix time of these decades, if there is one."""
    for unit in UNIX_UNITS:
        first, last = (in_seconds(moment, unit) for moment in (least, most))
        if UNIX_SECONDS[0] <= first <= last <= UNIX_SECONDS[1]:
            return unit
    return None


def span(least: int, most: int, unit: TimeUnit) -> str:
    """From the first moment to the last one, in words: as dates of Unix time, or how long it takes."""
    if unix_unit(least, most) == unit:
        first, last = (datetime.fromtimestamp(in_seconds(moment, unit), UTC) for moment in (least, most))
        return f"from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    numerator, denominator = SECONDS[unit]
    seconds = (most - least) * numerator / denominator
    for name, length in (("years", 365 * DAY), ("days", DAY), ("hours", HOUR)):
        if seconds >= 2 * length:
            return f"over {seconds / length:,.0f} {name}"
    return f"over {seconds:.3g} seconds"


def require_questions(times: Times, offsets: Tensor, unit: TimeUnit | None = None) -> None:
    """Raises ValueError unless there is a moment for each packed history, not before its last event.

    A GPU would have to wait for the moments, so that they are looked at on the CPU only. With a unit they
    must not be too many seconds.
    """
    events, asked, rows = times.events, times.asked, len(offsets) - 1
    if not isinstance(asked, Tensor) or asked.shape != (rows,) or asked.dtype != torch.int64:
        got = f"{asked.dtype} {list(asked.shape)}" if isinstance(asked, Tensor) else repr(asked)
        raise ValueError(f"at must be int64 [{rows}], a moment for each history, got {got}")
    if asked.device.type != "cpu":
        return
    if unit is not None and rows > 0:
        require_range("at", int(asked.min()), int(asked.max()), unit)
    if len(events) == 0:
        return
    if unit is not None:
        require_range("timestamps", int(events.min()), int(events.max()), unit)
    falls = F.pad(events.diff() < 0, (1, 1)).index_fill_(0, offsets, False)
    if falls.any():
        raise ValueError(
            f"timestamps must not fall within a history, got {int(events[falls.nonzero()[0, 0]])} after "
            f"{int(events[falls.nonzero()[0, 0] - 1])}"
        )
    last = events[(offsets[1:] - 1).clamp(min=0)]
    early = ((asked < last) & (offsets.diff() > 0)).nonzero()
    if len(early) > 0:
        row = int(early[0])
        where = "" if rows == 1 else f" in row {row}"
        raise ValueError(
            f"at must not be before the last event, {int(last[row])}, got {int(asked[row])}{where}"
        )
