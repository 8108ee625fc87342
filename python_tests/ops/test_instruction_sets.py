"""Operators are right with narrower vectors than this machine's, too: the tests marked `instruction_sets`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="has no other vectors")
@pytest.mark.parametrize("capability", ["default", "avx2"])
@pytest.mark.slow
def test_narrower_vectors(capability: str) -> None:
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", "instruction_sets", "-k", "not cuda"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent)],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("operator", sorted(path.stem for path in Path(__file__).parent.glob("test_*.py")))
def test_every_operator_is_among_them(operator: str) -> None:
    name = operator.removeprefix("test_")
    if not hasattr(torch.ops.hyenarec, name):
        return
    text = (Path(__file__).parent / f"{operator}.py").read_text()
    assert "@pytest.mark.instruction_sets" in text, f"{operator}.py marks no test with instruction_sets"
