"""Events as a reader hands them over: columns in the order of the source, ids as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

TIMESTAMP_LIMIT = 2.0**63
"""Timestamps must be smaller than this in absolute value, to fit int64."""

# Whole numbers the way they are printed: neither "007" nor one of 20 digits, which int64 would not give back.
_INTEGER = "^(0|-?[1-9][0-9]{0,17})$"


@dataclass(frozen=True, eq=False)
class IdColumn:
    """A column of ids: ``codes`` int32 ``[E]`` into the distinct ``ids`` (int64 or large_string)."""

    codes: NDArray[np.int32]
    ids: pa.Array

    @classmethod
    def concatenate(cls, chunks: Sequence[pa.DictionaryArray]) -> IdColumn:
        """Join dictionary-encoded chunks (at least one, no nulls); all whole numbers become int64."""
        joined = pa.chunked_array(chunks).unify_dictionaries()
        codes = np.concatenate([np.asarray(chunk.indices, dtype=np.int32) for chunk in joined.chunks])
        ids = joined.chunk(0).dictionary
        if not pa.types.is_integer(ids.type):
            ids = ids.cast(pa.large_string())
            if pc.all(pc.match_substring_regex(ids, _INTEGER)).as_py():
                ids = ids.cast(pa.int64())
        return cls(codes=codes, ids=ids)

    def sorted(self) -> IdColumn:
        """The same column with ``ids`` ascending: numbers by value, strings by their bytes."""
        order = np.asarray(pc.sort_indices(self.ids)).astype(np.int64)
        rank = np.empty(len(order), dtype=np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        return IdColumn(codes=rank[self.codes], ids=self.ids.take(pa.array(order)))


@dataclass(frozen=True, eq=False)
class EventColumns:
    """All events of a source, in its order.

    Attributes:
        users: who.
        items: what.
        timestamps: when, int64 or finite float64 ``[E]``, or None.
        skipped_rows: malformed rows that were left out.
        ticks: of ``timestamps`` a second, where they are times; 1 for numbers, which stay what they are.
    """

    users: IdColumn
    items: IdColumn
    timestamps: NDArray[Any] | None
    skipped_rows: int
    ticks: int = 1
