"""How much memory this process has and had at most, with all that is not torch's; Linux only."""

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
    """MiB of this process: VmRSS, now in memory, or VmHWM, the most since `reset_peak`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    """Begins a new VmHWM for `resident`."""
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but kept would hide what is used next
    Path("/proc/self/clear_refs").write_text("5")


def run_in_subprocess(program: Sequence[str], case: dict[str, Any]) -> Any:
    """What a program prints in JSON when it is called with a case in JSON: a peak that is that case's alone.

    It runs with this very package, whatever folder of that name it is started in.

    Args:
        program: what Python is to run: a script, or `-m` and a module.
        case: the program's one argument.

    Raises:
        RuntimeError: it failed; the message holds what it wrote to its standard error.
    """
    safe_path = ["-P"] if program[0] == "-m" else []  # a script's own folder stays: its neighbours are there
    command = [sys.executable, *safe_path, *program, json.dumps(case)]
    path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {case} failed:\n{done.stderr}")
    return json.loads(done.stdout)
