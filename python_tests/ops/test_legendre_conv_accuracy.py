"""legendre_conv in float32: as exact as the FFT.

The truth is a convolution by FFT in float64, whose error is 1e-15, differentiated by autograd.
"""

from __future__ import annotations

import pytest
import torch
from op_cases import MakeDecay, learned_decay, no_decay
from op_checks import DEVICES, solve
from torch import Tensor

from hyenarec import ops, reference

BATCH, CHANNELS = 2, 16
# Relative errors in the Euclidean norm, and as a multiple of the FFT's. A GPU may use split products.
FORWARD_BOUND = {"cpu": 1e-6, "cuda": 1e-5}
GRADIENT_BOUND = {"cpu": 2e-6, "cuda": 1e-5}
DECAY_BOUND = {"cpu": 5e-6, "cuda": 1e-5}
TIMES_FFT = {"cpu": 5, "cuda": 50}


def fft_convolution(u: Tensor, kernel: Tensor, skip: Tensor, pre_gate: Tensor, post_gate: Tensor) -> Tensor:
    length = u.shape[1]
    z = (pre_gate * u).mT
    spectrum = torch.fft.rfft(z, 2 * length) * torch.fft.rfft(kernel, 2 * length)
    return post_gate * (torch.fft.irfft(spectrum, 2 * length)[..., :length] + skip[:, None] * z).mT


def truth(coeffs: Tensor, decay: Tensor, horizon: int, u: Tensor, **others: Tensor) -> Tensor:
    return fft_convolution(u, reference.legendre_kernel(coeffs, decay, horizon, u.shape[1]), **others)


def by_fft(coeffs: Tensor, decay: Tensor, horizon: int, u: Tensor, **others: Tensor) -> Tensor:
    """What float32 users have: a kernel that is exact to rounding, and torch.fft."""
    return fft_convolution(u, ops.legendre_kernel(coeffs, decay, horizon, u.shape[1]), **others)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    expected = expected.double().cpu()
    return float((actual.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make_decay", [no_decay, learned_decay])
@pytest.mark.parametrize("coefficients", [2, 9, 17, 33])
@pytest.mark.parametrize(
    ("horizon", "length"),
    [(64, 64), (200, 200), (200, 77), (1024, 1024), (1024, 1000), (4096, 4096), (16384, 16384)],
)
def test_float32_is_as_exact_as_fft(
    horizon: int, length: int, coefficients: int, make_decay: MakeDecay, device: str
) -> None:
    generator = torch.Generator().manual_seed(horizon + length + coefficients)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    activation = (BATCH, length, CHANNELS)
    exact = {
        "u": normal(*activation),
        "coeffs": normal(CHANNELS, coefficients),
        "decay": make_decay(CHANNELS, horizon).float(),
        "skip": normal(CHANNELS),
        "pre_gate": normal(*activation),
        "post_gate": normal(*activation),
    }
    grad = normal(*activation)
    results = []
    for op, dtype, place in (
        (truth, torch.float64, "cpu"),
        (ops.legendre_conv, torch.float32, device),
        (by_fft, torch.float32, device),
    ):
        leaves = {name: value.to(place, dtype).requires_grad_() for name, value in exact.items()}
        out, gradients = solve(op, leaves | {"horizon": horizon}, grad)
        results.append({"forward": out} | gradients)
    expected, scan, fft = results
    bounds = {"forward": FORWARD_BOUND[device], "decay": DECAY_BOUND[device]}
    for name, value in expected.items():
        scan_error, fft_error = (relative_error(result[name], value) for result in (scan, fft))
        assert scan_error <= bounds.get(name, GRADIENT_BOUND[device]), name
        assert scan_error <= TIMES_FFT[device] * max(fft_error, torch.finfo(torch.float32).eps / 2), name
