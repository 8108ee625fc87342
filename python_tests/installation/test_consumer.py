"""C++ programs, the README's among them, use the installed package and compute what Python does."""

import subprocess
import sys
from pathlib import Path

import pytest

COMPARE = Path(__file__).resolve().parents[2] / "cpp_tests" / "consumer" / "compare.py"


@pytest.mark.slow
def test_programs_built_against_the_python_package_agree_with_python() -> None:
    done = subprocess.run([sys.executable, str(COMPARE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fft_conv" in done.stdout
    assert "README.md" in done.stdout
