"""How much memory this process has and had at most, with all that is not torch's; Linux only."""

from __future__ import annotations

import ctypes
from pathlib import Path


def resident(field: str) -> float:
    """MiB of this process: VmRSS, now in memory, or VmHWM, the most since `reset_peak`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    """Begins a new VmHWM for `resident`."""
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but kept would hide what is used next
    Path("/proc/self/clear_refs").write_text("5")
