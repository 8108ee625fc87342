"""What a machine lacks is installed, or named in one sentence, before anything else is tried."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ["compiler", "python", "venv", "headers"]
TOOLS = ["sh", "dirname", "sed", "grep", "head"]


class Machine:
    """A machine with nothing but the tools that every system has, and what a test adds to them."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.project = folder / "project"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        shutil.copytree(ROOT / "scripts", self.project / "scripts")
        shutil.copytree(ROOT / "requirements", self.project / "requirements")
        shutil.copy(ROOT / "pyproject.toml", self.project)
        self.program("id", "echo 1000")

    def program(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def has_compiler(self, *, standard: bool = True, openmp: bool = True, googletest: str = "") -> None:
        """A compiler that knows C++20, OpenMP and, of GoogleTest, "headers" or "library" or both."""
        script = 'source=$(while read -r line; do echo "$line"; done); case "$* $source" in\n'
        script += "" if standard else "*-std=c++20*span*) exit 1 ;;\n"
        script += "" if openmp else "*-fopenmp*omp.h*) exit 1 ;;\n"
        script += "" if "headers" in googletest else "*-M*gtest/gtest.h*) exit 1 ;;\n"
        script += "" if "library" in googletest else "*-lgtest*) exit 1 ;;\n"
        self.program("c++", script + "esac")

    def has_python(self, version: str | None = None, lacks: str = "nothing") -> None:
        """This Python, unable to do what holds the word `lacks`; or an older one than any that will do."""
        this = f'case "$*" in *{lacks}*) exit 1 ;; esac; exec {sys.executable} "$@"'
        self.program("python3", f'[ "$1" = --version ] && echo Python {version}; exit 1' if version else this)

    def has_root(self) -> None:
        self.program("id", "echo 0")

    def has_apt_get(self, script: str = "") -> None:
        """An apt-get that writes down what it is asked for, and then runs the script."""
        self.program("apt-get", f'echo "$DEBIAN_FRONTEND $@" >> {self.bin}/asked; {script}')

    def asked_of_apt_get(self) -> list[str]:
        """What it was asked for: "update" and the packages, after the options that every call must have."""
        asked = self.bin / "asked"
        calls = asked.read_text().splitlines() if asked.exists() else []
        options = "noninteractive -qq -o Acquire::Retries=1 -o Acquire::Retries::Delay=false "
        assert all(call.startswith(options) for call in calls)
        install = "install --yes --no-install-recommends "
        return [call.partition("Timeout=60 ")[2].removeprefix(install) for call in calls]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(self.project / "scripts" / "system_packages.sh"), *arguments],
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def refusal(self, *arguments: str, **environment: str) -> str:
        """The one sentence of a run that must fail."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 1
        (sentence,) = done.stderr.splitlines()
        return sentence


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_that_lacks_nothing_is_left_alone(machine: Machine) -> None:
    machine.has_compiler(googletest="headers library")
    machine.has_python()
    machine.has_root()
    machine.has_apt_get()
    done = machine.run(*BUILD, "googletest")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.asked_of_apt_get() == []


def test_root_gets_what_is_missing_from_apt_get(machine: Machine) -> None:
    machine.has_python()
    machine.has_root()
    machine.has_compiler(googletest="headers library")
    compiler = machine.bin / "c++"
    compiler.rename(compiler.with_suffix(".later"))
    machine.has_apt_get(f'case "$*" in *" g++") mv {compiler}.later {compiler} ;; esac')
    (machine.bin / "mv").symlink_to(str(shutil.which("mv")))
    done = machine.run(*BUILD, "googletest")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Installing with apt-get what this machine lacks: g++ libgtest-dev\n"
    assert machine.asked_of_apt_get() == ["update", "g++", "libgtest-dev"]


def test_an_apt_get_that_fails_is_quoted(machine: Machine) -> None:
    machine.has_python()
    machine.has_root()
    machine.has_apt_get(
        "echo 'Reading lists'; echo 'W: Failed to fetch: no network'; echo 'E: No g++'; exit 100"
    )
    assert machine.refusal(*BUILD) == (
        "hyenarec needs a C++20 compiler with OpenMP, which this machine lacks "
        "(apt-get: W: Failed to fetch: no network): apt-get install g++"
    )
    machine.has_apt_get()  # without a word, and without effect
    assert machine.refusal(*BUILD) == (
        "hyenarec needs a C++20 compiler with OpenMP, which this machine lacks: apt-get install g++"
    )


@pytest.mark.parametrize(
    ("compiler", "python", "named"),
    [
        ({"standard": False}, "nothing", "a C++20 compiler with OpenMP ("),
        ({"openmp": False}, "nothing", "a C++20 compiler with OpenMP ("),
        ({}, "ensurepip", "Python's venv module,"),
        ({}, "Python.h", "Python's C headers,"),
        ({"googletest": "headers"}, "nothing", "GoogleTest,"),
        ({"googletest": "library"}, "nothing", "GoogleTest,"),
    ],
)
def test_each_piece_is_checked(machine: Machine, compiler: dict[str, Any], python: str, named: str) -> None:
    machine.has_compiler(**{"googletest": "headers library", **compiler})
    machine.has_python(lacks=python)
    assert machine.refusal("--check", *BUILD, "googletest").startswith(f"hyenarec needs {named}")


def test_git_is_checked(machine: Machine) -> None:
    assert machine.refusal("git").startswith("hyenarec needs git,")
    machine.program("git", "")
    assert machine.run("git").returncode == 0


def test_a_package_that_apt_get_cannot_have_keeps_no_other_away(machine: Machine) -> None:
    machine.has_root()
    lacks = f'case "$*" in *" g++") echo "E: No g++" ;; *" git") echo > {machine.bin}/git; ;; esac'
    machine.has_apt_get(lacks)
    assert "(apt-get: E: No g++)" in machine.refusal("compiler", "git")
    assert machine.asked_of_apt_get() == ["update", "g++", "git"]
    assert (machine.bin / "git").exists()


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt-get", "sudo apt-get install g++ python3 python3-venv python3-dev"),
        ("dnf", "sudo dnf install gcc-c++ python3 python3-libs python3-devel"),
        ("pacman", "sudo pacman -S gcc python"),
        (None, "install what Debian calls g++ python3 python3-venv python3-dev"),
    ],
)
def test_without_root_the_command_is_named(machine: Machine, manager: str | None, command: str) -> None:
    if manager:
        machine.program(manager, "exit 99")
    assert machine.refusal(*BUILD) == (
        "hyenarec needs a C++20 compiler with OpenMP, Python 3.11 or later, Python's venv module and "
        f"Python's C headers, which this machine lacks: {command}"
    )


def test_a_check_installs_nothing(machine: Machine) -> None:
    machine.has_root()
    machine.has_apt_get()
    assert machine.refusal("--check", "compiler").endswith("which this machine lacks: apt-get install g++")
    assert machine.asked_of_apt_get() == []


def test_another_python_has_packages_of_its_name(machine: Machine) -> None:
    sentence = machine.refusal("python", "venv", "headers", PYTHON="python3.12")
    assert sentence.startswith("hyenarec needs Python 3.11 or later as python3.12,")
    assert sentence.endswith("install what Debian calls python3.12 python3.12-venv python3.12-dev")
    machine.program("python", '[ "$2" = "import ensurepip, venv" ] && exit 1; echo python3.13')
    assert machine.refusal("venv", PYTHON="python").endswith("install what Debian calls python3.13-venv")
    machine.program("python3", "echo python3.13")  # the usual one
    assert machine.refusal("venv", PYTHON="python").endswith("install what Debian calls python3-venv")


def test_an_old_python_is_for_the_user_to_replace(machine: Machine) -> None:
    machine.has_python("3.10.9")
    machine.has_root()
    machine.has_apt_get()
    assert machine.refusal("python", "venv") == (
        "hyenarec needs Python 3.11 or later, and python3 answers 'Python 3.10.9': "
        "select another one, as in make demo PYTHON=python3.11"
    )
    assert machine.refusal("python", "venv", PYTHON="/opt/python3") == (
        "hyenarec needs Python 3.11 or later, and /opt/python3 is no program: "
        "select another one, as in make demo PYTHON=python3.11"
    )
    assert machine.asked_of_apt_get() == []


def test_a_compiler_that_fails_is_quoted(machine: Machine) -> None:
    machine.program("c++", "echo 'c++: note: hm' >&2; echo 'c++: error: what is C++20?' >&2; exit 1")
    assert machine.refusal("--check", "compiler") == (
        f"hyenarec needs a C++20 compiler with OpenMP ({machine.bin}/c++ fails: c++: error: what is C++20?), "
        "which this machine lacks: install what Debian calls g++"
    )


def test_googletest_elsewhere_is_for_cmake_to_find(machine: Machine) -> None:
    machine.has_compiler()
    assert machine.run("--check", "googletest", GTest_ROOT="/opt/googletest").returncode == 0


def test_a_compiler_that_the_user_selected_is_not_replaced(machine: Machine) -> None:
    machine.has_compiler()
    machine.has_root()
    machine.has_apt_get()
    assert machine.refusal("compiler", CXX="no-such-compiler -O2") == (
        "hyenarec needs a C++20 compiler with OpenMP, and CXX names none: 'no-such-compiler -O2'"
    )
    assert machine.asked_of_apt_get() == []
    assert machine.run("compiler", CXX=f"{machine.bin}/c++ -O2").returncode == 0
    machine.has_compiler(standard=False)
    assert machine.run("compiler", CMAKE_ARGS="-DCMAKE_CXX_COMPILER=another").returncode == 0


def test_an_unknown_piece_is_refused(machine: Machine) -> None:
    done = machine.run("compiler", "fortran")
    assert done.returncode == 2
    assert "PIECE must be one of requirements/system.txt, got 'fortran'" in done.stderr


def test_the_environments_own_python_is_replaced_with_it(machine: Machine) -> None:
    machine.has_python("3.10.9")
    environment = machine.project / ".venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").symlink_to(machine.bin / "python3")
    assert machine.refusal("python", PYTHON=".venv/bin/python").endswith(
        "and .venv/bin/python answers 'Python 3.10.9': remove that environment (make clean)"
    )


def lay_out_googletest(machine: Machine, sha256: str | None = None) -> bytes:
    """An archive where requirements/googletest.txt says; returns its content."""
    content = os.urandom(1000)
    archive = machine.project / "elsewhere.tar.gz"
    archive.write_bytes(content)
    sha256 = sha256 or hashlib.sha256(content).hexdigest()
    where = machine.project / "requirements" / "googletest.txt"
    where.write_text(f"# where\n{archive.as_uri()}\n{sha256}\n")
    return content


def test_googletest_is_fetched_once_if_it_cannot_be_installed(machine: Machine) -> None:
    machine.has_compiler()
    machine.has_python()
    content = lay_out_googletest(machine)
    done = machine.run(*BUILD, "googletest")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Fetching GoogleTest, which this machine lacks, from file:")
    build = machine.project / "build"
    (archive,) = build.iterdir()
    assert archive.read_bytes() == content
    assert machine.run(*BUILD, "googletest").stdout == ""
    lay_out_googletest(machine)  # another version
    assert machine.run(*BUILD, "googletest").stdout.startswith("Fetching GoogleTest")


def test_a_check_fetches_nothing(machine: Machine) -> None:
    machine.has_compiler()
    machine.has_python()
    lay_out_googletest(machine)
    assert machine.refusal("--check", "googletest").startswith("hyenarec needs GoogleTest,")
    assert not (machine.project / "build").exists()


def test_something_else_in_googletests_place_is_refused(machine: Machine) -> None:
    machine.has_compiler()
    machine.has_python()
    machine.has_root()
    machine.has_apt_get("echo 'E: No network'; exit 100")
    lay_out_googletest(machine, sha256="0" * 64)
    sentence = machine.refusal("googletest")
    assert sentence.startswith(
        "hyenarec needs GoogleTest, which this machine lacks (apt-get: E: No network; "
    )
    assert f"its SHA-256 should be {'0' * 64}, got " in sentence
    assert sentence.endswith("): apt-get install libgtest-dev")
    assert not (machine.project / "build").exists()
