"""What a build depends on: the torch that the package will run with, and a build folder of its own for each.

Run as a program it prints the build folder.
"""

from __future__ import annotations

import re
import site
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

TORCH_REQUIREMENT = "torch>=2.11,<2.15"


def find_torch() -> Path | None:
    """Folder of torch: the importable one, else the one of the environment around pip's isolation, else None.

    pip hides the environment's packages from sys.path while it builds, but sysconfig still names their
    folders. torch is not imported: its version stands in version.py, and the build only needs its headers and
    libraries.
    """
    spec = find_spec("torch")
    candidates = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    for folder in [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_site_folders()]:
        candidates.append(Path(folder) / "torch")
    for candidate in candidates:
        if (candidate / "version.py").is_file():
            return candidate
    return None


def torch_version(folder: Path) -> str:
    """torch.__version__ of the torch in a folder, for instance "2.13.0+cpu"."""
    match = re.search(r"^__version__ = '([^']+)'", (folder / "version.py").read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"no __version__ in {folder / 'version.py'}")
    return match.group(1)


def build_folder() -> Path:
    """Where to build, from the project's root: one folder for each Python and torch."""
    python = f"{sys.implementation.name}{sys.version_info.major}.{sys.version_info.minor}"
    torch = find_torch()
    version = torch_version(torch).replace("+", "-") if torch else "-none"
    return Path("build") / f"{python}-torch{version}"


def _site_folders() -> list[str]:
    return [*site.getsitepackages(), site.getusersitepackages()]


if __name__ == "__main__":
    print(build_folder())
