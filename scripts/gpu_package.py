"""Compiles the package for a GPU machine, which need not have a compiler, and without a GPU.

    python scripts/gpu_package.py [--output build/gpu-package]

Against the torch beside this Python, for compute capability 9.0 unless TORCH_CUDA_ARCH_LIST says
otherwise. The output is a folder for PYTHONPATH: `hyenarec/`, with the operators in its `lib/` and no
Python in them, so that any Python that torch runs with can import it; and `package.json`, which says what
it was made from. MAX_JOBS limits the parallel compilers, CMAKE_ARGS is passed on to CMake. A folder that
is there is replaced once the new one is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "build_backend"), str(ROOT / "benchmarks")]

from hyenarec_environment import build_folder, find_torch, torch_version  # noqa: E402
from source_tree import commit, digest  # noqa: E402

MOST_MEBIBYTES = 48  # together: what a GPU machine takes in one go
LIBRARY = Path("lib") / "libhyenarec_ops.so"


def build(torch: Path, prefix: Path) -> Path:
    """Compiles and installs the C++ library below `prefix`; returns it."""
    tree = ROOT / build_folder() / "gpu-package"
    definitions = {
        "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
        "HYENAREC_LIBTORCH": torch,
        "HYENAREC_CUDA": 1,
        "HYENAREC_ABSOLUTE_RPATH": "OFF",  # the folder goes to another machine
        "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST") or "9.0",
        "Python_EXECUTABLE": sys.executable,
    }
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    cmake = find_tool("cmake")
    for command in (
        [cmake, "-S", ROOT, "-B", tree, "-G", "Ninja", *options],
        [cmake, "--build", tree, "--parallel", jobs],
        [cmake, "--install", tree, "--prefix", prefix, "--strip"],
    ):
        status = subprocess.run([str(word) for word in command], check=False).returncode
        if status != 0:
            raise SystemExit(f"gpu_package: cmake failed (status {status}), see its message above.")
    return prefix / LIBRARY


def find_tool(name: str) -> str:
    """A program beside this Python, else in PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise SystemExit(f"gpu_package needs {name}, and found none: pip install '{name}'.")
    return found


def lay_out(library: Path, output: Path, torch: Path) -> int:
    """The folder with the library and the Python package; returns its size in bytes."""
    package = output / "hyenarec"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "include", "lib")
    shutil.copytree(ROOT / "hyenarec", package, ignore=ignored)
    (package / LIBRARY).parent.mkdir()
    shutil.copy(library, package / LIBRARY)
    facts = {"commit": commit(), "sources": digest(), "torch": torch_version(torch)}
    (output / "package.json").write_text(json.dumps(facts, indent=1) + "\n")
    return sum(file.stat().st_size for file in output.rglob("*") if file.is_file())


def main() -> int:
    """Builds and lays out; 1 if the folder is too large."""
    parser = argparse.ArgumentParser(description="Compiles the package for a GPU machine.")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu-package")
    output = parser.parse_args().output.resolve()
    torch = find_torch()
    if torch is None:
        raise SystemExit(f"gpu_package compiles against torch, and found none beside {sys.executable}.")
    start = time.monotonic()
    unfinished = output.with_name(output.name + ".unfinished")
    for folder in (unfinished, staging := output.with_name(output.name + ".staging")):
        shutil.rmtree(folder, ignore_errors=True)
    size = lay_out(build(torch, staging), unfinished, torch)
    shutil.rmtree(staging)
    shutil.rmtree(output, ignore_errors=True)
    unfinished.rename(output)
    print(f"{output}: {size / 2**20:.1f} MiB in {time.monotonic() - start:.0f} s")
    if size > MOST_MEBIBYTES * 2**20:
        print(f"gpu_package: the folder must have at most {MOST_MEBIBYTES} MiB")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
