"""Runs stages one after another and keeps everything they leave: for a machine that may vanish at any time.

A stage is a command with a time limit, run in the project's folder, in a process group that is killed as a
whole. Its folder `<work>/<name>/` holds its log, how it ended and the files that it writes. After every
stage, and every few seconds during one, the output folder gets `results.tar.gz`, the folders of all stages,
and `summary.json`, how they ended; each file is replaced as a whole.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from source_tree import ROOT

PASSED, FAILED, REFUSED = "passed", "FAILED", "refused"
SECONDS_BETWEEN_SAVES = 10.0
MOST_PRINTED = 10_000  # characters, of everything: what of a long output comes back from a lent machine
MOST_OF_A_FILE = 2 << 20  # bytes in the archive, which may have 16 MiB packed
SECONDS_TO_END = 5.0  # for a stage at its limit: pytest, for one, tells then what it has seen


@dataclass(frozen=True)
class Stage:
    """What to run.

    Attributes:
        name: of the stage and its folder.
        command: its words; "{folder}" in them becomes the stage's folder.
        limit: seconds.
        expects: texts that the log of a run that went well holds.
        refusals: texts in the log by which a tool says that it cannot work on this machine. That is a result.
        environment: variables beside those of the runner.
        shown: most characters of its log's end that are printed.
    """

    name: str
    command: Sequence[str]
    limit: float
    expects: Sequence[str] = ()
    refusals: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    shown: int = 900


@dataclass(frozen=True)
class Outcome:
    """How a stage ended; `note` says why where that is not plain."""

    stage: str
    status: str
    seconds: float
    note: str
    limit: float
    date: str


class Runner:
    """Runs stages within a budget of seconds."""

    def __init__(
        self, work: Path, out: Path, budget: float, environment: Mapping[str, str], facts: dict[str, Any]
    ) -> None:
        """Take the stages' folder, the output folder, the variables of all stages, facts for the summary."""
        self.work, self.out, self.environment, self.facts = work, out, environment, facts
        self.end = time.monotonic() + budget
        self.left_to_print = MOST_PRINTED
        self.ran: list[Outcome] = []
        self.problems: set[str] = set()  # with keeping results
        for folder in (work, out):
            folder.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: exit(143))  # so that a stage never outlives this process

    def run(self, stage: Stage) -> Outcome:
        """Runs one stage to its end or its limit, keeps what it left, prints a little of it."""
        folder = self.work / stage.name
        empty(folder)
        start = time.monotonic()
        limit = min(stage.limit, self.end - start)
        log = folder / "log.txt"
        problem = self._run_command(stage, folder, log, start + limit) if limit > 0 else "no time left"
        text = both_ends(log).decode(errors="replace") if log.exists() else ""
        status, note = judge(stage, problem, text)
        outcome = Outcome(
            stage.name, status, round(time.monotonic() - start, 1), note, round(limit, 1), now()
        )
        self.ran.append(outcome)
        self.save(outcome)
        self.say(f"== {line(outcome)}")
        self.say(ending(text, stage.shown))
        return outcome

    def _run_command(self, stage: Stage, folder: Path, log: Path, end: float) -> str:
        """What went wrong, or ""."""
        command = [word.replace("{folder}", str(folder)) for word in stage.command]
        variables = {**os.environ, **self.environment, **stage.environment}
        with log.open("w") as file:
            try:
                process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=variables,
                    process_group=0,
                )
            except OSError as error:
                return f"{command[0]} cannot be run: {error.strerror}"
            try:
                while process.poll() is None:
                    if time.monotonic() >= end:
                        os.killpg(process.pid, signal.SIGINT)
                        with suppress(subprocess.TimeoutExpired):
                            process.wait(SECONDS_TO_END)
                        return "killed at its limit"
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(min(SECONDS_BETWEEN_SAVES, max(end - time.monotonic(), 0.01)))
                        break
                    self.save()
                return "" if process.returncode == 0 else f"exit status {process.returncode}"
            finally:
                with suppress(ProcessLookupError):  # whatever it started and left behind
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):  # a driver may hold it for ever
                    process.wait(SECONDS_TO_END)

    def save(self, outcome: Outcome | None = None) -> None:
        """Keeps a stage's outcome and replaces summary and archive; a full disk ends no stage."""
        try:
            if outcome is not None:
                replace(self.work / outcome.stage / "outcome.json", in_json(asdict(outcome)))
            replace(self.out / "summary.json", in_json(self.facts | {"stages": outcomes(self.work)}))
            replace(self.out / "results.tar.gz", archive(self.work))
        except OSError as error:
            if str(error) not in self.problems:
                self.problems.add(str(error))
                self.say(f"== results could not be kept: {error}")

    def say(self, text: str, reserve: int = 1_500) -> None:
        """Prints a text, or its end, within what may still be printed; the reserve is for the last table."""
        text = ending(text, max(self.left_to_print - reserve, 0))
        if text:
            print(text, flush=True)
            self.left_to_print -= len(text) + 1

    def finish(self) -> int:
        """Prints how all stages ended; the exit status, 1 if one failed."""
        table = "\n".join(line(outcome) for outcome in self.ran)
        self.say(f"== all stages; {self.out}/results.tar.gz has their logs and figures\n{table}", reserve=0)
        return 1 if any(outcome.status == FAILED for outcome in self.ran) else 0


