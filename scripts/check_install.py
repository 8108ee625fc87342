"""Installs the project with pip in every situation that the build supports and runs the operators afterwards.

    python scripts/check_install.py --torch torch==2.13.0 --cuda-python <python beside a CUDA torch>

Situations: torch is there (with and without --no-build-isolation); no torch at all; a CUDA torch without nvcc
(if --cuda-python is given). And what must fail, each with one clear sentence: no compiler, no ninja,
HYENAREC_CUDA=1 without nvcc. Sources are copied first, so that builds of this checkout stay as they are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ["CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"]
SOURCE_FOLDERS = ["build_backend", "cmake", "csrc", "hyenarec", "requirements", "scripts"]
COMPILERS = ("c++", "g++", "gcc", "cc")
TOOLS = [*COMPILERS, "cmake", "ninja", "as", "ld", "ar", "ranlib", "sh", "dirname", "id", "uname", "ccache"]


class CheckFailed(Exception):
    """An installation did not do what it should."""


def copy_sources(folder: Path) -> Path:
    """The files that a build needs, without anything an earlier build made."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "/include", "/lib")
    for name in SOURCE_FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for made in ("include", "lib"):
        shutil.rmtree(source / "hyenarec" / made, ignore_errors=True)
    return source


def make_environment(folder: Path, *requirements: str) -> Path:
    """A new virtual environment with these requirements; returns its Python."""
    run([sys.executable, "-m", "venv", str(folder)])
    python = folder / "bin" / "python"
    if requirements:
        run([str(python), "-m", "pip", "install", *requirements])
    return python


def tool_folder(folder: Path, without: tuple[str, ...] = ()) -> str:
    """A PATH that holds the build's tools and nothing else: no nvcc, and none of `without`."""
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found and tool not in without:
            (folder / tool).symlink_to(found)
    return str(folder)


def pip_install(python: Path, source: Path, *options: str, env: Mapping[str, str] | None = None) -> str:
    """Installs the sources; returns everything that pip printed, raises CheckFailed with it if pip fails."""
    variables = {**os.environ, **(env or {})}
    if env and "CUDA_HOME" not in env:
        variables.pop("CUDA_HOME", None)
    return run([str(python), "-m", "pip", "install", "--verbose", *options, str(source)], env=variables)


def run(command: list[str], env: Mapping[str, str] | None = None, folder: Path | None = None) -> str:
    """Runs a command; returns everything it printed, raises CheckFailed with it if it fails."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, text=True, env=env, cwd=folder, check=False, **pipes)
    if done.returncode != 0:
        raise CheckFailed(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


def expect_failure(sentence: str, python: Path, source: Path, env: Mapping[str, str]) -> None:
    """The installation must fail, and say this."""
    try:
        pip_install(python, source, "--no-build-isolation", "--no-deps", env=env)
    except CheckFailed as failure:
        if sentence in " ".join(str(failure).split()):
            return
        raise CheckFailed(f"expected the message '{sentence}', got:\n{failure}") from None
    raise CheckFailed(f"the installation succeeded, expected it to fail with '{sentence}'")


def expect_text(text: str, output: str) -> None:
    """The output of a build must hold this."""
    if text not in " ".join(output.split()):
        raise CheckFailed(f"expected '{text}' in the build's output, got:\n{output}")


def check_operators(python: Path, folder: Path) -> None:
    """`hyenarec doctor` compares every operator with its oracle; run away from the sources."""
    output = run([str(python.parent / "hyenarec"), "doctor"], folder=folder)
    print("  " + output.strip().replace("\n", "\n  "))


def torch_is_installed(source: Path, folder: Path, torch: str) -> None:
    """Beside an installed torch, plain pip install compiles against it; so does --no-build-isolation."""
    python = make_environment(folder / "with-torch", torch)
    output = pip_install(python, source)
    expect_text("without CUDA", output)
    check_operators(python, folder)

    run([str(python), "-m", "pip", "install", "-r", str(ROOT / "requirements" / "build.txt")])
    # As where the environment is activated; its cmake is the isolated build's, which need not compile again.
    activated = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    pip_install(python, source, "--no-build-isolation", "--no-deps", env=activated)
    check_operators(python, folder)

    for missing, sentence in (
        (COMPILERS, "hyenarec needs a C++20 compiler with OpenMP, which"),
        (("ninja",), "hyenarec needs ninja to build, and found none: pip install 'ninja'."),
    ):
        path = tool_folder(folder / f"tools-without-{missing[0]}", without=missing)
        if "ninja" in missing:
            run([str(python), "-m", "pip", "uninstall", "--yes", "ninja"])
        expect_failure(sentence, python, source, env={"PATH": path})


def torch_is_missing(source: Path, folder: Path, torch: str) -> None:
    """Plain pip install without torch fetches one to compile against, and the same one to run with.

    The constraint only keeps pip from taking the newest torch; without it the same happens, only larger.
    """
    constraints = folder / "constraints.txt"
    constraints.write_text(torch + "\n")
    python = make_environment(folder / "without-torch")
    env = {"PIP_CONSTRAINT": str(constraints), "PIP_BUILD_CONSTRAINT": str(constraints)}
    pip_install(python, source, env=env)
    check_operators(python, folder)


def cuda_torch_without_nvcc(source: Path, folder: Path, python: Path) -> None:
    """A CUDA torch without nvcc gives a CPU build, which says so; HYENAREC_CUDA=1 refuses."""
    env = {"PATH": tool_folder(folder / "tools-without-nvcc")}
    output = pip_install(python, source, "--no-build-isolation", env=env)
    expect_text("without CUDA (torch is built for CUDA", output)
    expect_text("but no nvcc was found", output)
    check_operators(python, folder)
    sentence = "HYENAREC_CUDA=1 asks for CUDA, which cannot be compiled here: torch is built for CUDA"
    expect_failure(sentence, python, source, env={**env, "HYENAREC_CUDA": "1"})


def main() -> int:
    """Runs every situation; 1 at the first that fails."""
    parser = argparse.ArgumentParser(description="pip install in every situation that the build supports.")
    parser.add_argument("--torch", default="torch==2.13.0", help="requirement of the torch to install")
    help_cuda = "Python of an environment with a CUDA torch, where the project is installed anew"
    parser.add_argument("--cuda-python", type=Path, help=help_cuda)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = copy_sources(folder)
        situations = {
            "torch is installed": lambda: torch_is_installed(source, folder, arguments.torch),
            "no torch at all": lambda: torch_is_missing(source, folder, arguments.torch),
        }
        if arguments.cuda_python:
            situations["a CUDA torch without nvcc"] = lambda: cuda_torch_without_nvcc(
                source, folder, arguments.cuda_python.absolute()
            )
        for title, situation in situations.items():
            print(f"install check: {title}", flush=True)
            start = time.monotonic()
            try:
                situation()
            except CheckFailed as failure:
                print(f"install check FAILED: {title}: {failure}")
                return 1
            print(f"install check passed: {title} ({time.monotonic() - start:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
