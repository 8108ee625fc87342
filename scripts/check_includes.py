"""Fails if an include in csrc/ runs back up, goes in a circle, or brings torch where a file promises none.

    python scripts/check_includes.py [csrc]

A folder of csrc/ops may include `common`, and what `MAY_INCLUDE` says beside. A file whose first comment says
"No torch here" includes neither torch nor a file that does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

OPERATORS = "ops"
COMMON = "common"
MAY_INCLUDE: dict[str, set[str]] = {
    "legendre_kernel": {"legendre_scan"},
    "legendre_conv": {"legendre_scan"},
    "legendre_step": {"legendre_scan", "legendre_kernel"},
    "hyena_mixer": {"legendre_scan", "short_conv"},
}
OF_TORCH = re.compile(r"<(ATen|c10|torch)/")
INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|(<[^>]+>))', re.MULTILINE)
NO_TORCH = "No torch here"


class Includes:
    """The includes of all sources below a folder.

    Attributes:
        root: the folder.
        own: the files of ours that a file includes.
        of_torch: the headers of torch that a file includes.
        missing: "FILE includes NAME, which does not exist".
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.own: dict[Path, list[Path]] = {}
        self.of_torch: dict[Path, list[str]] = {}
        self.missing: list[str] = []
        files = [path for path in root.rglob("*") if path.suffix in {".h", ".cuh", ".cpp", ".cu"}]
        for path in sorted(files):
            self._read(path)

    def _read(self, path: Path) -> None:
        self.own[path], self.of_torch[path] = [], []
        for ours, others in INCLUDE.findall(path.read_text()):
            if others:
                self.of_torch[path] += [others] if OF_TORCH.match(others) else []
                continue
            found = [place for place in (path.parent / ours, self.root / ours) if place.is_file()]
            if found:
                self.own[path].append(found[0].resolve())
            else:
                self.missing.append(f"{self.name(path)} includes {ours}, which does not exist")

    def name(self, path: Path) -> str:
        """The file as messages call it."""
        return str(path.relative_to(self.root.parent))

    def folder(self, path: Path) -> str | None:
        """The operator's folder, `common` or `legendre_scan`; None above them."""
        parts = path.relative_to(self.root).parts
        return parts[1] if len(parts) > 2 and parts[0] == OPERATORS else None

    def device(self, path: Path) -> str | None:
        """`cpu` or `cuda` for what is of one device only."""
        parts = path.relative_to(self.root).with_suffix("").parts
        if path.suffix in {".cu", ".cuh"}:
            return "cuda"
        return next((part for part in parts if part in {"cpu", "cuda"}), None)


def allowed(folder: str) -> set[str]:
    """The other folders that a folder may include."""
    return set() if folder == COMMON else {COMMON} | MAY_INCLUDE.get(folder, set())


def wrong_ways(includes: Includes) -> Iterator[str]:
    """Includes from one folder into another that it may not know, or from one device into the other."""
    for path, targets in includes.own.items():
        here = includes.folder(path)
        for target in targets:
            there = includes.folder(target)
            line = f"{includes.name(path)} includes {includes.name(target)}"
            if here is not None and there is None:
                yield f"{line}, which is above it"
            elif here is not None and there != here and there not in allowed(here):
                yield f"{line}, but {here} may include only {sorted(allowed(here)) or 'itself'}"
            devices = {includes.device(path), includes.device(target)}
            if devices == {"cpu", "cuda"}:
                yield f"{line}, which is for the other device"


def circles(includes: Includes) -> Iterator[str]:
    """Files that include each other."""
    done: set[Path] = set()
    for start in includes.own:
        yield from _circles_from(start, [], includes, done)


def _circles_from(path: Path, above: list[Path], includes: Includes, done: set[Path]) -> Iterator[str]:
    if path in above:
        yield "circle: " + " -> ".join(includes.name(step) for step in [*above[above.index(path) :], path])
    elif path not in done:
        for target in includes.own.get(path, []):
            yield from _circles_from(target, [*above, path], includes, done)
        done.add(path)


def broken_promises(includes: Includes) -> Iterator[str]:
    """Files that promise to be without torch and are not."""
    for path in includes.own:
        if NO_TORCH not in path.read_text().partition("#pragma once")[0]:
            continue
        for reached in _reached(path, includes):
            for header in includes.of_torch.get(reached, []):
                by = "" if reached == path else f" by {includes.name(reached)}"
                yield f"{includes.name(path)} says '{NO_TORCH}', but includes {header}{by}"


def _reached(path: Path, includes: Includes) -> set[Path]:
    found, left = {path}, [path]
    while left:
        new = set(includes.own.get(left.pop(), [])) - found
        found |= new
        left += new
    return found


def main(arguments: list[str]) -> int:
    """Prints what is wrong, a line each; exit status 1 if anything is."""
    root = Path(arguments[0] if arguments else Path(__file__).parents[1] / "csrc").resolve()
    includes = Includes(root)
    problems = [
        *includes.missing,
        *wrong_ways(includes),
        *circles(includes),
        *broken_promises(includes),
    ]
    for problem in dict.fromkeys(problems):
        print(problem, file=sys.stderr)
    if not problems:
        arrows = sum(len(targets) for targets in includes.own.values())
        print(f"{len(includes.own)} files of C++ and CUDA, {arrows} includes: none runs back up")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
