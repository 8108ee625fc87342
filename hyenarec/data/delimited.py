"""Events from delimited text: SASRec-style `user item [timestamp]`, CSV, and RecBole's `.inter`.

pyarrow reads the file in blocks. Only where it meets something it does not like does a careful second pass
in plain Python go through the lines: it accepts what is merely irregular (several blanks between two fields),
and names file, line and reason of what is wrong, or skips and counts it.
"""

from __future__ import annotations

import csv
import gzip
import logging
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from hyenarec.config import BadRows
from hyenarec.data.columns import TIMESTAMP_LIMIT, EventColumns, IdColumn

_BLOCK_BYTES = 1 << 23
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_WHOLE_NUMBER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileLayout:
    """How a file is laid out, and at which positions its columns are.

    Attributes:
        delimiter: between two fields; None for any run of blanks and tabs, as in SASRec-style text.
        quoted: whether fields may stand in double quotes.
        header: whether the first line holds names.
        columns: number of columns; None is not known yet.
        user: position of the user.
        item: position of the item.
        timestamp: position of the timestamp, or None.
    """

    delimiter: str | None
    quoted: bool
    header: bool
    columns: int | None = None
    user: int = 0
    item: int = 1
    timestamp: int | None = None


def text_layout(path: Path, with_timestamps: bool) -> FileLayout:
    """Layout of SASRec-style text: two or three columns, as many as the first line with two or three has."""
    with _open(path) as file:
        for line in file:
            columns = len(line.split())
            if columns in (2, 3):
                timestamp = 2 if columns == 3 and with_timestamps else None
                return FileLayout(None, quoted=False, header=False, columns=columns, timestamp=timestamp)
    raise ValueError(f"{path} must hold lines of `user item [timestamp]`, got none")


def csv_layout(path: Path, user: str, item: str, timestamp: str | None) -> FileLayout:
    """Layout of CSV with a header; the delimiter is a tab where the header has one, else a comma."""
    header = _first_line(path)
    delimiter = "\t" if "\t" in header else ","
    names = next(csv.reader([header], delimiter=delimiter))
    return _layout_by_name(
        path, names, FileLayout(delimiter, quoted=True, header=True), user, item, timestamp
    )


def inter_layout(path: Path, user: str, item: str, timestamp: str | None) -> FileLayout:
    """Layout of RecBole's `.inter`: tabs, header like `user_id:token`, where `user` also finds `user_id`."""
    names = [name.split(":")[0] for name in _first_line(path).split("\t")]
    user, item = (f"{name}_id" if name not in names else name for name in (user, item))
    return _layout_by_name(path, names, FileLayout("\t", quoted=False, header=True), user, item, timestamp)


def read_text(path: Path, user: str, item: str, timestamp: str | None, on_bad_rows: BadRows) -> EventColumns:
    """Read SASRec-style text; it has no column names, so of the names only a `timestamp` of None matters."""
    return _read_delimited(path, text_layout(path, with_timestamps=timestamp is not None), on_bad_rows)


def read_csv(path: Path, user: str, item: str, timestamp: str | None, on_bad_rows: BadRows) -> EventColumns:
    """Read CSV with a header."""
    return _read_delimited(path, csv_layout(path, user, item, timestamp), on_bad_rows)


def read_inter(path: Path, user: str, item: str, timestamp: str | None, on_bad_rows: BadRows) -> EventColumns:
    """Read RecBole's `.inter`."""
    return _read_delimited(path, inter_layout(path, user, item, timestamp), on_bad_rows)


def _read_delimited(path: Path, layout: FileLayout, on_bad_rows: BadRows) -> EventColumns:
    """Read the events of a text file, gzipped or not.

    Raises:
        ValueError: with file, line and reason for the first malformed row, unless ``on_bad_rows="skip"``.
    """
    for timestamp_type in (pa.int64(), pa.float64()):
        try:
            return _read_fast(path, layout, timestamp_type)
        except (pa.ArrowInvalid, _NeedsCare):
            continue
    return _read_carefully(path, layout, on_bad_rows)


class _NeedsCare(Exception):
    """pyarrow read nothing, or what the careful pass would not accept."""


def _read_fast(path: Path, layout: FileLayout, timestamp_type: pa.DataType) -> EventColumns:
    """Read a file without irregularities; raises ArrowInvalid or _NeedsCare where there are any."""
    assert layout.columns is not None
    names = [str(position) for position in range(layout.columns)]
    types = {
        names[layout.user]: pa.dictionary(pa.int32(), pa.string()),
        names[layout.item]: pa.dictionary(pa.int32(), pa.string()),
    }
    if layout.timestamp is not None:
        types[names[layout.timestamp]] = timestamp_type
    columns: dict[str, list[pa.Array]] = {name: [] for name in types}
    with (
        pa.input_stream(path, compression="detect") as stream,
        pyarrow.csv.open_csv(
            stream,
            pyarrow.csv.ReadOptions(
                block_size=_BLOCK_BYTES, skip_rows=int(layout.header), column_names=names
            ),
            pyarrow.csv.ParseOptions(
                delimiter=layout.delimiter or _blank_or_tab(path), quote_char='"' if layout.quoted else False
            ),
            pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[""], strings_can_be_null=True
            ),
        ) as reader,
    ):
        for block in reader:
            for name in types:
                if block[name].null_count:
                    raise _NeedsCare
                columns[name].append(block[name])
    if not columns[names[layout.user]]:
        raise _NeedsCare
    timestamps = None
    if layout.timestamp is not None:
        chunks = columns.pop(names[layout.timestamp])
        timestamps = np.concatenate([np.asarray(chunk) for chunk in chunks])
        if timestamps.dtype == np.float64 and not np.all(np.abs(timestamps) < TIMESTAMP_LIMIT):
            raise _NeedsCare
    # pop: the chunks of a column go once it is joined, to hold no more than one column twice
    users = IdColumn.concatenate(columns.pop(names[layout.user]))
    items = IdColumn.concatenate(columns.pop(names[layout.item]))
    return EventColumns(users, items, timestamps, skipped_rows=0)


