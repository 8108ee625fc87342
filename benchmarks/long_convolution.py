"""Times the long convolution on a GPU beside what else mixes events over long histories.

    python benchmarks/long_convolution.py [--output figures.json]

For sequences of equal lengths and for packed ones with lengths like MovieLens-1M's, forward and forward +
backward (everything inside, tables contracted with fresh coefficients each call):

- legendre_conv with skip and both gates; hyena_mixer, which also filters and splits its input
- fft_conv with the same kernel by legendre_kernel; the same in plain torch.fft (equal lengths only)
- attention: causal scaled_dot_product_attention with flash in bfloat16, heads of 64 (equal lengths only)
- copy: a device copy of the bytes that legendre_conv must move (hyena_mixer's are the same)

The formulations take turns; figures are medians. At each size legendre_conv and hyena_mixer are first
compared with the truth in float64 (a direct sum, beyond 1,024 events an FFT), on 16 channels of the first
sequence. The JSON is written after every row, so that a run that is cut short leaves what it has measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from convolutions import TAPS, learned_decay, movielens_lengths, plain_fft_conv
from legendre_accuracy import truth
from ops import NUM_COEFFS, TOLERANCE, relative_error
from report import machine, save
from timing import Function, copy_of, forward_backward, medians
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hyenarec import ops, reference

LENGTHS = (256, 1024, 4096, 16384)
LONGEST = (200, 2277)  # of packed sequences: MovieLens-1M's at max_len 200, and whole
CHANNELS = (64, 256, 768)
EVENTS = (1 << 16, 1 << 20)
HEAD = 64
COMPARED = 16  # channels, evenly spread: decays from bursts to the whole horizon
DEVICE = "cuda"

Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """Milliseconds of each formulation; lengths are those of all sequences, or the longest of packed ones."""

    direction: str
    dtype: str
    channels: int
    events: int
    sequences: int
    length: int
    is_packed: bool
    copy_bytes: int
    errors: dict[str, float]
    milliseconds: dict[str, float]


class Problem:
    """Arguments of one row and the formulations over them."""

    def __init__(self, dtype: torch.dtype, channels: int, lengths: list[int], is_packed: bool) -> None:
        self.dtype, self.channels, self.lengths, self.is_packed = dtype, channels, lengths, is_packed
        self.horizon = max(lengths)
        sizes = (sum(lengths),) if is_packed else (len(lengths), self.horizon)
        self.x = torch.randn(*sizes, 3 * channels, device=DEVICE, dtype=dtype)
        self.q, self.k, self.v = (part.contiguous() for part in self.x.chunk(3, dim=-1))
        self.grad = torch.randn_like(self.v)
        self.offsets = None
        if is_packed:
            self.offsets = torch.tensor([0, *lengths], device=DEVICE).cumsum(0)
        self.coeffs = torch.randn(channels, NUM_COEFFS, device=DEVICE) / self.horizon**0.5
        self.decay = learned_decay(channels, self.horizon).to(DEVICE)
        self.skip = torch.randn(channels, device=DEVICE)
        self.weight = torch.randn(3 * channels, TAPS, device=DEVICE) / TAPS**0.5
        self.bias = torch.randn(3 * channels, device=DEVICE)

    def legendre_conv(self, q: Tensor, k: Tensor, v: Tensor, *parameters: Tensor) -> Tensor:
        coeffs, decay, skip = parameters
        return ops.legendre_conv(v, coeffs, decay, self.horizon, skip, k, q, self.offsets)

    def hyena_mixer(self, x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor) -> Tensor:
        coeffs, decay, skip = parameters
        return ops.hyena_mixer(x, weight, bias, coeffs, decay, self.horizon, skip, self.offsets)

    def fft_conv(self, q: Tensor, k: Tensor, v: Tensor, *parameters: Tensor) -> Tensor:
        coeffs, decay, skip = parameters
        return ops.fft_conv(v, ops.legendre_kernel(coeffs, decay, self.horizon, v.shape[1]), skip, k, q)

    def torch_fft(self, q: Tensor, k: Tensor, v: Tensor, *parameters: Tensor) -> Tensor:
        coeffs, decay, skip = parameters
        kernel = ops.legendre_kernel(coeffs, decay, self.horizon, v.shape[1])
        return plain_fft_conv(v, kernel, skip, k, q)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, length, channels = v.shape
        heads = [part.view(batch, length, channels // HEAD, HEAD).transpose(1, 2) for part in (q, k, v)]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = scaled_dot_product_attention(*heads, is_causal=True)
        return out.transpose(1, 2).reshape(batch, length, channels)

    def errors(self) -> dict[str, float]:
        """Of COMPARED channels of the first sequence, against the truth in float64."""
        chosen = torch.arange(COMPARED, device=DEVICE) * self.channels // COMPARED
        columns = torch.cat([chosen + part * self.channels for part in range(3)])  # of q, k, v
        coeffs, decay, skip = (parameter[chosen].double() for parameter in self.parameters())

        def convolve(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return truth(v, coeffs, decay, self.horizon, skip, k, q)

        x = self.first(self.x)[..., columns].double()
        filtered = reference.short_conv(x, self.weight[columns].double(), self.bias[columns].double())
        conv = self.legendre_conv(self.q, self.k, self.v, *self.parameters())
        mixer = self.hyena_mixer(self.x, self.weight, self.bias, *self.parameters())
        return {
            "legendre_conv": relative_error(self.first(conv)[..., chosen], convolve(*x.chunk(3, dim=-1))),
            "hyena_mixer": relative_error(
                self.first(mixer)[..., chosen], convolve(*filtered.chunk(3, dim=-1))
            ),
        }

    def first(self, activation: Tensor) -> Tensor:
        """Its first sequence, [1, L, columns]."""
        return activation[None, : self.lengths[0]] if self.is_packed else activation[:1]

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.coeffs, self.decay, self.skip

    def formulations(self, is_training: bool) -> dict[str, Run]:
        """What is timed, with its arguments; with its backward pass if is_training."""
        parts, parameters = (self.q, self.k, self.v), self.parameters()
        runs: dict[str, tuple[Function, tuple[Tensor, ...], Tensor]] = {
            "legendre_conv": (self.legendre_conv, (*parts, *parameters), self.grad),
            "hyena_mixer": (self.hyena_mixer, (self.x, self.weight, self.bias, *parameters), self.grad),
        }
        if not self.is_packed:
            runs["fft_conv"] = (self.fft_conv, (*parts, *parameters), self.grad)
            runs["torch_fft"] = (self.torch_fft, (*parts, *parameters), self.grad)
            narrow = tuple(part.bfloat16() for part in parts)
            runs["attention"] = (self.attention, narrow, self.grad.bfloat16())
        if is_training:
            return {
                name: forward_backward(run, list(inputs), grad) for name, (run, inputs, grad) in runs.items()
            }
        return {name: partial(run, *inputs) for name, (run, inputs, _) in runs.items()}

    def copy_bytes(self, is_training: bool) -> int:
        # Forward three inputs and the output; backward the inputs, the gradient and three gradients.
        return self.v.numel() * self.dtype.itemsize * (4 + 7 * is_training)


def problems() -> Iterator[Problem]:
    for dtype, events, channels in product((torch.float32, torch.bfloat16), EVENTS, CHANNELS):
        for length in LENGTHS:
            yield Problem(dtype, channels, [length] * (events // length), False)
        for longest in LONGEST:
            yield Problem(dtype, channels, movielens_lengths(longest, events).lengths, True)


def checked_errors(problem: Problem) -> dict[str, float]:
    """Raises if an operator is wrong: then there is nothing to time."""
    errors = problem.errors()
    for name, error in errors.items():
        if not error < TOLERANCE[problem.dtype]:
            raise RuntimeError(f"{name} is wrong at horizon {problem.horizon}: relative error {error:.1e}")
    return errors


def measure(problem: Problem, errors: dict[str, float], is_training: bool, repetitions: int) -> Row:
    size = problem.copy_bytes(is_training)
    runs = problem.formulations(is_training) | {"copy": copy_of(size, DEVICE)}
    times = medians(list(runs.values()), DEVICE, repetitions)
    return Row(
        direction="forward + backward" if is_training else "forward",
        dtype=str(problem.dtype).removeprefix("torch."),
        channels=problem.channels,
        events=sum(problem.lengths),
        sequences=len(problem.lengths),
        length=problem.horizon,
        is_packed=problem.is_packed,
        copy_bytes=size,
        errors=errors,
        milliseconds=dict(zip(runs, times, strict=True)),
    )


def print_row(row: Row) -> None:
    times = "  ".join(f"{name} {time:8.4f}" for name, time in row.milliseconds.items())
    layout = "packed" if row.is_packed else "equal"
    print(
        f"{row.direction:18} {row.dtype:8} D={row.channels:<4} events={row.events:<8} {layout:6} "
        f"L={row.length:<6} {times} ms  "
        f"hyena_mixer/copy {row.milliseconds['hyena_mixer'] / row.milliseconds['copy']:.2f}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Times the long convolution on a GPU; see this file's head.")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: nowhere")
    options = parser.parse_args()
    torch.manual_seed(0)
    head, rows = machine(DEVICE), []
    for problem in problems():
        errors = checked_errors(problem)
        for is_training in (False, True):
            rows.append(asdict(row := measure(problem, errors, is_training, options.repetitions)))
            print_row(row)
            if options.output:
                save(options.output, head | {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
