"""The pages' figures are those of benchmarks/results, and their Python examples run.

The README's C++ program is tested in installation/test_consumer.py.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hyenarec import HyenaRec, ModelConfig
from hyenarec.data import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))


def test_results_are_those_of_the_runs() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme_results.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run python benchmarks/readme_results.py"


def test_a_run_from_changed_sources_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    commit = importlib.import_module("readme_results").commit
    assert commit({"commit": "4dcd90c0d18f240c3f59fa82f7ed055d0819c2b8"}) == "4dcd90c0d1"
    assert commit({"commit": "4dcd90c0d18f240c3f59fa82f7ed055d0819c2b8+changes"}) == (
        "4dcd90c0d1 with uncommitted changes"
    )


def example_with(word: str) -> str:
    text = "".join((ROOT / page).read_text() for page in ("README.md", "docs/training.md"))
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in code]
    return example


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *DOCS])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_operators_example_runs() -> None:
    names: dict[str, object] = {}
    exec(example_with("legendre_conv"), names)
    assert names["y"].shape == names["v"].shape


def test_the_streaming_example_runs(tmp_path: Path) -> None:
    HyenaRec(ModelConfig(num_items=300, dim=8, max_len=20)).save_pretrained(tmp_path)
    names: dict[str, object] = {}
    exec(example_with("empty.copy").replace("runs/shop", str(tmp_path)), names)
    assert len(names["stream"]) == 4
    assert len({17, 31, *names["best"].tolist()}) == 12


def test_the_example_of_time_runs(tmp_path: Path) -> None:
    config = ModelConfig(num_items=300, dim=8, max_len=20, time_unit="second")
    HyenaRec(config).save_pretrained(tmp_path)
    Vocabulary(np.arange(3900, 4200)).save(tmp_path)
    names: dict[str, object] = {}
    code = example_with("at=").replace("runs/shop", str(tmp_path))
    exec(code, names)
    assert len(names["best"]) == 10 and len(names["stream"]) == 2
    assert not torch.equal(names["scores"], names["tomorrow"])


def test_the_training_example_names_what_exists() -> None:
    started = []
    code = example_with("TrainConfig").replace("hyenarec.train.train(", "record(")
    exec(code, {"record": started.append})
    assert started[0].output_dir == "runs/shop"


def test_the_scan_page_names_what_exists() -> None:
    sources = [path for path in (ROOT / "csrc" / "ops").rglob("*") if path.is_file()]
    words = {word for path in sources for word in re.findall(r"\w+", path.read_text())}
    code = " ".join(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / "scan.md").read_text()))
    files = set(re.findall(r"\w+\.(?:h|cuh)\b", code))
    names = set(re.findall(r"\b[A-Za-z]\w+", re.sub(r"\S+(?:/|\.(?:h|cuh|py)\b)", "", code)))
    assert files - {path.name for path in sources} == set()
    assert names - words == {"X_backward"}  # for every stage X
