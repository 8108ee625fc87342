"""Kernels that choose their vectors at run time are right with narrower ones than this machine's, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

OPERATORS = ("legendre_conv", "hyena_mixer", "dropout_add_layer_norm", "linear_cross_entropy")


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="has no other vectors")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_narrower_vectors(capability: str) -> None:
    here = Path(__file__).parent
    files = [str(here / f"test_{operator}.py") for operator in OPERATORS]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-k", "channels or packed_sections or 16_bits", *files],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
