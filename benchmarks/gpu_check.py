"""Checks the CUDA operators on a GPU machine, with its own torch and without network, within ten minutes.

    python benchmarks/gpu_check.py [--only timings]      (or: make gpu-check)

Builds the package into build/gpu-check, runs the Python tests of the operators on the GPU,
compute-sanitizer's memcheck and racecheck over a small case of every kernel, the timings of ops.py,
long_convolution.py, linear_cross_entropy.py, dropout_add_layer_norm.py and of every model's training step in
bfloat16, and the C++ tests where GoogleTest is there. Logs, timings and `summary.json` go to $OUT, else to
build/gpu-check, too.
A step that fails does not stop the others; the exit status is 1 if any failed. Compiling the Legendre scan
may take most of the ten minutes: started again, the build goes on where it stopped, and `--only` names what
is still to be done behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "gpu-check"  # build trees and the installed package: large, and of no use elsewhere
SETUPTOOLS = 77  # pyproject.toml: without build isolation, pip takes the machine's
BUDGET = 590.0  # seconds for everything
BUILD_LIMIT = 480  # what is compiled by then is kept for the next run
PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass(frozen=True)
class Result:
    """How a step ended; `note` says why where that is not plain."""

    step: str
    status: str
    seconds: float
    note: str = ""


class Check:
    """Runs steps one after another within the budget and remembers how they ended."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.site = WORK / "site"  # for the package: the machine's own packages stay as they are
        self.started = time.monotonic()
        self.results: list[Result] = []
        out.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        step: str,
        command: list[str],
        limit: float,
        examine: Callable[[str], str] = lambda log: "",
        **environment: str,
    ) -> bool:
        """Runs a command, its output in <step>.log; False if it fails or takes over `limit` seconds.

        `examine` looks at the log of a command that succeeded and returns what is wrong with it, or "".
        """
        start = time.monotonic()
        limit = min(limit, BUDGET - (start - self.started))
        if limit <= 0:
            return self.record(Result(step, FAILED, 0, "no time left"))
        print(f"== {step}: {' '.join(command)}", flush=True)
        variables = os.environ | {"PYTHONPATH": str(self.site), "PYTHONUNBUFFERED": "1"} | environment
        log = self.out / f"{step}.log"
        with log.open("w") as file:
            run = partial(subprocess.run, command, cwd=ROOT, env=variables)
            try:
                run(stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=True)
                problem = examine(log.read_text(errors="replace"))
            except (OSError, subprocess.SubprocessError) as error:
                problem = str(error)
        seconds = time.monotonic() - start
        if not problem:
            return self.record(Result(step, PASSED, seconds))
        print("\n".join(log.read_text(errors="replace").splitlines()[-40:]))
        return self.record(Result(step, FAILED, seconds, problem))

    def skip(self, step: str, why: str) -> None:
        self.record(Result(step, SKIPPED, 0, why))

    def record(self, result: Result) -> bool:
        self.results.append(result)
        print(f"   {result.status} in {result.seconds:.0f} s {result.note}", flush=True)
        return result.status == PASSED

    def finish(self) -> int:
        """Writes and prints the summary; the exit status."""
        summary = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch": torch.__version__,
            "steps": [asdict(result) for result in self.results],
        }
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print("\n== summary")
        for result in self.results:
            print(f"{result.status:8} {result.seconds:6.0f} s  {result.step}  {result.note}")
        return 1 if any(result.status == FAILED for result in self.results) else 0


