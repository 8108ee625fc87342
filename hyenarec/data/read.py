"""Read events from a file or a data frame into `Histories`; `READERS` has the file formats."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenarec.config import BadRows, Format
from hyenarec.data.columns import EventColumns
from hyenarec.data.delimited import read_csv, read_inter, read_text
from hyenarec.data.filters import filter_histories
from hyenarec.data.frames import read_frame, read_parquet
from hyenarec.data.histories import Histories, Int64Array, offsets_of
from hyenarec.data.vocabulary import Vocabulary


def read_histories(
    source: str | os.PathLike[str] | Any,
    *,
    format: Format = "auto",
    user_column: str = "user",
    item_column: str = "item",
    timestamp_column: str | None = "timestamp",
    min_user_events: int = 1,
    min_item_events: int = 1,
    on_bad_rows: BadRows = "error",
) -> Histories:
    """Read events and put them in order by (user, timestamp, place in the source).

    Users and items come out in ascending order of their external ids. These are int64 where all of a column
    are whole numbers, else strings, in the order of their UTF-8 bytes. So the same events give the same
    arrays however the source was shuffled, but for ties of user and timestamp.

    Args:
        source: a path, or a frame: pandas, polars, or whatever exports an Arrow stream.
        format: "text" (SASRec-style ``user item [timestamp]``, blanks or tabs, no header), "csv" (commas or
            tabs, header), "parquet", or "inter" (RecBole); "auto" goes by the file's name, ".gz" aside, and
            takes an unknown one for text. All but Parquet may be gzipped (".gz").
        user_column: name of the user column; text has no names. In "inter", "user" also finds "user_id".
        item_column: name of the item column.
        timestamp_column: name of the time column: numbers, in Parquet and frames also times and dates, which
            become seconds since 1970 in UTC. Fractions count for the order and are cut off then. None: the
            order of the source is time order. In text any name stands for the third column, if there is one.
        min_user_events: users with fewer events are dropped, and then
        min_item_events: items with fewer, until every user and item left has enough.
        on_bad_rows: "error" stops at the first malformed row; "skip" leaves them out, counts and logs them.

    Returns:
        The histories; ``skipped_rows`` is the count.

    Raises:
        ValueError: for a malformed row, with file, line and reason; for a column that is not there; for a
            file without events.
    """
    if on_bad_rows not in ("error", "skip"):
        raise ValueError(f'on_bad_rows must be "error" or "skip", got {on_bad_rows!r}')
    names = (user_column, item_column, timestamp_column)
    if isinstance(source, str | os.PathLike):
        columns, name = _read_file(Path(source), format, names, on_bad_rows), str(source)
    else:
        columns, name = read_frame(source, *names, on_bad_rows), "the frame"
    if len(columns.users.codes) == 0:
        raise ValueError(f"{name} must hold at least one event, got none")
    return filter_histories(_in_order(columns), min_user_events, min_item_events)


@dataclass(frozen=True)
class Reader:
    """A file format.

    Attributes:
        read: reads a file; takes its path, the names of the user, item and timestamp columns, and what to do
            with malformed rows.
        suffixes: of the names of such files; `.gz` aside.
    """

    read: Callable[[Path, str, str, str | None, BadRows], EventColumns]
    suffixes: tuple[str, ...] = ()


READERS: dict[Format, Reader] = {
    "text": Reader(read_text),
    "csv": Reader(read_csv, (".csv", ".tsv")),
    "parquet": Reader(read_parquet, (".parquet", ".pq")),
    "inter": Reader(read_inter, (".inter",)),
}
"""The file formats; "auto" chooses by suffix, and takes a file of another name for text."""


def _read_file(
    path: Path, format: Format, names: tuple[str, str, str | None], on_bad_rows: BadRows
) -> EventColumns:
    if not path.is_file():
        raise ValueError(f"path must be a file, got {path}")
    if format == "auto":
        format = _format_by_name(path)
    if format not in READERS:
        known = ", ".join(map(repr, ("auto", *READERS)))
        raise ValueError(f"format must be one of {known}, got {format!r}")
    return READERS[format].read(path, *names, on_bad_rows)


def _format_by_name(path: Path) -> Format:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    last = suffixes[-1] if suffixes else ""
    return next((format for format, reader in READERS.items() if last in reader.suffixes), "text")


def _in_order(columns: EventColumns) -> Histories:
    """Sort the events and number users and items."""
    users, items = columns.users.sorted(), columns.items.sorted()
    order = _time_order(users.codes, columns.timestamps)
    numbers = items.codes + np.int32(1)
    timestamps = columns.timestamps
    if order is not None:
        numbers = numbers[order]
        timestamps = None if timestamps is None else timestamps[order]
    if timestamps is not None and timestamps.dtype != np.int64:
        timestamps = np.floor(timestamps).astype(np.int64)
    if timestamps is not None and columns.ticks > 1:
        timestamps = timestamps // columns.ticks
    return Histories(
        offsets=offsets_of(np.bincount(users.codes, minlength=len(users.ids))),
        items=numbers,
        timestamps=timestamps,
        user_ids=np.asarray(users.ids.to_numpy(zero_copy_only=False)),
        vocabulary=Vocabulary(items.ids),
        skipped_rows=columns.skipped_rows,
    )


def _time_order(users: NDArray[np.int32], timestamps: NDArray[Any] | None) -> Int64Array | None:
    """The stable order by (user, timestamp), or None where the events have it already."""
    in_order = users[1:] >= users[:-1]
    if timestamps is None:
        return None if bool(in_order.all()) else np.argsort(users, kind="stable")
    in_order &= (users[1:] > users[:-1]) | (timestamps[1:] >= timestamps[:-1])
    return None if bool(in_order.all()) else np.lexsort((timestamps, users))
