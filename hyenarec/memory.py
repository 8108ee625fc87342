"""The memory of this process, now and at its peak, including what is not torch's; Linux only."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def resident(field: str) -> float:
    """MiB of resident memory: VmRSS now, or VmHWM, the peak since `reset_peak`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    """Resets VmHWM to the memory used now."""
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but kept would hide what is used next
    Path("/proc/self/clear_refs").write_text("5")


def run_in_subprocess(program: Sequence[str], case: dict[str, Any]) -> Any:
    """Runs a program on one case in a process of its own, so that its peak memory is that case's alone.

    The program imports this very package, whatever the working directory contains.

    Args:
        program: what Python runs: a script, or `-m` and a module.
        case: the program's only argument, passed as JSON.

    Returns:
        What the program prints, read as JSON.

    Raises:
        RuntimeError: the program failed; the message holds its standard error.
    """
    safe_path = ["-P"] if program[0] == "-m" else []  # a script's own folder stays: its neighbours are there
    command = [sys.executable, *safe_path, *program, json.dumps(case)]
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {case} failed:\n{done.stderr}")
    return json.loads(done.stdout)
