"""Everything that a quarter of an hour on a GPU can prove, in two calls of less than ten minutes each.

    python benchmarks/gpu_check.py first        (or: make gpu-check)
    python benchmarks/gpu_check.py second       (or: make gpu-check-2)

first: the build and the GPU; every operator against its oracle; the speed of the long convolution; where its
time goes; the Python tests on the GPU. second: whether compute-sanitizer finds a planted error, then memcheck
and racecheck; the speed of loss, norm and whole training steps; Nsight Compute on the scan's sweeps. The most
valuable stages come first; each has a time limit, and none stops the next.

Uses this Python's torch and no network. The package is the one that `make gpu-package` made; only if there is
none that fits, the operators are compiled here, on all cores and with all the time there is. Results go to
$OUT, by default build/gpu-check: `results.tar.gz` holds the logs and figures of all stages of both calls,
`summary.json` how the stages ended. If this machine refuses a tool, that is a result, too. The exit status is
1 if a stage failed.

`make gpu-rehearsal` runs the same on a CPU, with tiny sizes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from source_tree import PACKAGE, ROOT, commit, digest, package_facts
from stages import FAILED, Runner, Stage

sys.path.insert(0, str(ROOT / "build_backend"))
from hyenarec_environment import find_torch, torch_version

NO_GPU = 3  # exit status of scripts/check_cuda_build.py

SECONDS = 570.0  # of a call
WORK = ROOT / "build" / "gpu-check"

# Every test that does more on a GPU than without one.
GPU_TESTS = (
    "python_tests/ops",
    "python_tests/models/test_hyenarec.py",
    "python_tests/models/test_baselines.py",
    "python_tests/models/test_counting.py",
    "python_tests/evaluation/test_evaluate.py",
    "python_tests/models/test_stream.py",
    "python_tests/test_transfer.py",
    "python_tests/data/test_batches.py",
    "python_tests/train/test_train.py",
    "python_tests/train/test_waits.py",
)
SANITIZER_REFUSALS = ("Device not supported", "cannot be run")
NCU_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy", "WarpStateStats")
NCU_REFUSALS = ("ERR_NVGPUCTRPERM", "Failed to initialize the profiler", "LibraryNotLoaded", "cannot be run")


def script(name: str, *options: str, device: str, folder: str = "benchmarks") -> list[str]:
    """A script's command; its JSON, if it writes one, goes into its stage's folder."""
    return [sys.executable, str(ROOT / folder / f"{name}.py"), "--device", device, *options]


def output(name: str = "figures") -> list[str]:
    return ["--output", f"{{folder}}/{name}.json"]


def first_call(device: str, tiny: list[str]) -> Iterator[Stage]:
    """Is it right, how fast is it."""
    yield Stage("import", script("check_cuda_build", *output(), device=device, folder="scripts"), 40)
    yield Stage("operators", script("gpu_operators", *output(), device=device), 60)
    once = ["--repetitions", "1"] if tiny else []
    long_convolution = script("long_convolution", *tiny, *once, *output(), device=device)
    yield Stage("long_convolution", long_convolution, 100, shown=2_600)
    yield Stage("profile", script("gpu_profile", *tiny, *output(), device=device), 40, shown=2_000)
    yield tests(device)


def second_call(device: str, tiny: list[str]) -> Iterator[Stage]:
    """Does it touch memory that isn't its own, how fast is the rest, what holds it up."""
    yield from sanitizers(device)
    yield from losses_and_norms(device)
    yield Stage("bench_train", script("gpu_bench_train", *tiny, *output(), device=device), 90, shown=2_000)
    yield hardware_counters(device, tiny)


