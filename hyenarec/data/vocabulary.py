"""The items of a catalogue: external ids on one side, 1..V on the other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from hyenarec.files import write_atomically

FILE_NAME = "vocabulary.safetensors"


class Vocabulary:
    """External item ids, int64 or strings, numbered 1..V; number 0 means "unknown" or "none"."""

    def __init__(self, item_ids: Any) -> None:
        """Number the distinct ``item_ids`` (array, list or pyarrow array) in the order given.

        Raises:
            ValueError: if an id is missing or twice there, or the ids are neither integers nor strings.
        """
        self._ids = _id_array(item_ids)
        if self._ids.null_count:
            raise ValueError(f"item_ids must not be null, got {self._ids.null_count} nulls")
        distinct = pc.count_distinct(self._ids).as_py()
        if distinct != len(self._ids):
            raise ValueError(
                f"item_ids must be distinct, got {len(self._ids)} ids of which {distinct} differ"
            )

    def __len__(self) -> int:
        """Number of items V; the ids are 1..V."""
        return len(self._ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and bool(self._ids.equals(other._ids))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} items, {'strings' if self.holds_strings else 'int64'})"

    @property
    def holds_strings(self) -> bool:
        """Whether the external ids are strings (else they are int64)."""
        return bool(pa.types.is_large_string(self._ids.type))

    @property
    def item_ids(self) -> NDArray[Any]:
        """The external ids ``[V]`` of items 1..V: int64, or strings in an object array."""
        return np.asarray(self._ids.to_numpy(zero_copy_only=False))

    def encode(self, item_ids: Any) -> NDArray[np.int32]:
        """Number external ids ``[n]`` (array, list, pyarrow array): int32 ``[n]``, 0 if unknown or null."""
        wanted = _id_array(item_ids)
        if len(wanted) == 0:
            return np.zeros(0, dtype=np.int32)
        if wanted.type != self._ids.type:
            raise ValueError(f"item_ids must be {self._ids.type} as the vocabulary's, got {wanted.type}")
        found = pc.index_in(wanted, value_set=self._ids, skip_nulls=True)
        return np.asarray(pc.fill_null(found, -1), dtype=np.int32) + np.int32(1)

    def decode(self, ids: Any) -> NDArray[Any]:
        """External ids of the numbers ``ids`` (any shape, 1..V): int64, or strings in an object array."""
        numbers = np.asarray(ids)
        if numbers.size and (numbers.min() < 1 or numbers.max() > len(self)):
            raise ValueError(f"ids must lie in 1..{len(self)}, got {numbers.min()}..{numbers.max()}")
        taken = self._ids.take(pa.array(numbers.reshape(-1).astype(np.int64) - 1))
        return np.asarray(taken.to_numpy(zero_copy_only=False)).reshape(numbers.shape)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``path`` (a file, or a folder for ``vocabulary.safetensors``) in one piece or not at all.

        int64 ids are one int64 tensor ``item_ids`` [V]; strings are their UTF-8 bytes end to end, uint8
        ``item_bytes``, and int64 ``item_offsets`` [V + 1] into them.
        """
        target = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        if self.holds_strings:
            bytes_, offsets = _utf8(self._ids)
            tensors: dict[str, NDArray[Any]] = {"item_bytes": bytes_, "item_offsets": offsets}
        else:
            tensors = {"item_ids": np.ascontiguousarray(self.item_ids)}
        write_atomically(target, save(tensors))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what `save` wrote (the file, or the folder it is in)."""
        source = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        tensors = load_file(source)
        if tensors.keys() == {"item_ids"} and tensors["item_ids"].dtype == np.int64:
            return cls(tensors["item_ids"])
        if tensors.keys() == {"item_bytes", "item_offsets"}:
            offsets = np.ascontiguousarray(tensors["item_offsets"])
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(tensors["item_bytes"]))]
            strings = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
            strings.validate(full=True)
            return cls(strings)
        raise ValueError(
            f"{source} must hold item_ids (int64), or item_bytes and item_offsets, got {sorted(tensors)}"
        )


def _id_array(ids: Any) -> pa.Array:
    """Any array of ids as one pyarrow array of int64 or large_string."""
    array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64())
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return array.cast(pa.large_string())
    if len(array) == 0:
        return pa.array([], pa.int64())
    raise ValueError(f"item_ids must be integers or strings, got {array.type}")


def _utf8(strings: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Bytes and offsets (from 0) of a large_string array, which may be a slice of a longer one."""
    _, offset_buffer, data = strings.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[strings.offset : strings.offset + len(strings) + 1]
    bytes_ = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    return bytes_[offsets[0] : offsets[-1]].copy(), offsets - offsets[0]
