"""Loads the compiled operators, and says what to do when they are missing or do not fit the torch at hand."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

REBUILD = "rebuild it: pip install --force-reinstall --no-deps --no-build-isolation hyenarec"

LIBRARY = Path(__file__).parent / "lib" / "libhyenarec_ops.so"
"""The operators. There is no Python in it: the package runs with any Python that its torch runs with."""


@dataclass(frozen=True)
class Build:
    """How the operators were compiled.

    Attributes:
        version: hyenarec's.
        torch_version: `torch.__version__` that they were compiled against.
        cuda_version: the CUDA toolkit's, as in "13.0"; empty for a build without CUDA.
        cuda_architectures: what they were compiled for, as in "80-real 90": machine code for 8.0, machine
            code and PTX for 9.0; empty for a build without CUDA.
        compiler: name and version.
    """

    version: str
    torch_version: str
    cuda_version: str
    cuda_architectures: str
    compiler: str

    @property
    def with_cuda(self) -> bool:
        """Whether there are kernels for a GPU."""
        return bool(self.cuda_version)

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability can run the kernels.

        Machine code runs on the same major and the same or a later minor version, PTX on any later version.
        """
        for major, minor, real in re.findall(r"(\d+)(\d)[af]?(-real)?", self.cuda_architectures):
            built = int(major), int(minor)
            if built <= capability and (built[0] == capability[0] or not real):
                return True
        return False


def load_operators() -> Build:
    """Loads the library, which registers `torch.ops.hyenarec`.

    Raises:
        ImportError: it is missing, cannot be loaded, or was compiled for another torch or CUDA.
    """
    if not LIBRARY.exists():
        raise ImportError(
            f"hyenarec's compiled extension is missing, expected {LIBRARY}: you may be in a source checkout; "
            "leave it, or build it in place with: pip install --no-build-isolation -e ."
        )
    try:
        torch.ops.load_library(str(LIBRARY))  # type: ignore[no-untyped-call]
        facts = torch.ops.hyenarec.build_information()
    except (OSError, AttributeError) as error:
        raise ImportError(
            f"hyenarec's compiled extension does not load with torch {torch.__version__} "
            f"({error.__cause__ or error}); "
            f"it was probably compiled for another one: {REBUILD}"
        ) from error
    build = Build(**facts)
    check_build(build.torch_version, build.cuda_version, torch.__version__, torch.version.cuda)
    return build


def check_build(built_torch: str, built_cuda: str, torch_version: str, torch_cuda: str | None) -> None:
    """Compares the build with the torch that runs.

    Args:
        built_torch: `torch.__version__` that the extension was compiled against.
        built_cuda: CUDA version it was compiled with, empty for a build without CUDA.
        torch_version: `torch.__version__` of this process.
        torch_cuda: `torch.version.cuda` of this process, None for a CPU build.

    Raises:
        ImportError: another minor version of torch, or another major version of CUDA.
    """
    if minor_version(built_torch) != minor_version(torch_version):
        raise ImportError(
            f"hyenarec was compiled for torch {built_torch}, but this is torch {torch_version}: {REBUILD}"
        )
    if built_cuda and built_cuda.split(".")[0] != (torch_cuda or "none").split(".")[0]:
        raise ImportError(
            f"hyenarec was compiled with CUDA {built_cuda}, but this torch has CUDA {torch_cuda}: {REBUILD}"
        )
    if not built_cuda and torch_cuda and "+cpu" in built_torch:
        warnings.warn(
            f"hyenarec was compiled without CUDA for torch {built_torch}, but this torch has CUDA "
            f"{torch_cuda}: the operators run on the CPU only; for the GPU {REBUILD}",
            stacklevel=2,
        )


def minor_version(version: str) -> tuple[int, int]:
    """(2, 13) of "2.13.0+cpu"."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise ValueError(f"version must start with two numbers, got {version!r}")
    return int(match[1]), int(match[2])


BUILD = load_operators()

__version__ = BUILD.version

# For CMAKE_PREFIX_PATH: find_package(HyenaRec) finds the package's own C++ library there.
cmake_prefix_path = str(Path(__file__).parent)
