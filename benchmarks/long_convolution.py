"""Times the long convolution on a GPU against other ways to mix events over long histories.

    python benchmarks/long_convolution.py [--device cpu] [--tiny] [--output figures.json]

First the bandwidth of a large copy. Then, for sequences of equal lengths and for packed ones with lengths
like those of MovieLens-1M, forward and forward + backward, in bfloat16 and then in float32 (everything is
timed, including the contraction of tables with the coefficients in each call):

- legendre_conv with skip and both gates; hyena_mixer, which also filters and splits its input
- fft_conv with the same kernel by legendre_kernel; the same in plain torch.fft (equal lengths only, and
  not where its spectra take tens of gigabytes)
- attention: causal scaled_dot_product_attention with flash in bfloat16, heads of 64 (equal lengths only)
- copy: a device copy of the bytes that legendre_conv must move (the same as hyena_mixer's), of at most 2 GiB
  and scaled

They take turns; figures are medians; what does not fit into memory is left out. At each size legendre_conv
and hyena_mixer are first compared with the truth in float64 (a direct sum; beyond 1,024 events an FFT), on 16
channels of the first sequence. If one is wrong, nothing is timed there, and the exit status is 1. The JSON is
written after every row, so that an interrupted run keeps what it has measured. `--tiny` is for trying out
the script.
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

DTYPES = (torch.bfloat16, torch.float32)
HEAD = 64
COMPARED = 16  # channels, evenly spread: decays from bursts to the whole horizon
MOST_COPIED = 2 << 30  # bytes read and written; a larger copy takes memory and tells nothing new
MOST_SPECTRA = 1 << 28  # elements of an activation that plain torch.fft is given


@dataclass(frozen=True)
class Grid:
    """Which sizes: all of equal lengths, and packed ones with the longest of so many events."""

    events: tuple[int, ...]
    channels: tuple[int, ...]
    lengths: tuple[int, ...]
    longest: tuple[int, ...]


GRID = Grid((1 << 17, 1 << 20), (64, 768), (200, 1024, 16384), (200, 2277))
TINY = Grid((1 << 10,), (64,), (100, 500), (200,))

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
    """Arguments of one row, on torch's default device, and the formulations over them."""

    def __init__(self, dtype: torch.dtype, channels: int, lengths: list[int], is_packed: bool) -> None:
        self.dtype, self.channels, self.lengths, self.is_packed = dtype, channels, lengths, is_packed
        self.horizon = max(lengths)
        sizes = (sum(lengths),) if is_packed else (len(lengths), self.horizon)
        self.x = torch.randn(*sizes, 3 * channels, dtype=dtype)
        self.q, self.k, self.v = (part.contiguous() for part in self.x.chunk(3, dim=-1))
        self.grad = torch.randn_like(self.v)
        self.offsets = None
        if is_packed:
            self.offsets = torch.tensor([0, *lengths]).cumsum(0)
        self.coeffs = torch.randn(channels, NUM_COEFFS) / self.horizon**0.5
        self.decay = learned_decay(channels, self.horizon)
        self.skip = torch.randn(channels)
        self.weight = torch.randn(3 * channels, TAPS) / TAPS**0.5
        self.bias = torch.randn(3 * channels)

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
        chosen = torch.arange(COMPARED) * self.channels // COMPARED
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

    def size(self) -> str:
        return f"{self.dtype} D={self.channels} events={sum(self.lengths)} L={self.horizon}"

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
            if self.v.numel() <= MOST_SPECTRA:
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


def problems(grid: Grid) -> Iterator[Problem]:
    for dtype, events, channels in product(DTYPES, grid.events, grid.channels):
        for length in grid.lengths:
            yield Problem(dtype, channels, [length] * (events // length), False)
        for longest in grid.longest:
            yield Problem(dtype, channels, movielens_lengths(longest, events).lengths, True)


def what_fits(runs: dict[str, Run]) -> dict[str, Run]:
    """Those for which the memory is large enough, each tried once."""
    fitting = {}
    for name, run in runs.items():
        try:
            run()
            fitting[name] = run
        except torch.OutOfMemoryError:
            print(f"{name} does not fit into memory")
            torch.cuda.empty_cache()
    return fitting


def measure(problem: Problem, errors: dict[str, float], is_training: bool, repetitions: int) -> Row:
    device, size = problem.x.device.type, problem.copy_bytes(is_training)
    runs = what_fits(problem.formulations(is_training))
    copied = min(size, MOST_COPIED)
    *times, copy = medians([*runs.values(), copy_of(copied, device)], device, repetitions)
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
        milliseconds=dict(zip(runs, times, strict=True)) | {"copy": copy * size / copied},
    )


def row_and_line(problem: Problem, repetitions: int) -> tuple[list[Row], str]:
    """Both directions, if the operators are right, and what to print."""
    errors = problem.errors()
    wrong = {name: error for name, error in errors.items() if not error < TOLERANCE[problem.dtype]}
    if wrong:
        return [], f"WRONG {problem.size()}: {wrong}"
    rows = [measure(problem, errors, is_training, repetitions) for is_training in (False, True)]
    return rows, line(rows)


def bandwidth(device: str, size: int) -> float:
    """Bytes read and written in a second by a copy of `size` bytes."""
    [time] = medians([copy_of(size, device)], device, 9)
    return size / time * 1e3


def line(rows: list[Row]) -> str:
    """One size: hyena_mixer's time over a copy's, and attention's over hyena_mixer's, in both directions."""
    row = rows[0]
    layout = "packed" if row.is_packed else "equal"
    text = f"{row.dtype:8} D={row.channels:<3} {row.events:>7,} {layout:6} L={row.length:<5}"
    for row, title in zip(rows, ("forward", "both"), strict=False):
        times = row.milliseconds
        text += f" {title} {times['hyena_mixer'] / times['copy']:.2f}"
        if "attention" in times:
            text += f" ({times['attention'] / times['hyena_mixer']:.2f})"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Times the long convolution on a GPU; see this file's head.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU takes a moment for")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: nowhere")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_device(options.device)
    head = machine(options.device)
    head["copied_bytes_a_second"] = bandwidth(options.device, 1 << 20 if options.tiny else MOST_COPIED)
    head["failed"], rows, lines = [], [], []
    for problem in problems(TINY if options.tiny else GRID):
        try:
            found, text = row_and_line(problem, options.repetitions)
        except torch.AcceleratorError:  # after which CUDA refuses everything
            raise
        except RuntimeError as error:
            found, text = [], f"FAILED {problem.size()}: {error}"
        if not found:
            head["failed"].append(text)
        rows += [asdict(row) for row in found]
        lines.append(text)
        print(text, flush=True)
        if options.output:
            save(options.output, head | {"rows": rows})
        del problem  # before the next one takes memory
    copied = head["copied_bytes_a_second"] / 1e12
    print(f"a copy moves {copied:.2f} TB/s; hyena_mixer / copy (attention / hyena_mixer):")
    print("\n".join(lines))
    return 1 if head["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
