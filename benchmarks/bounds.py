"""What benchmarks with several sections share: required bounds, options, JSON output, exit status."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from report import machine, write
from timing import keep_freed_memory


@dataclass(frozen=True)
class Bound:
    """Something that a section must show; `fastest`: the same from the fastest repetitions, if timed."""

    what: str
    measured: float
    fastest: float | None
    relation: str  # "<=" or ">="
    bound: float

    def holds(self) -> bool:
        return self.measured <= self.bound if self.relation == "<=" else self.measured >= self.bound

    def line(self) -> str:
        verdict = "holds" if self.holds() else "FAILS"
        fastest = "" if self.fastest is None else f" (fastest {self.fastest:.3g})"
        return f"{verdict}  {self.what}: {self.measured:.3g}{fastest}, to be {self.relation} {self.bound:g}"


def at_most(what: str, values: list[float], bound: float, fastest: list[float] | None = None) -> Bound:
    return Bound(what, max(values), max(fastest) if fastest else None, "<=", bound)


def at_least(what: str, values: list[float], bound: float, fastest: list[float] | None = None) -> Bound:
    return Bound(what, min(values), min(fastest) if fastest else None, ">=", bound)


@dataclass(frozen=True)
class Section:
    """One section's figures, as they go into the JSON, and its bounds."""

    figures: Any
    bounds: list[Bound]


def run_sections(
    description: str,
    sections: dict[str, Callable[[int], Section]],
    devices: tuple[str, ...] = ("cpu",),
    parents: Sequence[argparse.ArgumentParser] = (),
) -> int:
    """Runs the sections that the command line asks for, each with the repetitions; the exit status.

    The device that it asks for becomes torch's default. Prints which bounds hold, and writes all figures
    where `--output` says; 1 if a bound does not hold, unless `--report-only`. `parents` hold a script's own
    options, which it reads by itself.
    """
    parser = argparse.ArgumentParser(description=description, parents=parents)
    parser.add_argument("--only", nargs="+", choices=sections, default=list(sections), metavar="SECTION")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=devices, default="cpu")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: nowhere")
    parser.add_argument("--report-only", action="store_true", help="exit with 0, whatever holds")
    options = parser.parse_args()

    keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    result = machine(options.device)
    bounds: list[Bound] = []
    for name in options.only:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        section = sections[name](options.repetitions)
        result[name] = section.figures
        bounds += section.bounds
        print(f"   {time.monotonic() - start:.0f} s")
    print("\n== bounds")
    print("\n".join(bound.line() for bound in bounds))
    result["bounds"] = [asdict(bound) for bound in bounds]
    result["load_average_at_end"] = machine(options.device)["load_average"]
    if options.output:
        write(options.output, result)
    return 0 if options.report_only or all(bound.holds() for bound in bounds) else 1
