"""Times legendre_kernel, short_conv and fft_conv, forward and backward, against plain torch and a copy.

    python benchmarks/ops.py [--device cuda] [--output figures.json]

The operators of the Legendre scan have benchmarks of their own: `legendre_conv.py` and `streaming.py` on a
CPU, `long_convolution.py` on a GPU. For each operator, direction, dtype, length L and channels D:

- ours: the operator of `hyenarec.ops`
- plain: the usual formulation in torch: `torch.fft` for the long convolution, `conv1d` for the short one, the
  recurrence in torch for the kernel
- copy: a device copy that moves as many bytes as the operator must, each input read once and each output
  written once; where memory is the limit, nothing can be faster

The three take turns, so that a change of clocks or a busy neighbour affects all of them; figures are medians.
Each operator's result is compared with the plain one in float64 before it is timed. One JSON file holds the
machine, the versions, the commit and all figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from convolutions import plain_fft_conv
from report import machine, write
from timing import Function, copy_of, gradients, medians
from torch import Tensor

from hyenarec import ops

NUM_COEFFS = 17
TAPS = 4
# Elements of an activation: on a GPU, several times its second-level cache; on a CPU, tens of milliseconds.
ELEMENTS = {"cuda": 1 << 25, "cpu": 1 << 19}
SHAPES = {
    "cuda": [(length, channels) for length in (256, 1024, 4096) for channels in (64, 768)],
    "cpu": [(256, 64), (1024, 64), (4096, 64)],
}
DTYPES = {"cuda": [torch.float32, torch.bfloat16], "cpu": [torch.float32]}
# Largest error against float64, relative to the norm.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Problem:
    """One operator at one size: both formulations, their arguments, the bytes each direction must move."""

    op: str
    ours: Function
    plain: Function
    arguments: list[Tensor]
    forward_bytes: int
    backward_bytes: int


@dataclass(frozen=True)
class Figure:
    """Milliseconds are medians; `error` is ours against plain in float64: the output's or the gradients'."""

    op: str
    direction: str
    dtype: str
    batch: int
    length: int
    channels: int
    ours_ms: float
    plain_ms: float
    copy_ms: float
    plain_over_ours: float
    ours_over_copy: float
    bytes: int
    error: float
    repetitions: int


def plain_short_conv(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    taps = weight.flip(1).unsqueeze(1).to(u.dtype)
    padded = torch.nn.functional.pad(u.transpose(1, 2), (weight.shape[1] - 1, 0))
    out = torch.nn.functional.conv1d(padded, taps, bias.to(u.dtype), groups=u.shape[2])
    return out.transpose(1, 2)


def plain_legendre_kernel(coeffs: Tensor, decay: Tensor, length: int) -> Tensor:
    lag = torch.arange(length, device=coeffs.device, dtype=torch.float64)
    u = 2 * lag / (length - 1) - 1
    basis = [torch.ones_like(u), u]
    for n in range(1, coeffs.shape[1] - 1):
        basis.append(((2 * n + 1) * u * basis[n] - n * basis[n - 1]) / (n + 1))
    polynomials = torch.stack(basis).to(coeffs.dtype)
    decayed: Tensor = torch.exp(-decay[:, None] * lag.to(coeffs.dtype)) * (coeffs @ polynomials)
    return decayed


def problems(device: str, dtype: torch.dtype, batch: int, length: int, channels: int) -> Iterator[Problem]:
    """The three operators at one size, with fresh random arguments."""

    def activation() -> Tensor:
        return torch.randn(batch, length, channels, device=device, dtype=dtype)

    def parameter(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=device)

    moved = batch * length * channels * dtype.itemsize  # one activation, once
    kernel_bytes = channels * length * 4
    if dtype == torch.float32:  # it has no activations
        yield Problem(
            "legendre_kernel",
            lambda coeffs, decay: ops.legendre_kernel(coeffs, decay, length, length),
            lambda coeffs, decay: plain_legendre_kernel(coeffs, decay, length),
            [parameter(channels, NUM_COEFFS), torch.rand(channels, device=device) / 8],
            forward_bytes=kernel_bytes,
            backward_bytes=kernel_bytes,
        )
    yield Problem(
        "short_conv",
        ops.short_conv,
        plain_short_conv,
        [activation(), parameter(channels, TAPS), parameter(channels)],
        forward_bytes=2 * moved,  # u -> out
        backward_bytes=3 * moved,  # grad, u -> grad_u
    )
    kernel, skip = parameter(channels, length) / length**0.5, parameter(channels)
    yield Problem(
        "fft_conv",
        ops.fft_conv,
        plain_fft_conv,
        [activation(), kernel, skip, activation(), activation()],
        forward_bytes=4 * moved + kernel_bytes,  # u, two gates -> out
        backward_bytes=7 * moved + 2 * kernel_bytes,  # grad, u, two gates -> three gradients
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """norm(actual - expected) / norm(expected), in float64; NaN where a number is."""
    return float((actual.double() - expected).norm() / expected.norm())


def errors(problem: Problem) -> tuple[float, float]:
    """Forward and worst backward error against the plain formulation in float64, on the first sequence."""
    arguments = [a[:1] if a.dim() == 3 else a for a in problem.arguments]
    exact = [argument.double() for argument in arguments]
    forward = relative_error(problem.ours(*arguments), problem.plain(*exact))
    grad = torch.randn_like(problem.ours(*arguments))
    ours, plain = gradients(problem.ours, arguments, grad), gradients(problem.plain, exact, grad.double())
    pairs = zip(ours(), plain(), strict=True)
    return forward, max(relative_error(actual, expected) for actual, expected in pairs)


def measure(
    problem: Problem, dtype: torch.dtype, shape: tuple[int, int, int], repetitions: int
) -> Iterator[Figure]:
    """The figures of both directions."""
    device = problem.arguments[0].device.type
    formulations = (problem.ours, problem.plain)
    for direction, error, size in zip(
        ("forward", "backward"), errors(problem), (problem.forward_bytes, problem.backward_bytes), strict=True
    ):
        if not error < TOLERANCE[dtype]:
            raise RuntimeError(
                f"{problem.op} {direction} at {shape} in {dtype} is wrong: relative error {error:.1e}"
            )
        functions: list[Callable[[], object]]
        if direction == "forward":
            functions = [partial(f, *problem.arguments) for f in formulations]
        else:
            grad = torch.randn_like(problem.ours(*problem.arguments))
            functions = [gradients(f, problem.arguments, grad) for f in formulations]
        ours, plain, copy = medians([*functions, copy_of(size, device)], device, repetitions)
        yield Figure(
            op=problem.op,
            direction=direction,
            dtype=str(dtype).removeprefix("torch."),
            batch=shape[0],
            length=shape[1],
            channels=shape[2],
            ours_ms=ours,
            plain_ms=plain,
            copy_ms=copy,
            plain_over_ours=plain / ours,
            ours_over_copy=ours / copy,
            bytes=size,
            error=error,
            repetitions=repetitions,
        )


def print_row(figure: Figure) -> None:
    print(
        f"{figure.op:16} {figure.direction:9} {figure.dtype:9} B={figure.batch:<5} L={figure.length:<5} "
        f"D={figure.channels:<4} ours {figure.ours_ms:9.4f} ms  plain {figure.plain_ms:9.4f} ms "
        f"({figure.plain_over_ours:5.2f}x)  copy {figure.copy_ms:9.4f} ms ({figure.ours_over_copy:6.2f}x)  "
        f"error {figure.error:.1e}",
        flush=True,
    )


def main() -> int:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description="Times three operators; see this file's head.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: nowhere")
    options = parser.parse_args()

    torch.manual_seed(0)
    figures = []
    for dtype in DTYPES[options.device]:
        for length, channels in SHAPES[options.device]:
            batch = max(1, ELEMENTS[options.device] // (length * channels))
            for problem in problems(options.device, dtype, batch, length, channels):
                for figure in measure(problem, dtype, (batch, length, channels), options.repetitions):
                    print_row(figure)
                    figures.append(figure)
    if options.output:
        write(options.output, machine(options.device) | {"figures": [asdict(figure) for figure in figures]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