def judge(stage: Stage, problem: str, text: str) -> tuple[str, str]:
    """Status and note of a stage, from what went wrong with its command and from its log."""
    for refusal in stage.refusals:
        found = next((written for written in text.splitlines() if refusal in written), None)
        if found is not None:
            return REFUSED, found.strip()[:200]
        if refusal in problem:
            return REFUSED, problem
    missing = [expected for expected in stage.expects if expected not in text]
    if not problem and missing:
        problem = f"the log lacks '{missing[0]}'"
    return (FAILED, problem) if problem else (PASSED, "")


def outcomes(work: Path) -> list[dict[str, Any]]:
    """How the stages ended whose folders are there, in the order in which they ended."""
    found = []
    for path in work.glob("*/outcome.json"):
        with suppress(ValueError):  # cut short by a full disk
            found.append(json.loads(path.read_text()))
    return sorted(found, key=lambda outcome: str(outcome["date"]))


def archive(work: Path) -> bytes:
    """All files below a folder, packed; of those that are too large, both ends."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path in sorted(path for path in work.rglob("*") if path.is_file()):
            with suppress(FileNotFoundError):  # a stage is writing: an unfinished file has got its name
                content = both_ends(path)
                member = tarfile.TarInfo(str(path.relative_to(work)))
                member.size, member.mtime = len(content), int(path.stat().st_mtime)
                tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def both_ends(path: Path) -> bytes:
    """A file; of one that is too large the beginning, where causes stand, and the end."""
    with path.open("rb") as file:
        if path.stat().st_size <= MOST_OF_A_FILE:
            return file.read()
        begin = file.read(MOST_OF_A_FILE // 2)
        file.seek(-MOST_OF_A_FILE // 2, os.SEEK_END)
        return begin + b"\n... cut ...\n" + file.read()


def replace(path: Path, content: bytes) -> None:
    """Writes a file whole: whoever is killed leaves the one before."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def empty(folder: Path) -> None:
    """Makes a folder, without the files of an earlier run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def ending(text: str, most: int) -> str:
    """The last lines of a text, of at most so many characters, and no others than a terminal prints."""
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text.rstrip())
    if len(text) <= most:
        return text
    cut = text[len(text) - most :] if most > 0 else ""
    return cut.partition("\n")[2] or cut


def in_json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def line(outcome: Outcome) -> str:
    return f"{outcome.status:8} {outcome.seconds:6.1f} s  {outcome.stage}  {outcome.note}".rstrip()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
