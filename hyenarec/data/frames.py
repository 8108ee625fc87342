"""Events from Parquet files and from data frames, as Arrow record batches."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from hyenarec.config import BadRows
from hyenarec.data.columns import TIMESTAMP_LIMIT, EventColumns, IdColumn

_BATCH_ROWS = 1 << 20
_logger = logging.getLogger(__name__)


def read_parquet(
    path: Path, user: str, item: str, timestamp: str | None, on_bad_rows: BadRows
) -> EventColumns:
    """Read the events of one Parquet file."""
    with pyarrow.parquet.ParquetFile(path) as file:
        wanted = _check_names(str(path), file.schema_arrow.names, user, item, timestamp)
        return _collect(str(path), file.iter_batches(_BATCH_ROWS, columns=wanted), wanted, on_bad_rows)


def read_frame(frame: Any, user: str, item: str, timestamp: str | None, on_bad_rows: BadRows) -> EventColumns:
    """Read the events of a frame that exports an Arrow stream (pandas, polars, pyarrow, ...)."""
    if not hasattr(frame, "__arrow_c_stream__"):
        raise ValueError(
            "source must be a path, or a frame with __arrow_c_stream__ as pandas >= 2.2, polars >= 1.3 and "
            f"pyarrow have, got {type(frame).__name__}"
        )
    reader = pa.RecordBatchReader.from_stream(frame)
    wanted = _check_names("the frame", reader.schema.names, user, item, timestamp)
    return _collect("the frame", reader, wanted, on_bad_rows)


def _check_names(source: str, names: list[str], user: str, item: str, timestamp: str | None) -> list[str]:
    wanted = [name for name in (user, item, timestamp) if name is not None]
    for argument, name in zip(("user_column", "item_column", "timestamp_column"), wanted, strict=False):
        if names.count(name) != 1:
            known = ", ".join(map(repr, names))
            raise ValueError(f"{argument} must name one column of {source}, which has {known}, got {name!r}")
    return wanted


def _collect(
    source: str, batches: Iterable[pa.RecordBatch], wanted: list[str], on_bad_rows: BadRows
) -> EventColumns:
    """Convert batch after batch, so that no more than one is ever held in its own types."""
    users, items, timestamps = [], [], []
    rows, skipped, ticks = 0, 0, 1
    for batch in batches:
        columns = [_ids(batch[wanted[0]], wanted[0]), _ids(batch[wanted[1]], wanted[1])]
        if len(wanted) == 3:
            column, ticks = _timestamps(batch[wanted[2]], wanted[2])
            columns.append(column)
        valid = np.logical_and.reduce([np.asarray(column.is_valid()) for column in columns])
        if not valid.all():
            if on_bad_rows == "error":
                bad = int(np.flatnonzero(~valid)[0])
                name = next(n for n, column in zip(wanted, columns, strict=True) if not column[bad].is_valid)
                raise ValueError(f"{source}, row {rows + bad + 1}: {name} is null or not finite")
            skipped += int((~valid).sum())
            columns = [column.filter(pa.array(valid)) for column in columns]
        rows += len(batch)
        users.append(columns[0].dictionary_encode())
        items.append(columns[1].dictionary_encode())
        if len(wanted) == 3:
            timestamps.append(np.asarray(columns[2]))
    if rows == 0:
        raise ValueError(f"{source} must hold at least one event, got none")
    if skipped:
        _logger.warning("%s: skipped %d rows with a null", source, skipped)
    return EventColumns(
        users=IdColumn.concatenate(users),
        items=IdColumn.concatenate(items),
        timestamps=np.concatenate(timestamps) if len(wanted) == 3 else None,
        skipped_rows=skipped,
        ticks=ticks,
    )


def _ids(column: pa.Array, name: str) -> pa.Array:
    """Ids as int64 or large_string; an empty string is null, and so is NaN."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_integer(kind):
        return column.cast(pa.int64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        strings = column.cast(pa.large_string())
        return pc.if_else(pc.equal(strings, ""), pa.scalar(None, pa.large_string()), strings)
    if pa.types.is_floating(kind):  # what pandas makes of integers as soon as one is missing
        numbers = column.cast(pa.float64())
        whole = pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
        if bool(pc.all(pc.equal(whole, pc.floor(whole)), min_count=0).as_py()):
            return whole.cast(pa.int64())
    raise ValueError(f"column {name!r} must hold whole numbers or strings, got {column.type}")


TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""A second, of Arrow's times."""


def _timestamps(column: pa.Array, name: str) -> tuple[pa.Array, int]:
    """Timestamps as int64 or float64, what is not finite being null, and how many make a second if known."""
    kind = column.type
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("s")).cast(pa.int64()), 1
    if pa.types.is_timestamp(kind):
        return column.cast(pa.int64()), TICKS[kind.unit]
    if pa.types.is_integer(kind):
        return column.cast(pa.int64()), 1
    if pa.types.is_floating(kind):
        numbers = column.cast(pa.float64())
        finite = pc.less(pc.abs(numbers), TIMESTAMP_LIMIT)
        return pc.if_else(finite, numbers, pa.scalar(None, pa.float64())), 1
    raise ValueError(f"column {name!r} must hold numbers or times, got {column.type}")
