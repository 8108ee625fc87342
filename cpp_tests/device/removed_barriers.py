"""Runs the device tests once for every barrier of the kernels, without it: ThreadSanitizer must notice.

    python removed_barriers.py <the device tests, built with ThreadSanitizer>

Exit status 1 if a barrier's absence goes unnoticed: the tests miss it, or it isn't needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "csrc" / "ops" / "cuda"


def barriers() -> list[tuple[str, int]]:
    """(file's stem, line) of every barrier."""
    return [
        (path.stem, number)
        for path in sorted(KERNELS.glob("*.cuh"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if "__syncthreads()" in line.partition("//")[0]
    ]


def is_noticed(program: str, op: str, line: int) -> bool:
    suite = "".join(word.capitalize() for word in op.split("_")) + "Device"
    environment = os.environ | {
        "CUDA_ON_CPU_REMOVED_BARRIER": f"{op}.cuh:{line}",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    command = [program, f"--gtest_filter=*{suite}.*"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.returncode != 0 and "ThreadSanitizer: data race" in result.stderr


def main() -> int:
    missed = []
    for op, line in barriers():
        noticed = is_noticed(sys.argv[1], op, line)
        print(f"{op}.cuh:{line} {'noticed' if noticed else 'NOT NOTICED'}", flush=True)
        if not noticed:
            missed.append((op, line))
    return 1 if missed or not barriers() else 0


if __name__ == "__main__":
    sys.exit(main())
