"""What the build decides: which torch it compiles against, with CUDA or without, for which GPUs."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_cmake(folder: Path, call: str, **environment: str) -> str:
    """Runs one call of cmake/HyenaRecCuda.cmake with no nvcc in sight but what `environment` shows."""
    script = folder / "script.cmake"
    script.write_text(f'include("{ROOT}/cmake/HyenaRecCuda.cmake")\n{call}\n')
    clean = {"PATH": str(folder / "nothing"), **environment}
    cmake = str(shutil.which("cmake"))
    done = subprocess.run([cmake, "-P", str(script)], capture_output=True, text=True, env=clean, check=False)
    return " ".join((done.stdout + done.stderr).split())


def decide(folder: Path, torch_cuda: str, **environment: str) -> str:
    """The decision as "<ON or OFF>: <reason>", for a torch in <folder>/site/torch."""
    (folder / "site" / "torch").mkdir(parents=True, exist_ok=True)
    call = f'hyenarec_decide_cuda(on reason "{folder}/site/torch" "{torch_cuda}")'
    return run_cmake(folder, call + '\nmessage("${on}: ${reason}")', **environment)


def make_nvcc(folder: Path, release: str = "13.0") -> Path:
    """A program that answers --version as nvcc does."""
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(
        f"#!{shutil.which('sh')}\necho 'Cuda compilation tools, release {release}, V{release}.88'\n"
    )
    nvcc.chmod(0o755)
    return nvcc


def test_cpu_torch_builds_without_cuda(tmp_path: Path) -> None:
    make_nvcc(tmp_path / "bin")
    assert decide(tmp_path, "", PATH=str(tmp_path / "bin")) == "OFF: torch is a CPU build"


def test_cuda_torch_without_nvcc_builds_without_cuda_and_says_so(tmp_path: Path) -> None:
    assert decide(tmp_path, "13.0").startswith("OFF: torch is built for CUDA 13.0, but no nvcc was found")


def test_nvcc_is_found_in_path_cuda_home_and_pip_package(tmp_path: Path) -> None:
    nvcc = make_nvcc(tmp_path / "bin")
    assert decide(tmp_path, "13.0", PATH=str(nvcc.parent)) == f"ON: nvcc: {nvcc}"
    nvcc = make_nvcc(tmp_path / "toolkit" / "bin")
    assert decide(tmp_path, "13.0", CUDA_HOME=str(tmp_path / "toolkit")) == f"ON: nvcc: {nvcc}"
    nvcc = make_nvcc(tmp_path / "site" / "nvidia" / "cu13" / "bin")
    assert decide(tmp_path, "13.0").endswith("site/nvidia/cu13/bin/nvcc")


def test_cuda_home_wins_over_path(tmp_path: Path) -> None:
    make_nvcc(tmp_path / "bin")
    decision = decide(tmp_path, "13.0", PATH=str(tmp_path / "bin"), CUDA_HOME=str(tmp_path / "empty"))
    assert decision.startswith("OFF")


def test_another_major_version_of_cuda_is_not_used(tmp_path: Path) -> None:
    nvcc = make_nvcc(tmp_path / "bin", release="12.8")
    assert decide(tmp_path, "13.0", PATH=str(nvcc.parent)) == (
        f"OFF: torch is built for CUDA 13.0, but {nvcc} is of CUDA 12.8"
    )


def test_hyenarec_cuda_overrides(tmp_path: Path) -> None:
    nvcc = make_nvcc(tmp_path / "bin")
    path = str(nvcc.parent)
    assert decide(tmp_path, "13.0", PATH=path, HYENAREC_CUDA="0") == "OFF: HYENAREC_CUDA=0"
    assert decide(tmp_path, "13.0", PATH=path, HYENAREC_CUDA="1").startswith("ON")
    for torch_cuda in ("", "13.0"):
        refusal = decide(tmp_path, torch_cuda, HYENAREC_CUDA="1")
        assert "HYENAREC_CUDA=1 asks for CUDA, which cannot be compiled here: torch is" in refusal
    assert "HYENAREC_CUDA must be 0 or 1, got 'yes'" in decide(tmp_path, "13.0", HYENAREC_CUDA="yes")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", "80-real;90"),
        ("9.0", "90-real"),
        ("8.0;9.0+PTX", "80-real;90"),
        ("8.0 8.6 9.0a", "80-real;86-real;90a-real"),
    ],
)
def test_architectures(tmp_path: Path, wanted: str, expected: str) -> None:
    call = 'hyenarec_cuda_architectures(list)\nmessage("${list}")'
    assert run_cmake(tmp_path, call, TORCH_CUDA_ARCH_LIST=wanted) == expected


def test_architectures_of_the_gpus_present(tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!{shutil.which('sh')}\necho 9.0\necho 8.6\necho 9.0\n")
    tool.chmod(0o755)
    call = 'hyenarec_cuda_architectures(list)\nmessage("${list}")'
    assert run_cmake(tmp_path, call, PATH=str(tool.parent)) == "90-real;86-real"


def test_architectures_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    call = "hyenarec_cuda_architectures(list)"
    refusal = run_cmake(tmp_path, call, TORCH_CUDA_ARCH_LIST="Hopper")
    assert "TORCH_CUDA_ARCH_LIST must hold numbers such as '8.0;9.0+PTX', got 'Hopper'" in refusal


@pytest.fixture
def environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "hyenarec_environment", ROOT / "build_backend" / "hyenarec_environment.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_torch(site_packages: Path, version: str) -> Path:
    torch = site_packages / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text(f"__all__ = []\n__version__ = '{version}'\n")
    return torch


def test_torch_is_found_around_the_isolated_build(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = make_torch(tmp_path, "2.12.1+cu130")
    monkeypatch.setattr(environment, "find_spec", lambda name: None)  # isolation hides it from sys.path
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert environment.find_torch() == torch
    assert environment.torch_version(torch) == "2.12.1+cu130"
    assert environment.build_folder().name.endswith("torch2.12.1-cu130")


def test_no_torch_at_all(environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    monkeypatch.setattr(environment, "_site_folders", lambda: [str(tmp_path)])
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "torch").mkdir()  # what an uninstalled package may leave behind
    assert environment.find_torch() is None
    assert environment.build_folder().name.endswith("torch-none")


def test_torch_that_is_imported_is_the_one_found(environment: ModuleType) -> None:
    import torch

    assert environment.find_torch() == Path(os.path.dirname(torch.__file__))
    assert environment.torch_version(environment.find_torch()) == torch.__version__
