"""The README's figures are those of benchmarks/results, and its Python examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_results_are_those_of_the_runs() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme_results.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run python benchmarks/readme_results.py"


def test_the_operators_example_runs() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (example,) = [code for code in examples if "fft_conv" in code]
    names: dict[str, object] = {}
    exec(example.replace("4096", "64"), names)
    assert tuple(names["y"].shape) == (8, 64, 64)


def test_the_training_example_names_what_exists() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (example,) = [code for code in examples if "TrainConfig" in code]
    started = []
    code = example.replace("hyenarec.train.train(", "record(")
    exec(code, {"record": started.append})
    assert started[0].output_dir == "runs/shop"
