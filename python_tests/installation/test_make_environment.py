"""Virtual environments are made where pip can fill them, and nowhere else."""

import os
import socket
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "make_environment.py"


def make_environment(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with a pip that knows no index but what `environment` names."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    variables = {**others, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", **environment}
    command = [sys.executable, str(SCRIPT), str(folder)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_without_a_package_index_there_is_one_sentence_and_no_environment(tmp_path: Path) -> None:
    done = make_environment(tmp_path / "venv")
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(
        "hyenarec needs Python packages, and pip can't install any (pip install jsonargparse: "
    )
    assert "Could not find a version that satisfies the requirement jsonargparse" in sentence
    assert not (tmp_path / "venv").exists()


@pytest.mark.slow
def test_a_broken_connection_is_named(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        index = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        done = make_environment(tmp_path / "venv", PIP_NO_INDEX="0", PIP_INDEX_URL=index)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder that serves as package index: it has the package that is tried."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "jsonargparse-9.0.dist-info"
    with zipfile.ZipFile(folder / "jsonargparse-9.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: jsonargparse\nVersion: 9.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.mark.slow
def test_an_environment_is_made_once(tmp_path: Path, wheels: Path) -> None:
    folder = tmp_path / "venv"
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--version"]
    settings = {"PIP_FIND_LINKS": str(wheels), "PIP_REQUIRE_VIRTUALENV": "1"}
    assert make_environment(folder, **settings).returncode == 0
    assert str(folder) in subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    assert (folder / "bin" / "python").is_symlink()

    made = (folder / "pyvenv.cfg").stat().st_mtime_ns
    assert make_environment(folder, **settings).returncode == 0
    assert (folder / "pyvenv.cfg").stat().st_mtime_ns == made


def test_an_environment_without_pip_is_left_as_it_is(tmp_path: Path, wheels: Path) -> None:
    folder = tmp_path / "venv"
    venv.create(folder, symlinks=True, with_pip=False)  # as an interruption leaves it
    before = sorted(folder.rglob("*"))
    done = make_environment(folder, PIP_FIND_LINKS=str(wheels))
    assert done.returncode == 1
    assert done.stderr == f"hyenarec needs pip in {folder}, where it does not run: remove {folder}\n"
    assert sorted(folder.rglob("*")) == before
