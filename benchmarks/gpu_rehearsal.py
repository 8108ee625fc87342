"""Rehearses gpu_check.py on a CPU: the same stages, files and limits with tiny sizes.

    python benchmarks/gpu_rehearsal.py        (or: make gpu-rehearsal)

Three runs: one that is killed in the middle of a stage, after which the archive must be complete; then both
calls. Compute-sanitizer and Nsight Compute are replaced by programs that find the planted error, pass
memcheck, fail racecheck and refuse to profile; each of these must be reported as such. The exit status is 1
if anything is not as it must be.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from source_tree import ROOT
from stages import FAILED, MOST_PRINTED, PASSED, REFUSED

WORK = ROOT / "build" / "gpu-rehearsal"
ARCHIVE = WORK / "results.tar.gz"
MOST_BYTES = 16 << 20  # of a file that comes back from a lent machine

SANITIZER = """#!{python}
import subprocess, sys
tool = sys.argv[sys.argv.index("--tool") + 1]
if "--out-of-bounds" in sys.argv:
    print("========= Invalid __global__ read of size 16 bytes\\n=========     at short_conv_forward")
    sys.exit(0)
program = sys.argv[sys.argv.index({python!r}):]
status = subprocess.run(program).returncode
errors = 1 if tool == "racecheck" else 0
print(f"========= {{tool.upper()}} SUMMARY: {{errors}} errors")
sys.exit(status or errors)
"""
NCU = """#!{python}
print("==ERROR== ERR_NVGPUCTRPERM - The user may not read the GPU's performance counters")
raise SystemExit(1)
"""
FIRST = {name: PASSED for name in ("import", "operators", "long_convolution", "profile", "tests")}
SECOND = {
    "planted_error": PASSED,
    "memcheck": PASSED,
    "racecheck": FAILED,
    "linear_cross_entropy": PASSED,
    "dropout_add_layer_norm": PASSED,
    "bench_train": PASSED,
    "ncu": REFUSED,
}


def environment() -> dict[str, str]:
    """With the stand-ins in front of PATH, and results below WORK."""
    folder = WORK / "stand-ins"
    folder.mkdir(parents=True)
    for name, text in (("compute-sanitizer", SANITIZER), ("ncu", NCU)):
        path = folder / name
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)
    variables = dict(os.environ, PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
    variables.pop("OUT", None)
    return variables


def command(call: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), call, "--rehearse"]


def statuses() -> dict[str, str]:
    """How each stage ended, as summary.json tells."""
    path = WORK / "summary.json"
    stages = json.loads(path.read_text())["stages"] if path.exists() else []
    return {stage["stage"]: stage["status"] for stage in stages}


def members() -> dict[str, int]:
    """Files of the archive and their sizes, each read to its end."""
    with tarfile.open(ARCHIVE) as tar:
        return {member.name: len(tar.extractfile(member).read()) for member in tar}  # type: ignore[union-attr]


def kill_in_the_middle(variables: dict[str, str]) -> list[str]:
    """Kills the check and its stage when the first stages have ended; what is wrong with what it left."""
    with (WORK / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command("first"), stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True
        )
    while len(statuses()) < 2 and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1.0)  # now it is in the third stage
    ended = process.poll()
    kill_session(process.pid)
    process.wait()
    if ended is not None:
        return [f"the run that was to be killed ended by itself, with {ended}"]
    found, done = members(), statuses()
    print(f"killed in stage {len(done) + 1}; the archive has {len(found)} files of {', '.join(done)}")
    return [f"the archive lacks {name}/log.txt" for name in done if f"{name}/log.txt" not in found]


def kill_session(leader: int) -> None:
    """Kills all processes of a session at once, as a machine does that is taken away."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except (OSError, IndexError):  # it is gone
            continue


def run(call: str, expected: dict[str, str], variables: dict[str, str]) -> list[str]:
    """Runs a call to its end; what is not as it must be."""
    print(f"== {call} call", flush=True)
    done = subprocess.run(command(call), env=variables, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    problems = []
    if len(done.stdout) > MOST_PRINTED:
        problems.append(f"printed {len(done.stdout)} characters, at most {MOST_PRINTED} are allowed")
    if done.returncode != (FAILED in expected.values()):
        problems.append(f"exit status {done.returncode}")
    found = statuses()
    for stage, status in expected.items():
        if found.get(stage) != status:
            problems.append(f"{stage} must have {status}, got {found.get(stage)}")
    return problems


def archive_problems() -> list[str]:
    """What is wrong with the archive after both calls; prints what is in it."""
    found = members()
    print(f"== {ARCHIVE.relative_to(ROOT)}, {ARCHIVE.stat().st_size:,} bytes")
    print("\n".join(f"{size:9,}  {name}" for name, size in found.items()))
    problems = [
        f"the archive lacks {name}/log.txt" for name in FIRST | SECOND if f"{name}/log.txt" not in found
    ]
    if ARCHIVE.stat().st_size > MOST_BYTES:
        problems.append(f"the archive must have at most {MOST_BYTES:,} bytes")
    return problems


def main() -> int:
    start = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    variables = environment()
    problems = kill_in_the_middle(variables)
    problems += run("first", FIRST, variables)
    problems += run("second", SECOND, variables)
    problems += archive_problems()
    print("\n".join(f"gpu rehearsal: {problem}" for problem in problems))
    print(f"gpu rehearsal {'FAILED' if problems else 'passed'} in {time.monotonic() - start:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