def build(check: Check) -> bool:
    """The package with CUDA for this machine's GPU, in check.site."""
    try:
        setuptools = version("setuptools")
    except PackageNotFoundError:
        setuptools = "0"
    if int(setuptools.split(".")[0]) < SETUPTOOLS:
        found = f"found {setuptools}" if setuptools != "0" else "found none"
        return check.record(
            Result("build", FAILED, 0, f"needs setuptools >= {SETUPTOOLS} beside {sys.executable}, {found}")
        )
    shutil.rmtree(check.site, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    return check.run("build", [*command, "--target", str(check.site), "."], BUILD_LIMIT, HYENAREC_CUDA="1")


# Every test that does more on a GPU than without one.
CUDA_TESTS = [
    "python_tests/ops",
    "python_tests/test_model.py",
    "python_tests/test_baselines.py",
    "python_tests/test_evaluate.py",
    "python_tests/test_stream.py",
    "python_tests/data/test_batches.py",
    "python_tests/training/test_train.py",
]


def python_tests(check: Check) -> None:
    # -P: the installed package, not the source tree's folder of the same name.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *CUDA_TESTS]
    check.run("python_tests", command, 240)


def has_googletest() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(probe CXX)\nfind_package(GTest REQUIRED)\n"
        )
        command = ["cmake", "-S", folder, "-B", f"{folder}/build"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def cpp_tests(check: Check) -> None:
    if not has_googletest():
        check.skip("cpp_tests", "GoogleTest is not installed")
        return
    tree = str(WORK / "cmake")
    torch_folder = str(Path(torch.__file__).parent)
    configure = ["cmake", "-S", ".", "-B", tree, f"-DHYENAREC_LIBTORCH={torch_folder}", "-DHYENAREC_TESTS=ON"]
    python = f"-DPython_EXECUTABLE={sys.executable}"
    build_tests = ["cmake", "--build", tree, "--parallel", "--target", "cpp_tests"]
    if not check.run("cpp_configure", [*configure, python], 60, HYENAREC_CUDA="1"):
        return
    if check.run("cpp_build", build_tests, 240):
        check.run("cpp_tests", ["ctest", "--test-dir", tree, "--output-on-failure"], 180)


def lacks(*texts: str) -> Callable[[str], str]:
    """Says of a log which of these texts are not in it."""
    return lambda log: "".join(f"the log lacks '{text}'. " for text in texts if text not in log).strip()


def sanitizers(check: Check) -> None:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    # Our own kernels only, in whichever process they run; and without torch's cache, so that memcheck knows
    # where each tensor ends.
    options = ["--target-processes", "all", "--kernel-name", "kns=hyenarec"]
    no_cache = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    program = [sys.executable, "-P", "benchmarks/small_cases.py"]
    # "No errors" means something only if these options find an error that is there.
    planted = [sanitizer, "--tool", "memcheck", *options, *program, "--out-of-bounds"]
    check.run(
        "planted_error", planted, 60, lacks("Invalid __global__ read", "short_conv_forward"), **no_cache
    )
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", *options, *program]
        check.run(tool, command, 120, lacks("every kernel has run", "SUMMARY: 0 "), **no_cache)
    check.run("cut_batches", program, 60, HYENAREC_FFT_WORKSPACE_MIB="0")


def timings(check: Check) -> None:
    for step, script, options in (
        ("timings", "ops", ["--device", "cuda"]),
        ("long_convolution", "long_convolution", []),
        ("linear_cross_entropy", "linear_cross_entropy", ["--device", "cuda"]),
        ("dropout_add_layer_norm", "dropout_add_layer_norm", ["--device", "cuda"]),
    ):
        # Without -P: a benchmark imports its neighbours, and there is no hyenarec among them.
        command = [sys.executable, f"benchmarks/{script}.py", *options]
        check.run(step, [*command, "--output", str(check.out / f"{script}.json")], 180)
        show(check, step)
    program = (
        "import sys; from hyenarec.bench import bench_train; from hyenarec.config import BenchConfig; "
        "bench_train(BenchConfig(precision='bf16', output=sys.argv[1]))"
    )
    output = str(check.out / "bench_train.json")
    check.run("bench_train", [sys.executable, "-P", "-c", program, output], 180)
    show(check, "bench_train")


def show(check: Check, step: str) -> None:
    log = check.out / f"{step}.log"
    if log.exists():
        print(log.read_text(errors="replace"))


STEPS = {  # cpp_tests come last: they compile everything once more
    "python_tests": python_tests,
    "sanitizers": sanitizers,
    "timings": timings,
    "cpp_tests": cpp_tests,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the CUDA operators; see this file's head.")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    options = parser.parse_args()
    check = Check(Path(os.environ.get("OUT") or ROOT / "build" / "gpu-check").resolve())
    if not torch.cuda.is_available():
        check.record(Result("gpu", FAILED, 0, "torch sees no GPU on this machine"))
        return check.finish()
    if build(check):
        for step in options.only:
            STEPS[step](check)
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
