"""Which sources something was made from: the commit, and a digest that also works without git."""

from __future__ import annotations

import hashlib
import json
import subprocess
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "build" / "gpu-package"
"""What `make gpu-package` made, if it is there."""


def commit() -> str:
    """The commit, with "+changes" if the tree differs from it; without git that of a package made from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        facts = package_facts()
        return facts["commit"] if facts.get("sources") == digest() else "unknown"


def digest() -> str:
    """SHA-256 of names and contents of csrc and of the Python package: all that a package is made from."""
    files = [*(ROOT / "csrc").rglob("*"), *(ROOT / "hyenarec").rglob("*.py")]
    total = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        total.update(f"{path.relative_to(ROOT)}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def package_facts() -> dict[str, str]:
    """What package.json says: commit, sources (their digest), torch; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        return dict(json.loads((PACKAGE / "package.json").read_text()))
    return {}
