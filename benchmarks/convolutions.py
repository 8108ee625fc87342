"""The long convolution at one size: the operators and the usual formulation in torch, ready to be timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from timing import Function, forward_backward
from torch import Tensor

from hyenarec import ops, reference

CHANNELS = 64
TAPS = 4
DIRECTIONS = ("forward", "forward + backward")


@dataclass(frozen=True)
class Call:
    """A function with its arguments, and a gradient at its output."""

    function: Function
    arguments: list[Tensor]
    grad: Tensor

    def run(self, direction: str) -> Callable[[], object]:
        """What computes the output, or the output and the gradients of all arguments."""
        if direction == "forward":
            return partial(self.function, *self.arguments)
        return forward_backward(self.function, self.arguments, self.grad)


@dataclass(frozen=True)
class Sequences:
    """The lengths of a batch, and whether it is packed, [total, D], or [B, L, D]."""

    lengths: list[int]
    is_packed: bool = False

    @staticmethod
    def equal(length: int, events: int) -> Sequences:
        """As many sequences of `length` as make about `events` events."""
        return Sequences([length] * max(1, round(events / length)))

    @property
    def events(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def sizes(self) -> tuple[int, ...]:
        return (self.events,) if self.is_packed else (len(self.lengths), self.longest)

    def offsets(self) -> Tensor | None:
        return torch.tensor([0, *self.lengths]).cumsum(0) if self.is_packed else None


def movielens_lengths(longest: int, events: int) -> Sequences:
    """Packed, of lengths like those of MovieLens-1M's users, cut at `longest`; up to `events` events.

    Log-normal with MovieLens-1M's median (96) and mean (165.6), within its range (20 to 2,314).
    """
    generator = torch.Generator().manual_seed(0)
    median, mean = 96.0, 165.6
    spread = math.sqrt(2 * math.log(mean / median))
    normal = torch.randn(1 + events // 20, generator=generator, device="cpu")
    users = (math.log(median) + spread * normal).exp().round().clamp(20, min(longest, 2314)).long()
    return Sequences(users[: int((users.cumsum(0) <= events).sum())].tolist(), is_packed=True)


def learned_decay(channels: int, horizon: int) -> Tensor:
    """The model's first decay: geometric from bursts (1/2) to the whole horizon (1/T)."""
    return torch.logspace(-1, -torch.tensor(float(max(horizon, 2))).log2(), channels, base=2)


def plain_fft_conv(u: Tensor, kernel: Tensor, skip: Tensor, pre_gate: Tensor, post_gate: Tensor) -> Tensor:
    """post_gate (kernel * z + skip z), z = pre_gate u, by torch.fft in the kernel's dtype.

    Transposing first is faster on a CPU than torch.fft along the middle dimension.
    """
    length = u.shape[1]
    z = (pre_gate * u).to(kernel.dtype).mT.contiguous()
    spectrum = torch.fft.rfft(z, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    y = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + skip[:, None] * z
    return post_gate * y.mT.to(u.dtype)


class Convolution:
    """Gates, convolution with a Legendre kernel, skip, gate: arguments and formulations.

    The kernel is made from its coefficients in every call of every formulation.
    """

    def __init__(self, sequences: Sequences, num_coeffs: int, horizon: int | None = None) -> None:
        self.sequences = sequences
        self.horizon = horizon or sequences.longest
        self.offsets = sequences.offsets()
        u, pre_gate, post_gate, self.grad = torch.randn(4, *sequences.sizes(), CHANNELS).unbind()
        coeffs = torch.randn(CHANNELS, num_coeffs) / self.horizon**0.5
        self.arguments = [
            u,
            coeffs,
            learned_decay(CHANNELS, self.horizon),
            torch.randn(CHANNELS),
            pre_gate,
            post_gate,
        ]

    def legendre_conv(self) -> Call:
        def function(u: Tensor, coeffs: Tensor, decay: Tensor, *others: Tensor) -> Tensor:
            return ops.legendre_conv(u, coeffs, decay, self.horizon, *others, offsets=self.offsets)

        return Call(function, self.arguments, self.grad)

    def fft_conv(self) -> Call:
        def function(u: Tensor, coeffs: Tensor, decay: Tensor, *others: Tensor) -> Tensor:
            kernel = ops.legendre_kernel(coeffs, decay, self.horizon, u.shape[1])
            return ops.fft_conv(u, kernel, *others)

        return Call(function, self.arguments, self.grad)

    def plain(self) -> Call:
        """torch.fft with a kernel made of a table of the polynomials, which is computed only once."""
        lag = torch.arange(self.sequences.longest)
        num_coeffs = self.arguments[1].shape[1]
        eye, zeros = torch.eye(num_coeffs, dtype=torch.float64), torch.zeros(num_coeffs, dtype=torch.float64)
        table = reference.legendre_kernel(eye, zeros, self.horizon, len(lag)).float()

        def function(u: Tensor, coeffs: Tensor, decay: Tensor, *others: Tensor) -> Tensor:
            kernel = torch.exp(-decay[:, None] * lag) * (coeffs @ table)
            return plain_fft_conv(u, kernel, *others)

        return Call(function, self.arguments, self.grad)


class Mixer:
    """A Hyena mixer between its projections, in one operator and in two."""

    def __init__(self, sequences: Sequences, num_coeffs: int, horizon: int | None = None) -> None:
        self.horizon = horizon or sequences.longest
        self.offsets = sequences.offsets()
        coeffs = torch.randn(CHANNELS, num_coeffs) / self.horizon**0.5
        self.grad = torch.randn(*sequences.sizes(), CHANNELS)
        self.arguments = [
            torch.randn(*sequences.sizes(), 3 * CHANNELS),
            torch.randn(3 * CHANNELS, TAPS) / TAPS**0.5,
            torch.randn(3 * CHANNELS),
            coeffs,
            learned_decay(CHANNELS, self.horizon),
            torch.randn(CHANNELS),
        ]

    def hyena_mixer(self) -> Call:
        def function(x: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> Tensor:
            coeffs, decay, skip = others
            return ops.hyena_mixer(x, weight, bias, coeffs, decay, self.horizon, skip, self.offsets)

        return Call(function, self.arguments, self.grad)

    def separate(self) -> Call:
        def function(x: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> Tensor:
            coeffs, decay, skip = others
            q, k, v = ops.short_conv(x, weight, bias, self.offsets).chunk(3, dim=-1)
            return ops.legendre_conv(v, coeffs, decay, self.horizon, skip, k, q, self.offsets)

        return Call(function, self.arguments, self.grad)
