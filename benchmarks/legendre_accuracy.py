"""How accurate the Legendre scan is in float32, compared with torch.fft in float32; see legendre_conv.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from convolutions import learned_decay, plain_fft_conv
from ops import relative_error
from torch import Tensor

from hyenarec import ops, reference

HORIZONS = (64, 200, 1024, 4096, 16384)
NUM_COEFFS = (2, 9, 17, 33)
BATCH, CHANNELS = 2, 16
LONGEST_DIRECT = 1024  # the direct sum holds a matrix [D, L, L]; beyond, the truth is an FFT in float64
NAMES = ("forward", "u", "coeffs", "decay", "skip", "pre_gate", "post_gate")  # the output, then the gradients

Solve = Callable[..., Tensor]


@dataclass(frozen=True)
class Figure:
    """Errors relative in the Euclidean norm, by what they are of; times_fft are ratios of the two.

    The FFT's error counts as half a float32's spacing at least.
    """

    horizon: int
    length: int
    num_coeffs: int
    has_decay: bool
    error: dict[str, float]
    fft_error: dict[str, float]
    times_fft: dict[str, float]


def by_fft(u: Tensor, coeffs: Tensor, decay: Tensor, horizon: int, *others: Tensor) -> Tensor:
    """The FFT's best case: its kernel is exact to rounding."""
    return plain_fft_conv(u, ops.legendre_kernel(coeffs, decay, horizon, u.shape[1]), *others)


def truth(u: Tensor, coeffs: Tensor, decay: Tensor, horizon: int, *others: Tensor) -> Tensor:
    if u.shape[1] <= LONGEST_DIRECT:
        return reference.legendre_conv(u, coeffs, decay, horizon, *others)
    return plain_fft_conv(u, reference.legendre_kernel(coeffs, decay, horizon, u.shape[1]), *others)


def results(solve: Solve, arguments: list[Tensor], horizon: int, grad: Tensor) -> dict[str, Tensor]:
    """The output and each argument's gradient, by name."""
    leaves = [argument.detach().requires_grad_() for argument in arguments]
    u, coeffs, decay, *others = leaves
    out = solve(u, coeffs, decay, horizon, *others)
    return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, leaves, grad)), strict=True))


def measure(horizon: int, length: int, num_coeffs: int, has_decay: bool) -> Figure:
    generator = torch.Generator().manual_seed(horizon + length + num_coeffs)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    activation = (BATCH, length, CHANNELS)
    decay = learned_decay(CHANNELS, horizon) if has_decay else torch.zeros(CHANNELS)
    parameters = [normal(CHANNELS, num_coeffs), decay, normal(CHANNELS)]
    arguments = [normal(*activation), *parameters, normal(*activation), normal(*activation)]
    grad = normal(*activation)
    expected = results(truth, [argument.double() for argument in arguments], horizon, grad.double())
    scan = results(ops.legendre_conv, arguments, horizon, grad)
    fft = results(by_fft, arguments, horizon, grad)
    error = {name: relative_error(scan[name], expected[name]) for name in NAMES}
    fft_error = {name: relative_error(fft[name], expected[name]) for name in NAMES}
    least = torch.finfo(torch.float32).eps / 2
    times_fft = {name: error[name] / max(fft_error[name], least) for name in NAMES}
    return Figure(horizon, length, num_coeffs, has_decay, error, fft_error, times_fft)


def measure_all() -> list[Figure]:
    return [
        measure(horizon, length, num_coeffs, has_decay)
        for horizon, num_coeffs, has_decay in product(HORIZONS, NUM_COEFFS, (False, True))
        for length in (horizon, 5 * horizon // 8 + 1)
    ]
