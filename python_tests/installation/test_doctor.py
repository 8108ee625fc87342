"""`hyenarec doctor` passes what is right and notices what is not."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hyenarec import doctor, ops

FUNCTIONS = [
    name
    for name, value in vars(ops).items()
    if inspect.isfunction(value) and value.__module__ == ops.__name__ and not name.startswith("_")
]


def self_test_of(function: str) -> str:
    """The self-test's name for a public function of `hyenarec.ops`: a step's parts are tested as one."""
    return "legendre_step" if function.startswith("legendre_step_") else function


def test_doctor_passes_this_build_and_tells_how_it_was_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    text = capsys.readouterr().out
    assert f"torch {torch.__version__}" in text
    assert "extension: compiled against torch" in text
    lines = [line.strip() for line in text.splitlines()]
    for function in FUNCTIONS:
        for dtype in ("float64", "float32"):
            mine = [line for line in lines if line.startswith(self_test_of(function)) and dtype in line]
            assert mine and all(line.endswith(" ok") for line in mine), function


def test_doctor_leaves_a_gpu_alone_that_the_build_cannot_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    build = dataclasses.replace(doctor.BUILD, cuda_version="13.0", cuda_architectures="90-real")
    monkeypatch.setattr(doctor, "BUILD", build)
    capabilities = [(9, 0), (8, 6)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert doctor.devices() == [torch.device("cpu"), torch.device("cuda", 0)]
    told = [line for line in doctor.describe() if "cannot run" in line]
    assert len(told) == 1
    assert "cannot run on GPU 1: they were compiled for 90-real" in told[0]
    assert 'TORCH_CUDA_ARCH_LIST="8.6" pip install' in told[0]


def slightly_off(out: Tensor) -> Tensor:
    return out * 1.001


def with_a_nan(out: Tensor) -> Tensor:
    return torch.where(torch.arange(out.numel(), device=out.device).reshape(out.shape) == 3, torch.nan, out)


def wrong_gradient(out: Tensor) -> Tensor:
    return out.detach() + 2 * (out - out.detach())


def failing(out: Tensor) -> Tensor:
    raise RuntimeError("cuFFT is out of order")


def cases() -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    for function in FUNCTIONS:
        for fault in (slightly_off, with_a_nan, wrong_gradient, failing):
            without_gradient = self_test_of(function) == "legendre_step"
            never_read = function == "legendre_step_state"  # before a stream's first event
            if not (without_gradient and fault is wrong_gradient) and not (
                never_read and fault is not failing
            ):
                yield function, fault


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "fault"), list(cases()))
def test_doctor_notices_a_fault(
    operator: str,
    fault: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = getattr(ops, operator)

    def wrong(*args: object, **kwargs: object) -> object:
        out = right(*args, **kwargs)
        return (fault(out[0]), *out[1:]) if isinstance(out, tuple) else fault(out)

    monkeypatch.setattr(ops, operator, wrong)
    assert doctor.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("an operator is WRONG")
    for line in lines:
        if "float64" in line:
            assert (" ok" in line) == (not line.strip().startswith(self_test_of(operator))), line
