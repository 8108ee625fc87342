"""`hyenarec doctor` passes what is right and notices what is not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyenarec import doctor, ops


def test_doctor_passes_this_build_and_tells_how_it_was_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    text = capsys.readouterr().out
    assert f"torch {torch.__version__}" in text
    assert "extension: compiled against torch" in text
    for operator in ("legendre_kernel", "fft_conv", "short_conv"):
        for dtype in ("float64", "float32"):
            assert any(operator in line and dtype in line and " ok" in line for line in text.splitlines())


def slightly_off(out: Tensor) -> Tensor:
    return out * 1.001


def with_a_nan(out: Tensor) -> Tensor:
    return torch.where(torch.arange(out.numel(), device=out.device).reshape(out.shape) == 3, torch.nan, out)


def wrong_gradient(out: Tensor) -> Tensor:
    return out.detach() + 2 * (out - out.detach())


def failing(out: Tensor) -> Tensor:
    raise RuntimeError("cuFFT is out of order")


@pytest.mark.parametrize("fault", [slightly_off, with_a_nan, wrong_gradient, failing])
@pytest.mark.parametrize("operator", ["legendre_kernel", "fft_conv", "short_conv"])
def test_doctor_notices_a_fault(
    fault: Callable[[Tensor], Tensor],
    operator: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = getattr(ops, operator)
    monkeypatch.setattr(ops, operator, lambda *args, **kwargs: fault(right(*args, **kwargs)))
    assert doctor.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("an operator is WRONG")
    for line in lines:
        if "float64" in line:
            assert (" ok" in line) == (not line.strip().startswith(operator)), line
