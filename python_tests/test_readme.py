"""The README's figures are those of benchmarks/results, and its Python examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from hyenarec import HyenaRec, ModelConfig

ROOT = Path(__file__).resolve().parents[1]


def test_results_are_those_of_the_runs() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme_results.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run python benchmarks/readme_results.py"


def example_with(word: str) -> str:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (example,) = [code for code in examples if word in code]
    return example


def test_the_operators_example_runs() -> None:
    names: dict[str, object] = {}
    exec(example_with("legendre_conv"), names)
    assert names["y"].shape == names["v"].shape


def test_the_streaming_example_runs(tmp_path: Path) -> None:
    HyenaRec(ModelConfig(num_items=300, dim=8, max_len=20)).save_pretrained(tmp_path)
    names: dict[str, object] = {}
    exec(example_with("stream()").replace("runs/shop", str(tmp_path)), names)
    assert len(names["stream"]) == 4
    assert len({17, 31, *names["best"].tolist()}) == 12


def test_the_training_example_names_what_exists() -> None:
    started = []
    code = example_with("TrainConfig").replace("hyenarec.train.train(", "record(")
    exec(code, {"record": started.append})
    assert started[0].output_dir == "runs/shop"
