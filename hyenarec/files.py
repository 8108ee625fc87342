"""Files that are never half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provides a temporary path to write to, which replaces `path` when the block ends.

    Even if the process or the machine is killed, `path` is either the old file or the new one, complete.
    After an error in the block it is the old one.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _flush(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file that is never half written; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
