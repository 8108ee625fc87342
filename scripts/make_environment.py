"""Makes a virtual environment, unless it is there, once it is known that pip can fill it.

    python3 scripts/make_environment.py FOLDER

Where pip reaches no package index, it says so only after many tries for each package.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

TRIAL = "jsonargparse"  # small, pure Python, and hyenarec requires it


def pip_in(environment: Path) -> list[str]:
    """The command that runs its pip."""
    return [str(environment / "bin" / "python"), "-m", "pip"]


def has_pip(environment: Path) -> bool:
    """Whether pip runs in it."""
    command = [*pip_in(environment), "--version"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def bundled_pip() -> Path:
    """The pip that this Python puts into new environments: a module in an archive, which Python can run."""
    import ensurepip  # an environment that is there can do without

    folder = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled"
    return next(Path(folder).glob("pip-*.whl")) / "pip"


def why_pip_fails(pip: list[str]) -> str | None:
    """Why this pip, as it is configured here, can't install a package; None if it can."""
    command = [*pip, "install", "--dry-run", "--ignore-installed", "--no-deps", "--retries", "1", TRIAL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    for cause in ("connection broken by ", "ERROR: "):  # the first is the cause of the second
        for line in done.stderr.splitlines():
            if cause in line:
                return line.partition(cause)[2]
    return " ".join((done.stderr or done.stdout).split()) or f"status {done.returncode}"


def why_pip_would_fail() -> str | None:
    """The same of the pip that a new environment gets."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", name], check=True)
        return why_pip_fails([f"{name}/bin/python", str(bundled_pip())])


def main() -> int:
    """1, with one sentence on stderr, if there can be no environment that works."""
    folder = Path(sys.argv[1])
    is_there = folder.exists()
    if is_there and not has_pip(folder):
        print(f"hyenarec needs pip in {folder}, where it does not run: remove {folder}", file=sys.stderr)
        return 1
    failure = why_pip_fails(pip_in(folder)) if is_there else why_pip_would_fail()
    if failure:
        print(
            f"hyenarec needs Python packages, and pip can't install any (pip install {TRIAL}: {failure}): "
            "mend the network or pip's configuration; PIP_INDEX_URL names another package index",
            file=sys.stderr,
        )
        return 1
    if is_there:
        return 0
    return subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
