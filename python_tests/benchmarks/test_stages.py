"""The runner of the GPU check keeps everything, kills whole groups and prints little."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("stages")


@pytest.fixture
def runner(stages: ModuleType, tmp_path: Path) -> Any:
    before = signal.getsignal(signal.SIGTERM)
    yield stages.Runner(tmp_path / "work", tmp_path / "out", 60.0, {"SHARED": "yes"}, {"commit": "abc"})
    signal.signal(signal.SIGTERM, before)


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def logs(out: Path) -> dict[str, str]:
    with tarfile.open(out / "results.tar.gz") as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def is_killed(pid: int) -> bool:
    """Within a moment: a signal takes its time."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_keeps_log_files_and_outcome(stages: ModuleType, runner: Any, tmp_path: Path) -> None:
    program = (
        "import os, sys; print(os.environ['SHARED'], os.environ['OWN']); open(sys.argv[1], 'w').write('7')"
    )
    command = [*python(program), "{folder}/figures.json"]
    outcome = runner.run(stages.Stage("good", command, 30, expects=["yes too"], environment={"OWN": "too"}))
    assert outcome.status == stages.PASSED, outcome
    found = logs(tmp_path / "out")
    assert found["good/log.txt"] == "yes too\n"
    assert found["good/figures.json"] == "7"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["commit"] == "abc"
    assert [(stage["stage"], stage["status"]) for stage in summary["stages"]] == [("good", "passed")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.tar.gz", "summary.json"]


@pytest.mark.parametrize(
    ("program", "options", "status", "note"),
    [
        ("raise SystemExit(3)", {}, "FAILED", "exit status 3"),
        ("print('well')", {"expects": ["SUMMARY: 0 "]}, "FAILED", "the log lacks 'SUMMARY: 0 '"),
        ("raise SystemExit('no counters')", {"refusals": ["counters"]}, "refused", "no counters"),
        ("raise SystemExit('other')", {"refusals": ["counters"]}, "FAILED", "exit status 1"),
    ],
)
def test_says_how_a_stage_ended(
    program: str, options: dict[str, Any], status: str, note: str, stages: ModuleType, runner: Any
) -> None:
    outcome = runner.run(stages.Stage("stage", python(program), 30, **options))
    assert (outcome.status, outcome.note) == (status, note)
    assert runner.finish() == (status == "FAILED")


def test_a_tool_that_is_not_there_is_refused(stages: ModuleType, runner: Any) -> None:
    stage = stages.Stage("tool", ["/nowhere/ncu"], 30, refusals=["cannot be run"])
    outcome = runner.run(stage)
    assert outcome.status == stages.REFUSED
    assert outcome.note == "/nowhere/ncu cannot be run: No such file or directory"


def test_kills_all_processes_of_a_stage_at_its_limit(stages: ModuleType, runner: Any, tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    start = time.monotonic()
    outcome = runner.run(stages.Stage("slow", python(program), 2))
    assert time.monotonic() - start < 20
    assert (outcome.status, outcome.note) == (stages.FAILED, "killed at its limit")
    child = int(logs(tmp_path / "out")["slow/log.txt"].split()[0])
    assert is_killed(child)


def test_leaves_no_process_of_a_stage_that_ended(stages: ModuleType, runner: Any, tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    )
    assert runner.run(stages.Stage("careless", python(program), 30)).status == stages.PASSED
    assert is_killed(int(logs(tmp_path / "out")["careless/log.txt"]))


def test_no_stage_gets_more_than_the_time_that_is_left(stages: ModuleType, runner: Any) -> None:
    runner.end = time.monotonic() - 1
    outcome = runner.run(stages.Stage("late", python("print('ran')"), 30))
    assert (outcome.status, outcome.note) == (stages.FAILED, "no time left")


def test_saves_while_a_stage_runs(
    stages: ModuleType, runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "SECONDS_BETWEEN_SAVES", 0.2)
    archive = tmp_path / "out" / "results.tar.gz"
    # The stage waits until its own first line is in the archive.
    program = f"""
import os, tarfile, time
print("begun", flush=True)
while True:
    time.sleep(0.1)
    if os.path.exists({str(archive)!r}):
        with tarfile.open({str(archive)!r}) as tar:
            if tar.extractfile("long/log.txt").read() == b"begun\\n":
                break
"""
    assert runner.run(stages.Stage("long", python(program), 30)).status == stages.PASSED


def test_a_later_run_of_a_stage_replaces_its_files_and_others_stay(
    stages: ModuleType, runner: Any, tmp_path: Path
) -> None:
    write = "import sys; open(sys.argv[1], 'w').write('x')"
    runner.run(stages.Stage("first", [*python(write), "{folder}/old.json"], 30))
    runner.run(stages.Stage("second", python("print(2)"), 30))
    runner.run(stages.Stage("first", [*python(write), "{folder}/new.json"], 30))
    found = set(logs(tmp_path / "out"))
    assert {"first/new.json", "second/log.txt"} < found
    assert "first/old.json" not in found
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [stage["stage"] for stage in summary["stages"]] == ["second", "first"]


def test_prints_at_most_so_much_and_the_table_last(
    stages: ModuleType, runner: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(14):
        program = "for i in range(1000): print('a line', i)"
        runner.run(stages.Stage(f"stage_{number}", python(program), 30, shown=2_000))
    runner.finish()
    printed = capsys.readouterr().out
    assert len(printed) <= stages.MOST_PRINTED
    assert "a line 999" in printed
    table = printed.splitlines()[-14:]
    assert [entry.split()[-1] for entry in table] == [f"stage_{number}" for number in range(14)]


def test_of_a_huge_log_the_archive_has_both_ends(
    stages: ModuleType, runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "MOST_OF_A_FILE", 1000)
    program = "print('the cause'); print('x' * 5000); print('the end')"
    runner.run(stages.Stage("huge", python(program), 30, expects=["the cause", "the end"]))
    text = logs(tmp_path / "out")["huge/log.txt"]
    assert 1000 < len(text) < 1100
    assert text.startswith("the cause\n")
    assert text.endswith("the end\n")


def test_a_full_disk_ends_no_stage(
    stages: ModuleType, runner: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_space(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stages, "replace", no_space)
    for name in ("first", "second"):
        assert runner.run(stages.Stage(name, python("print('ran')"), 30)).status == stages.PASSED
    told = [line for line in capsys.readouterr().out.splitlines() if "could not be kept" in line]
    assert len(told) == 1
    assert "No space left on device" in told[0]


def test_an_outcome_that_was_cut_short_does_not_stop_a_later_run(
    stages: ModuleType, runner: Any, tmp_path: Path
) -> None:
    (tmp_path / "work" / "old").mkdir()
    (tmp_path / "work" / "old" / "outcome.json").write_text('{"stage": "ol')
    runner.run(stages.Stage("new", python("print('ran')"), 30))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [stage["stage"] for stage in summary["stages"]] == ["new"]


def test_a_stage_at_its_limit_may_tell_what_it_has_seen(
    stages: ModuleType, runner: Any, tmp_path: Path
) -> None:
    program = "import time\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('seen so far')"
    assert runner.run(stages.Stage("tests", python(program), 2)).note == "killed at its limit"
    assert logs(tmp_path / "out")["tests/log.txt"] == "seen so far\n"


def test_prints_no_control_characters(
    stages: ModuleType, runner: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; sys.stdout.buffer.write(b'\\x1b[31mred\\x00\\xff\\n')"
    runner.run(stages.Stage("binary", python(program), 30))
    printed = capsys.readouterr().out
    assert "red" in printed
    assert "\x1b" not in printed
    assert "\x00" not in printed


def test_a_runner_that_is_told_to_stop_takes_its_stage_with_it(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
from pathlib import Path
from stages import Runner, Stage
runner = Runner(Path({str(tmp_path)!r}) / "work", Path({str(tmp_path)!r}) / "out", 60.0, {{}}, {{}})
sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
runner.run(Stage("long", [sys.executable, "-c", sleep], 50))
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    log = tmp_path / "work" / "long" / "log.txt"
    while not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(20) == 143
    assert is_killed(int(log.read_text()))
