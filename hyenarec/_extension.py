"""Loads the compiled operators, and says what to do when they are missing or do not fit the torch at hand."""

from __future__ import annotations

import importlib
import re
import warnings
from pathlib import Path
from types import ModuleType

import torch

REBUILD = "rebuild it: pip install --force-reinstall --no-deps --no-build-isolation hyenarec"


def load_extension() -> ModuleType:
    """Imports `hyenarec._C`, which registers `torch.ops.hyenarec`.

    Raises:
        ImportError: the extension is missing, cannot be loaded, or was compiled for another torch or CUDA.
    """
    package = Path(__file__).parent
    if not any(package.glob("_C.*")):
        raise ImportError(
            f"hyenarec's compiled extension is missing in {package}: you may be in a source checkout; "
            "leave it, or build it in place with: pip install --no-build-isolation -e ."
        )
    try:
        extension = importlib.import_module("hyenarec._C")
    except ImportError as error:
        raise ImportError(
            f"hyenarec's compiled extension does not load with torch {torch.__version__} ({error}); "
            f"it was probably compiled for another one: {REBUILD}"
        ) from error
    check_build(extension.torch_version, extension.cuda_version, torch.__version__, torch.version.cuda)
    return extension


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


EXTENSION = load_extension()

__version__: str = EXTENSION.version

# For CMAKE_PREFIX_PATH: find_package(HyenaRec) finds the package's own C++ library there.
cmake_prefix_path = str(Path(__file__).parent)
