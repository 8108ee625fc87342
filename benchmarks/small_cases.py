"""Runs every CUDA kernel once on small inputs, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python benchmarks/small_cases.py [--dtypes float32] [--channels 40]
        [--coefficients 17 40]

With --out-of-bounds it only makes short_conv read beyond a tensor, which memcheck must find.

By default each kernel has full and ragged tiles, several blocks, and both its vector and scalar paths. A
sanitizer takes minutes for all of them; the options choose a part. HYENAREC_FFT_WORKSPACE_MIB=0 makes
fft_conv take one sequence and one channel at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from itertools import product

import torch
from torch import Tensor

from hyenarec import ops

DTYPES = ("float32", "float64", "bfloat16", "float16")
CHANNELS = (5, 40)  # 40: rows of 16 bytes in every dtype
COEFFICIENTS = (9, 17, 33, 40)  # each is compiled for by itself


def leaf(*sizes: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64).to(dtype).requires_grad_()


def backward(out: Tensor) -> None:
    torch.autograd.backward(out, torch.randn_like(out))


def run(dtype: torch.dtype, all_channels: list[int], all_coefficients: list[int]) -> None:
    """Every operator, forward and backward where it has that, with activations of one dtype."""
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    for channels in all_channels:
        skip = leaf(channels, dtype=parameters)
        gates = [leaf(3, 50, channels, dtype=dtype) for _ in range(2)]
        u, kernel = leaf(3, 50, channels, dtype=dtype), leaf(channels, 50, dtype=parameters)
        backward(ops.fft_conv(u, kernel, skip, *gates))

        for width in (3, 8):
            weight, bias = leaf(channels, width, dtype=parameters), leaf(channels, dtype=parameters)
            backward(ops.short_conv(leaf(3, 50, channels, dtype=dtype), weight, bias))
            offsets = torch.tensor([0, 0, 7, 8, 150, 150])
            backward(ops.short_conv(leaf(150, channels, dtype=dtype), weight, bias, offsets))

        print(
            f"{dtype}, {channels} channels: convolutions", flush=True
        )  # how far a run came that is cut short
        run_norms(dtype, parameters, channels)
        run_losses(dtype, channels)
        print(f"{dtype}, {channels} channels: norms, losses", flush=True)
        run_scans(dtype, parameters, channels, all_coefficients)
        run_steps(dtype, parameters, channels, all_coefficients)
        print(f"{dtype}, {channels} channels: scans, steps", flush=True)

        if dtype == parameters:
            for coefficients in (17, 75):
                decay = torch.rand(channels, dtype=dtype).requires_grad_()
                backward(ops.legendre_kernel(leaf(channels, coefficients, dtype=dtype), decay, 700, 650))


def run_norms(dtype: torch.dtype, parameters: torch.dtype, channels: int) -> None:
    """Teams that are a part of a warp, a warp, and a block; the widest rows are more than registers hold."""
    for width in (channels, 20 * channels, 250 * channels):
        weight, bias = leaf(width, dtype=parameters), leaf(width, dtype=parameters)
        seed = torch.tensor(5)
        for residual in (leaf(30, width, dtype=dtype), leaf(30, width, dtype=torch.float32), None):
            branch = leaf(30, width, dtype=dtype)
            for output in (0, 1):
                backward(ops.dropout_add_layer_norm(branch, residual, weight, bias, 0.2, seed=seed)[output])
            backward(torch.stack(ops.dropout_add_layer_norm(branch, residual, weight, bias)))


def run_losses(dtype: torch.dtype, channels: int) -> None:
    """A warp a row and several; all items and sampled ones; gradients in the forward pass and after it."""
    for items in (7, 3000):
        target = torch.arange(-1, 199) % items
        target[::5] = -1
        sampled = {"candidates": torch.arange(0, items, 3).repeat(2)}
        for options, reduction in product(({"label_smoothing": 0.1}, sampled), ("mean", "none")):
            hidden, weight = leaf(200, channels, dtype=dtype), leaf(items, channels, dtype=dtype)
            bias = leaf(items, dtype=dtype)
            backward(ops.linear_cross_entropy(hidden, weight, bias, target, reduction=reduction, **options))


def run_scans(
    dtype: torch.dtype, parameters: torch.dtype, channels: int, all_coefficients: list[int]
) -> None:
    """The Legendre scan: padded, packed, one sequence in segments."""
    offsets = torch.tensor([0, 0, 7, 8, 150, 150])
    layouts: list[tuple[tuple[int, ...], Tensor | None]] = [
        ((3, 70), None),
        ((150,), offsets),
        ((1, 1000), None),
    ]
    for coefficients, (sizes, bounds) in product(all_coefficients, layouts):
        horizon = max(142, sizes[-1])
        coeffs, skip = leaf(channels, coefficients, dtype=parameters), leaf(channels, dtype=parameters)
        decay = torch.rand(channels, dtype=parameters).requires_grad_()
        u, *gates = (leaf(*sizes, channels, dtype=dtype) for _ in range(3))
        backward(ops.legendre_conv(u, coeffs, decay, horizon, skip, *gates, bounds))
        for width in (3, 8):
            weight, bias = leaf(3 * channels, width, dtype=parameters), leaf(3 * channels, dtype=parameters)
            x = leaf(*sizes, 3 * channels, dtype=dtype)
            backward(ops.hyena_mixer(x, weight, bias, coeffs, decay, horizon, skip, bounds))


@torch.no_grad()
def run_steps(
    dtype: torch.dtype, parameters: torch.dtype, channels: int, all_coefficients: list[int]
) -> None:
    """Streams at different positions: across ends of chunks, up to the horizon, without and with gates."""
    horizon, length = 140, 70
    positions = torch.tensor([0, 15, horizon - length])
    for coefficients in (0, *all_coefficients):
        coeffs, skip = leaf(channels, coefficients, dtype=parameters), leaf(channels, dtype=parameters)
        decay = torch.rand(channels, dtype=parameters)
        weights = ops.legendre_step_weights(coeffs, decay, horizon, skip)
        state = ops.legendre_step_state(coeffs, len(positions))
        u, *gates = (leaf(len(positions), length, channels, dtype=dtype) for _ in range(3))
        ops.legendre_step(state, u, positions, weights, horizon, *gates)
        ops.legendre_step(state, u[:, 0], positions, weights, horizon)


def read_out_of_bounds() -> None:
    """Shrinks the memory behind a tensor that keeps its shape, and lets short_conv read it."""
    u = torch.zeros(4, 64, 64)
    u.untyped_storage().resize_(1024)
    with contextlib.suppress(RuntimeError):  # the launch fails if the error is found: that is what is wanted
        ops.short_conv(u, torch.zeros(64, 3))
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs every CUDA kernel once; see this file's head.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--channels", nargs="+", type=int, default=list(CHANNELS))
    parser.add_argument("--coefficients", nargs="+", type=int, default=list(COEFFICIENTS))
    parser.add_argument("--out-of-bounds", action="store_true")
    options = parser.parse_args()
    torch.set_default_device(options.device)
    if options.out_of_bounds and options.device != "cuda":
        parser.error("--out-of-bounds needs --device cuda: on a CPU nobody would watch it")
    if options.out_of_bounds:
        read_out_of_bounds()
        sys.stdout.flush()
        os._exit(0)  # no tidying up: CUDA may not work any more
    torch.manual_seed(0)
    for dtype in options.dtypes:
        run(getattr(torch, dtype), options.channels, options.coefficients)
    if options.device == "cuda":
        torch.cuda.synchronize()
    print("every kernel has run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
