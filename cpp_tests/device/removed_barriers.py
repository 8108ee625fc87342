"""Runs the device tests once for every barrier of the kernels, without it: ThreadSanitizer must notice.

    python removed_barriers.py <the device tests, built with ThreadSanitizer>

Exit status 1 if a barrier's absence goes unnoticed: the tests miss it, or it isn't needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

OPS = Path(__file__).resolve().parents[2] / "csrc" / "ops"


def barriers() -> list[tuple[Path, int]]:
    """(file below csrc/ops, line) of every barrier."""
    return [
        (path.relative_to(OPS), number)
        for path in sorted(OPS.rglob("*.cuh"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if "__syncthreads()" in line.partition("//")[0]
    ]


def suite_of(path: Path) -> str:
    """The tests of a file: those of legendre_scan/cuda/backward.cuh are named LegendreScanBackwardDevice."""
    parts = [part for part in path.with_suffix("").parts if part not in ("common", "cuda")]
    return "".join(word.capitalize() for part in parts for word in part.split("_")) + "Device"


def is_noticed(program: str, path: Path, line: int) -> bool:
    environment = os.environ | {
        "CUDA_ON_CPU_REMOVED_BARRIER": f"{path}:{line}",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    command = [program, f"--gtest_filter=*{suite_of(path)}.*"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.returncode != 0 and "ThreadSanitizer: data race" in result.stderr


def main() -> int:
    missed = []
    for path, line in barriers():
        noticed = is_noticed(sys.argv[1], path, line)
        print(f"{path}:{line} {'noticed' if noticed else 'NOT NOTICED'}", flush=True)
        if not noticed:
            missed.append((path, line))
    return 1 if missed or not barriers() else 0


if __name__ == "__main__":
    sys.exit(main())