def tests(device: str) -> Stage:
    """pytest on the GPU; on a CPU the tests of one operator, while all others are imported at least."""
    # -P: the package, not the source tree's folder of the same name.
    pytest = [sys.executable, "-P", "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb", "short"]
    chosen = ["-n", "8", "-k", "cuda or gpu"] if device == "cuda" else ["-n", "2", "-k", "test_short_conv"]
    # A test that hangs in a kernel can only be ended with its worker, which pytest-xdist replaces.
    patience = ["--timeout", "60", "--timeout-method", "thread"]
    # Eight workers share the cores.
    threads = {"OMP_NUM_THREADS": "2", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [*pytest, *patience, *chosen, *GPU_TESTS]
    return Stage("tests", command, 150, expects=[" passed"], environment=threads)


def sanitizers(device: str) -> Iterator[Stage]:
    """compute-sanitizer: "no errors" means something only if it finds an error that is there."""
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"

    def stage(name: str, tool: str, options: list[str], program: list[str], limit: float, *log: str) -> Stage:
        # Our own kernels only, in whichever process they run; and without torch's cache of memory, so that it
        # is known where each tensor ends.
        watched = [sanitizer, "--target-processes", "all", "--kernel-name", "kns=hyenarec", "--tool", tool]
        no_cache = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return Stage(name, [*watched, *options, *program], limit, log, SANITIZER_REFUSALS, no_cache)

    planted = script("small_cases", "--out-of-bounds", device="cuda")
    yield stage("planted_error", "memcheck", [], planted, 45, "Invalid __global__ read", "short_conv_forward")
    cases = script("small_cases", "--channels", "40", "--coefficients", "17", "40", device=device)
    fail = ["--error-exitcode", "1"]
    # By itself memcheck ends everything at the first error, and counts what libraries try out at their start.
    go_on = ["--destroy-on-device-error", "kernel", "--report-api-errors", "no"]
    clean = ("every kernel has run", "SUMMARY: 0 ")
    both = [*cases, "--dtypes", "float32", "bfloat16"]
    yield stage("memcheck", "memcheck", [*fail, *go_on], both, 90, *clean)
    # Shared memory holds float32 whatever the activations are, so racecheck needs one dtype.
    yield stage("racecheck", "racecheck", fail, [*cases, "--dtypes", "float32"], 90, *clean)


def losses_and_norms(device: str) -> Iterator[Stage]:
    """The speed of the operators beside the scan; on a CPU only that the scripts run."""
    on_gpu = device == "cuda"
    options = ["--repetitions", "5"] if on_gpu else ["--repetitions", "1", "--report-only"]
    for name, sections in (
        ("linear_cross_entropy", ["speed", "memory"] if on_gpu else ["accuracy"]),
        ("dropout_add_layer_norm", ["float32", "mixed"] if on_gpu else ["mixed"]),
    ):
        yield Stage(name, script(name, *options, "--only", *sections, *output(), device=device), 45)


def hardware_counters(device: str, tiny: list[str]) -> Stage:
    """Nsight Compute on the hottest kernels: the sweep forward, the one that saves states, the one back."""
    ncu = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    sections = [word for name in NCU_SECTIONS for word in ("--section", name)]
    kernels = ["--kernel-name", "regex:legendre_scan_(forward|backward)", "--clock-control", "none"]
    command = [ncu, *kernels, *sections, *script("gpu_profile", "--once", *tiny, device=device)]
    return Stage("ncu", command, 60, ["legendre_scan_backward"], NCU_REFUSALS, shown=2_000)


CALLS = {"first": first_call, "second": second_call}


def package_problem() -> str:
    """Why the package cannot be used with this Python's torch, or ""."""
    if not (PACKAGE / "hyenarec" / "lib" / "libhyenarec_ops.so").exists():
        return "there is no package"
    torch, facts = find_torch(), package_facts()
    if torch is not None and "torch" in facts:
        own, packaged = (version.split(".")[:2] for version in (torch_version(torch), facts["torch"]))
        if own != packaged:
            return f"the package is for torch {facts['torch']}, this is torch {torch_version(torch)}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the CUDA operators; see this file's head.")
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of them together")
    options = parser.parse_args()
    work = ROOT / "build" / "gpu-rehearsal" if options.rehearse else WORK
    stages = list(CALLS[options.call](*(("cpu", ["--tiny"]) if options.rehearse else ("cuda", []))))
    names = [stage.name for stage in stages]
    unknown = set(options.only or ()) - set(names)
    if unknown:
        parser.error(f"--only must name stages of this call, {', '.join(names)}, got {', '.join(unknown)}")

    path = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    out, facts = (
        Path(os.environ.get("OUT") or work).resolve(),
        {"commit": commit(), "package": package_facts()},
    )
    try:
        runner = Runner(work / "stages", out, options.seconds, environment, facts)
    except OSError as error:
        parser.error(f"results need folders that can be written, got {error}")
    problem = package_problem()
    if problem:
        runner.say(f"== {problem}: it is compiled here, where every second costs")
        build = [sys.executable, str(ROOT / "scripts" / "gpu_package.py")]
        if runner.run(Stage("build", build, options.seconds)).status == FAILED:
            return runner.finish()
    elif package_facts().get("sources") != digest():
        runner.say(
            "== the package was made from other sources than these: `make gpu-package` makes a new one"
        )
    for stage in stages:
        if options.only and stage.name not in options.only:
            continue
        outcome = runner.run(stage)
        if stage.name == "import" and outcome.note == f"exit status {NO_GPU}":
            runner.say("== torch sees no GPU on this machine: nothing else can be checked")
            break
    return runner.finish()


if __name__ == "__main__":
    sys.exit(main())