def _read_carefully(path: Path, layout: FileLayout, on_bad_rows: BadRows) -> EventColumns:
    """Read line by line: about thirty times slower, but knows where and why."""
    users, items, timestamps = _IdBuilder(), _IdBuilder(), _TimestampBuilder()
    skipped, first_skipped = 0, ""
    for line, fields in _rows(path, layout):
        reason = _what_is_wrong(fields, layout)
        if reason is None:
            users.append(fields[layout.user])
            items.append(fields[layout.item])
            if layout.timestamp is not None:
                timestamps.append(fields[layout.timestamp])
        elif on_bad_rows == "error":
            raise ValueError(f"{path}, line {line}: {reason}")
        else:
            skipped += 1
            first_skipped = first_skipped or f"line {line}: {reason}"
    if skipped:
        _logger.warning("%s: skipped %d malformed rows; the first is %s", path, skipped, first_skipped)
    return EventColumns(
        users=users.finish(),
        items=items.finish(),
        timestamps=None if layout.timestamp is None else timestamps.finish(),
        skipped_rows=skipped,
    )


def _what_is_wrong(fields: list[str], layout: FileLayout) -> str | None:
    """Why a row is malformed, or None."""
    if len(fields) != layout.columns:
        return f"expected {layout.columns} columns, got {len(fields)}"
    for name, position in (("user", layout.user), ("item", layout.item), ("timestamp", layout.timestamp)):
        if position is None:
            continue
        field = fields[position]
        if not field:
            return f"{name} is empty"
        if "\ufffd" in field:
            return f"{name} {field!r} is not valid UTF-8"
        if name == "timestamp" and not (_NUMBER.fullmatch(field) and abs(float(field)) < TIMESTAMP_LIMIT):
            return f"timestamp {field!r} is not a number that fits 64 bits"
    return None


class _IdBuilder:
    """Numbers ids in the order of their first appearance."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._code_of: dict[str, int] = {}

    def append(self, value: str) -> None:
        self._codes.append(self._code_of.setdefault(value, len(self._code_of)))

    def finish(self) -> IdColumn:
        ids = pa.array(list(self._code_of), pa.large_string())
        codes = pa.array(np.frombuffer(self._codes, dtype=np.int32))
        return IdColumn.concatenate([pa.DictionaryArray.from_arrays(codes, ids)])


class _TimestampBuilder:
    """Keeps timestamps as int64 until the first with a fraction."""

    def __init__(self) -> None:
        self._values: array[Any] = array("q")

    def append(self, value: str) -> None:
        if self._values.typecode == "q" and not _WHOLE_NUMBER.fullmatch(value):
            self._values = array("d", self._values)
        self._values.append(int(value) if self._values.typecode == "q" else float(value))

    def finish(self) -> NDArray[Any]:
        return np.frombuffer(self._values, dtype=np.int64 if self._values.typecode == "q" else np.float64)


def _rows(path: Path, layout: FileLayout) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every line that is not blank, after the header."""
    with _open(path) as file:
        if layout.delimiter is None:
            yield from ((line, fields) for line, fields in enumerate(map(str.split, file), 1) if fields)
            return
        quoting: Any = csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE
        reader = csv.reader(file, delimiter=layout.delimiter, quoting=quoting)
        try:
            for fields in reader:
                if fields and not (layout.header and reader.line_num == 1):
                    yield reader.line_num, fields
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _open(path: Path) -> TextIO:
    """The file as text; bytes that are not UTF-8 become U+FFFD, which no id may hold."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    file: TextIO = opener(path, "rt", encoding="utf-8-sig", errors="replace", newline=None)
    return file


def _first_line(path: Path) -> str:
    with _open(path) as file:
        line = file.readline().rstrip("\n")
    if not line:
        raise ValueError(f"{path} must start with a line of column names, got an empty one")
    return line


def _blank_or_tab(path: Path) -> str:
    with _open(path) as file:
        return "\t" if "\t" in file.readline() else " "


def _layout_by_name(
    path: Path, names: list[str], layout: FileLayout, user: str, item: str, timestamp: str | None
) -> FileLayout:
    """Find the columns in a header."""
    for argument, name in (("user_column", user), ("item_column", item), ("timestamp_column", timestamp)):
        if name is None or names.count(name) == 1:
            continue
        known = ", ".join(map(repr, names))
        hint = "; None where file order is time order" if argument == "timestamp_column" else ""
        raise ValueError(f"{argument} must name one column of {path}, which has {known}, got {name!r}{hint}")
    return FileLayout(
        delimiter=layout.delimiter,
        quoted=layout.quoted,
        header=layout.header,
        columns=len(names),
        user=names.index(user),
        item=names.index(item),
        timestamp=None if timestamp is None else names.index(timestamp),
    )
