"""Builds hyenarec._C and libhyenarec_ops.so with CMake, which knows how, and puts them into the package.

Environment: HYENAREC_CUDA=0/1 forbids or insists on CUDA, TORCH_CUDA_ARCH_LIST names the GPUs, MAX_JOBS
limits the parallel compilers, CMAKE_ARGS is passed on to CMake.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

from hyenarec_environment import TORCH_REQUIREMENT, build_folder, find_torch, torch_version  # noqa: E402

TORCH = find_torch()
BUILD = build_folder()


def torch_requirement() -> str:
    """The torch that the installed package asks for: the minor version it was compiled against."""
    if TORCH is None:
        return TORCH_REQUIREMENT
    major, minor = torch_version(TORCH).split(".")[:2]
    return f"torch=={major}.{minor}.*"


class CMakeBuild(build_ext):
    """Configures, builds and installs CMakeLists.txt into the package folder."""

    def run(self) -> None:
        """What setuptools calls."""
        require_tools()
        in_place = self.inplace or self.editable_mode
        package = (ROOT if in_place else Path(self.build_lib).resolve()) / "hyenarec"
        build = ROOT / BUILD / "cmake"
        prefix = f"-DCMAKE_INSTALL_PREFIX={package}"
        run_cmake("-S", str(ROOT), "-B", str(build), "-G", "Ninja", prefix, *cmake_definitions())
        run_cmake("--build", str(build), "--parallel", str(parallel_jobs()))
        shutil.rmtree(package / "include", ignore_errors=True)  # no header of an earlier layout stays
        run_cmake("--install", str(build))

    def get_outputs(self) -> list[str]:
        """Nothing for setuptools to track: the files are in build_lib, or already in place."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """As get_outputs."""
        return {}


class FreshBuildPy(build_py):
    """Empties build_lib first: setuptools would put into the wheel what an earlier build left there."""

    def run(self) -> None:
        """What setuptools calls."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "hyenarec", ignore_errors=True)
        super().run()


def require_tools() -> None:
    """Ends the build with one sentence if a tool is missing."""
    check = ["sh", str(ROOT / "scripts" / "system_packages.sh"), "--check", "compiler", "headers"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(check, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip())
    for tool, package in (("cmake", "cmake>=3.25"), ("ninja", "ninja")):
        if find_tool(tool) is None:
            raise SystemExit(f"hyenarec needs {tool} to build, and found none: pip install '{package}'.")
    if TORCH is None:
        raise SystemExit(
            f"hyenarec is compiled against torch, and found none: pip install '{TORCH_REQUIREMENT}', or "
            "leave out --no-build-isolation, which makes pip fetch it."
        )


def find_tool(name: str) -> str | None:
    """A program in PATH or beside this Python: pip can run from an environment that is not activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def cmake_definitions() -> list[str]:
    """What CMake must know about this Python and its torch."""
    assert TORCH is not None
    import pybind11

    # pip's environment for an isolated build vanishes afterwards; a torch in it must not be remembered.
    torch_stays = not any(folder.name.startswith("pip-build-env-") for folder in TORCH.parents)
    return [
        "-DHYENAREC_PYTHON=ON",
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",  # an isolated build's ninja vanishes, too
        f"-DHYENAREC_LIBTORCH={TORCH}",
        f"-DHYENAREC_ABSOLUTE_RPATH={'ON' if torch_stays else 'OFF'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DHYENAREC_CUDA={os.environ.get('HYENAREC_CUDA', '')}",
        f"-DTORCH_CUDA_ARCH_LIST={os.environ.get('TORCH_CUDA_ARCH_LIST', '')}",
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]


def parallel_jobs() -> int:
    """MAX_JOBS, else one compiler a core, but no more than memory holds: torch's headers take 2 GiB each."""
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if platform.system() == "Linux" else (os.cpu_count() or 1)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // 2**31))


def run_cmake(*arguments: str) -> None:
    """Runs CMake; its own output has told what went wrong if it fails."""
    status = subprocess.run([find_tool("cmake") or "cmake", *arguments], check=False).returncode
    if status != 0:
        raise SystemExit(f"hyenarec: cmake {arguments[0]} failed (status {status}), see its message above.")


setup(
    ext_modules=[Extension("hyenarec._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshBuildPy},
    options={"build": {"build_base": str(BUILD)}},
    install_requires=[
        torch_requirement(),
        "numpy>=1.26",
        "accelerate>=1.10,<2",
        "safetensors>=0.5,<1",
        "pyarrow>=15",
        "jsonargparse[signatures]>=4.49,<5",
        "pyyaml>=6,<7",
        "tqdm>=4.66,<5",
        "tensorboard>=2.16,<3",
    ],
)
