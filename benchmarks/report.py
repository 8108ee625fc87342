"""What every benchmark writes: the machine, the versions and the commit beside the figures, as JSON."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from source_tree import commit

import hyenarec


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on beside the code. The load tells how busy the machine was at this moment."""
    processor = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
        "commit": commit(),
        "hyenarec": hyenarec.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "python": platform.python_version(),
    }


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole: whoever is interrupted leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)


def write(path: Path, content: dict[str, Any]) -> None:
    save(path, content)
    print(f"wrote {path}")
