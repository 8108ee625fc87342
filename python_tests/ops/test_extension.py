from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hyenarec
from hyenarec._extension import BUILD, Build, check_build, minor_version


def test_build_fits_this_torch() -> None:
    assert minor_version(BUILD.torch_version) == minor_version(torch.__version__)
    assert BUILD.with_cuda == torch._C._dispatch_has_kernel_for_dispatch_key("hyenarec::short_conv", "CUDA")
    assert hyenarec.__version__ == BUILD.version


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("", (9, 0), False),  # without CUDA
        ("90-real", (9, 0), True),
        ("90-real", (8, 0), False),
        ("90-real", (10, 0), False),
        ("80-real", (8, 6), True),
        ("86-real", (8, 0), False),
        ("80-real 90", (8, 9), True),
        ("80-real 90", (12, 0), True),  # by PTX
        ("80-real 90", (7, 5), False),
        ("120-real", (12, 1), True),
        ("90a-real", (9, 0), True),
    ],
)
def test_knows_which_gpus_it_runs_on(architectures: str, capability: tuple[int, int], runs: bool) -> None:
    build = Build("0.1.0", "2.13.0+cu130", "13.0" if architectures else "", architectures, "gcc")
    assert build.runs_on(capability) == runs


@pytest.mark.parametrize(
    ("built_torch", "built_cuda", "torch_version", "torch_cuda"),
    [
        ("2.13.0+cpu", "", "2.13.1+cpu", None),
        ("2.13.0+cu130", "13.0", "2.13.0+cu131", "13.1"),
        ("2.13.0+cu130", "", "2.13.0+cu130", "13.0"),  # a CPU build on purpose, or for want of nvcc
    ],
)
def test_accepts_what_fits(
    built_torch: str,
    built_cuda: str,
    torch_version: str,
    torch_cuda: str | None,
    recwarn: pytest.WarningsRecorder,
) -> None:
    check_build(built_torch, built_cuda, torch_version, torch_cuda)
    assert not recwarn


@pytest.mark.parametrize(
    ("built_torch", "built_cuda", "torch_version", "torch_cuda", "message"),
    [
        (
            "2.13.0+cpu",
            "",
            "2.14.1+cpu",
            None,
            r"compiled for torch 2.13.0\+cpu, but this is torch 2.14.1\+cpu",
        ),
        ("2.13.0+cu130", "13.0", "2.13.0+cpu", None, "compiled with CUDA 13.0, but this torch has CUDA None"),
        (
            "2.13.0+cu130",
            "13.0",
            "2.13.0+cu126",
            "12.6",
            "compiled with CUDA 13.0, but this torch has CUDA 12.6",
        ),
    ],
)
def test_says_what_does_not_fit_and_what_to_do(
    built_torch: str, built_cuda: str, torch_version: str, torch_cuda: str | None, message: str
) -> None:
    with pytest.raises(ImportError, match=f"{message}: rebuild it: pip install"):
        check_build(built_torch, built_cuda, torch_version, torch_cuda)


def test_warns_of_a_cpu_build_beside_a_cuda_torch() -> None:
    with pytest.warns(
        UserWarning, match="compiled without CUDA for torch 2.13.0.*operators run on the CPU only"
    ):
        check_build("2.13.0+cpu", "", "2.13.0+cu130", "13.0")


@pytest.mark.parametrize(
    ("library", "message"),
    [(None, "compiled extension is missing"), (b"not a library", "does not load with torch")],
    ids=["missing", "damaged"],
)
@pytest.mark.slow
def test_import_explains_itself(library: bytes | None, message: str, tmp_path: Path) -> None:
    package = tmp_path / "hyenarec"
    package.mkdir()
    (package / "__init__.py").touch()
    source = Path(hyenarec._extension.__file__).read_text()
    (package / "_extension.py").write_text(source)
    if library is not None:
        (package / "lib").mkdir()
        (package / "lib" / "libhyenarec_ops.so").write_bytes(library)
    command = [sys.executable, "-c", "import hyenarec._extension"]  # of the current folder
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert message in result.stderr
    assert "pip install" in result.stderr


@pytest.mark.slow
def test_needs_no_module_of_this_python() -> None:
    program = "import sys; sys.modules['hyenarec._C'] = None; import hyenarec.train"
    # -P: the package that is tested, not the source tree's folder of the same name.
    subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=120)
