"""What the tests of installations share."""

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cmake_and_ninja_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie beside Python, whether the environment is activated or not."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
