"""Runs every CUDA kernel once on small inputs: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python benchmarks/small_cases.py

With --out-of-bounds it only makes short_conv read beyond a tensor instead, which memcheck must find.

Sizes are chosen so that each kernel has full and ragged tiles, several blocks, and both its vector and scalar
paths; HYENAREC_FFT_WORKSPACE_MIB=0 makes fft_conv take one sequence and one channel at a time.
"""

from __future__ import annotations

import contextlib
import os
import sys
from itertools import product

import torch
from torch import Tensor

from hyenarec import ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def leaf(*sizes: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*sizes, device="cuda", dtype=torch.float64).to(dtype).requires_grad_()


def backward(out: Tensor) -> None:
    torch.autograd.backward(out, torch.randn_like(out))


def run(dtype: torch.dtype) -> None:
    """Every operator, forward and backward where it has that, with activations of one dtype."""
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    for channels in (5, 40):  # 40: rows of 16 bytes in every dtype
        skip = leaf(channels, dtype=parameters)
        gates = [leaf(3, 50, channels, dtype=dtype) for _ in range(2)]
        u, kernel = leaf(3, 50, channels, dtype=dtype), leaf(channels, 50, dtype=parameters)
        backward(ops.fft_conv(u, kernel, skip, *gates))

        for width in (3, 8):
            weight, bias = leaf(channels, width, dtype=parameters), leaf(channels, dtype=parameters)
            backward(ops.short_conv(leaf(3, 50, channels, dtype=dtype), weight, bias))
            offsets = torch.tensor([0, 0, 7, 8, 150, 150], device="cuda")
            backward(ops.short_conv(leaf(150, channels, dtype=dtype), weight, bias, offsets))

        run_norms(dtype, parameters, channels)
        run_losses(dtype, channels)
        run_scans(dtype, parameters, channels)
        run_steps(dtype, parameters, channels)

        if dtype == parameters:
            for coefficients in (17, 75):
                decay = torch.rand(channels, device="cuda", dtype=dtype).requires_grad_()
                backward(ops.legendre_kernel(leaf(channels, coefficients, dtype=dtype), decay, 700, 650))


def run_norms(dtype: torch.dtype, parameters: torch.dtype, channels: int) -> None:
    """Teams that are a part of a warp, a warp, and a block; the widest rows are more than registers hold."""
    for width in (channels, 20 * channels, 250 * channels):
        weight, bias = leaf(width, dtype=parameters), leaf(width, dtype=parameters)
        seed = torch.tensor(5, device="cuda")
        for residual in (leaf(30, width, dtype=dtype), leaf(30, width, dtype=torch.float32), None):
            branch = leaf(30, width, dtype=dtype)
            for output in (0, 1):
                backward(ops.dropout_add_layer_norm(branch, residual, weight, bias, 0.2, seed=seed)[output])
            backward(torch.stack(ops.dropout_add_layer_norm(branch, residual, weight, bias)))


def run_losses(dtype: torch.dtype, channels: int) -> None:
    """A warp a row and several; all items and sampled ones; gradients in the forward pass and after it."""
    for items in (7, 3000):
        target = torch.arange(-1, 199, device="cuda") % items
        target[::5] = -1
        sampled = {"candidates": torch.arange(0, items, 3, device="cuda").repeat(2)}
        for options, reduction in product(({"label_smoothing": 0.1}, sampled), ("mean", "none")):
            hidden, weight = leaf(200, channels, dtype=dtype), leaf(items, channels, dtype=dtype)
            bias = leaf(items, dtype=dtype)
            backward(ops.linear_cross_entropy(hidden, weight, bias, target, reduction=reduction, **options))


def run_scans(dtype: torch.dtype, parameters: torch.dtype, channels: int) -> None:
    """The Legendre scan: every compiled number of coefficients, padded, packed, one sequence in segments."""
    offsets = torch.tensor([0, 0, 7, 8, 150, 150], device="cuda")
    layouts: list[tuple[tuple[int, ...], Tensor | None]] = [
        ((3, 70), None),
        ((150,), offsets),
        ((1, 1000), None),
    ]
    for coefficients, (sizes, bounds) in product((9, 17, 33, 40), layouts):
        horizon = max(142, sizes[-1])
        coeffs, skip = leaf(channels, coefficients, dtype=parameters), leaf(channels, dtype=parameters)
        decay = torch.rand(channels, device="cuda", dtype=parameters).requires_grad_()
        u, *gates = (leaf(*sizes, channels, dtype=dtype) for _ in range(3))
        backward(ops.legendre_conv(u, coeffs, decay, horizon, skip, *gates, bounds))
        for width in (3, 8):
            weight, bias = leaf(3 * channels, width, dtype=parameters), leaf(3 * channels, dtype=parameters)
            x = leaf(*sizes, 3 * channels, dtype=dtype)
            backward(ops.hyena_mixer(x, weight, bias, coeffs, decay, horizon, skip, bounds))


@torch.no_grad()
def run_steps(dtype: torch.dtype, parameters: torch.dtype, channels: int) -> None:
    """Streams at different positions: across ends of chunks, up to the horizon, without and with gates."""
    horizon, length = 140, 70
    positions = torch.tensor([0, 15, horizon - length], device="cuda")
    for coefficients in (0, 9, 33, 40):
        coeffs, skip = leaf(channels, coefficients, dtype=parameters), leaf(channels, dtype=parameters)
        decay = torch.rand(channels, device="cuda", dtype=parameters)
        weights = ops.legendre_step_weights(coeffs, decay, horizon, skip)
        state = ops.legendre_step_state(coeffs, len(positions))
        u, *gates = (leaf(len(positions), length, channels, dtype=dtype) for _ in range(3))
        ops.legendre_step(state, u, positions, weights, horizon, *gates)
        ops.legendre_step(state, u[:, 0], positions, weights, horizon)


def read_out_of_bounds() -> None:
    """Shrinks the memory behind a tensor that keeps its shape, and lets short_conv read it."""
    u = torch.zeros(4, 64, 64, device="cuda")
    u.untyped_storage().resize_(1024)
    with contextlib.suppress(RuntimeError):  # the launch fails if the error is found: that is what is wanted
        ops.short_conv(u, torch.zeros(64, 3, device="cuda"))
        torch.cuda.synchronize()


def main() -> int:
    if sys.argv[1:] == ["--out-of-bounds"]:
        read_out_of_bounds()
        sys.stdout.flush()
        os._exit(0)  # no tidying up: CUDA may not work any more
    torch.manual_seed(0)
    for dtype in DTYPES:
        run(dtype)
    torch.cuda.synchronize()
    print("every kernel has run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
