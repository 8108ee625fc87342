"""C++ programs, the README's among them, use the installed package and compute what Python does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hyenarec._extension import LIBRARY

COMPARE = Path(__file__).resolve().parents[2] / "cpp_tests" / "consumer" / "compare.py"


@pytest.mark.slow
def test_programs_built_against_the_python_package_agree_with_python() -> None:
    done = subprocess.run([sys.executable, str(COMPARE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fft_conv" in done.stdout
    assert "README.md" in done.stdout


def test_the_library_takes_what_lies_beside_it(tmp_path: Path) -> None:
    """As programs ship it: their own rpath does not reach what only the library needs."""
    shutil.copy(LIBRARY, tmp_path)
    for library in (Path(torch.__file__).parent / "lib").glob("lib*.so*"):
        (tmp_path / library.name).symlink_to(library)
    done = subprocess.run(["ldd", str(tmp_path / LIBRARY.name)], capture_output=True, text=True, check=True)
    assert f"libc10.so => {tmp_path}/libc10.so" in done.stdout
