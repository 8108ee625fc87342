"""Arguments of every operator, as float64 tensors that are exact in every dtype they go in.

`op_checks.converted` gives them the dtypes that go together. The tables at the end are what the tests of all
operators run over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]
MakeDecay = Callable[[int, int], Tensor]  # from channels and horizon

# What goes beside activations in 16 bits without being one: these stay in float32.
PARAMETERS = {"kernel", "coeffs", "decay", "skip", "weight", "bias", "short_weight", "short_bias", "log_q"}
# Tensor arguments without a gradient.
CONSTANTS = {"offsets", "target", "candidates", "log_q", "adjusted", "seed"}
GATES = ("pre_gate", "post_gate")
OPTIONAL = ("skip", *GATES)  # of fft_conv and legendre_conv


def random(*sizes: int, seed: int = 0) -> Tensor:
    """Normal numbers that are exact in every dtype down to bfloat16."""
    generator = torch.Generator().manual_seed(seed + 1000 * sum(sizes))
    return (torch.randn(sizes, generator=generator, dtype=torch.float64) * 32).round() / 32


@dataclass(frozen=True)
class Layout:
    """How sequences lie in an activation: its leading dimensions, and offsets if it is packed."""

    sizes: tuple[int, ...]
    longest: int
    offsets: Tensor | None = None

    def arguments(self) -> Arguments:
        return {} if self.offsets is None else {"offsets": self.offsets}


def padded(batch: int, length: int) -> Layout:
    return Layout((batch, length), length)


def packed(*lengths: int) -> Layout:
    return Layout((sum(lengths),), max(lengths, default=0), torch.tensor([0, *lengths]).cumsum(0))


# Channels and dtypes of results of 14 * 2**18 numbers: too large for the cache, they are written past it
# where rows fill its lines. Those of 50 channels do not.
LARGE_RESULTS = [(64, torch.float32), (32, torch.float64), (160, torch.bfloat16), (50, torch.float32)]


def no_decay(channels: int, horizon: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.float64)


def learned_decay(channels: int, horizon: int) -> Tensor:
    """The model's spread, in float32: from bursts (1/2) to the whole horizon (1/T)."""
    return torch.logspace(-1, -torch.tensor(float(max(horizon, 2))).log2(), channels, base=2).double()


def fast_decay(channels: int, horizon: int) -> Tensor:
    return torch.full((channels,), 50.0, dtype=torch.float64)


def legendre_kernel_case(
    channels: int = 3, coefficients: int = 5, horizon: int = 16, length: int = 12
) -> Arguments:
    return {
        "coeffs": random(channels, coefficients, seed=1),
        "decay": random(channels, seed=2).abs() / 16,
        "horizon": horizon,
        "length": length,
    }


def optional_arguments(layout: Layout, channels: int, names: tuple[str, ...]) -> Arguments:
    return {
        name: random(channels, seed=9) if name == "skip" else random(*layout.sizes, channels, seed=3 + i)
        for i, name in enumerate(names)
    }


def fft_conv_case(
    batch: int = 2,
    length: int = 7,
    channels: int = 3,
    lags: int | None = None,
    optional: tuple[str, ...] = OPTIONAL,
) -> Arguments:
    layout = padded(batch, length)
    return {
        "u": random(*layout.sizes, channels, seed=1),
        "kernel": random(channels, length if lags is None else lags, seed=2),
        **optional_arguments(layout, channels, optional),
    }


def short_conv_case(layout: Layout, channels: int = 3, width: int = 3, bias: bool = True) -> Arguments:
    return {
        "u": random(*layout.sizes, channels, seed=1),
        "weight": random(channels, width, seed=2),
        **({"bias": random(channels, seed=3)} if bias else {}),
        **layout.arguments(),
    }


def legendre_conv_case(
    layout: Layout,
    channels: int = 3,
    coefficients: int = 5,
    horizon: int | None = None,
    optional: tuple[str, ...] = OPTIONAL,
    decay: Tensor | None = None,
) -> Arguments:
    """The horizon is the longest sequence unless given."""
    horizon = max(layout.longest, 1) if horizon is None else horizon
    return {
        "u": random(*layout.sizes, channels, seed=1),
        "coeffs": random(channels, coefficients, seed=2),
        "decay": learned_decay(channels, horizon) if decay is None else decay,
        "horizon": horizon,
        **optional_arguments(layout, channels, optional),
        **layout.arguments(),
    }


def hyena_mixer_case(
    layout: Layout,
    channels: int = 3,
    coefficients: int = 5,
    horizon: int | None = None,
    width: int = 3,
    bias: bool = True,
    decay: Tensor | None = None,
) -> Arguments:
    """The horizon is the longest sequence unless given."""
    horizon = max(layout.longest, 1) if horizon is None else horizon
    return {
        "x": random(*layout.sizes, 3 * channels, seed=1),
        "short_weight": random(3 * channels, width, seed=2),
        "short_bias": random(3 * channels, seed=3) if bias else None,
        "coeffs": random(channels, coefficients, seed=4),
        "decay": learned_decay(channels, horizon) if decay is None else decay,
        "horizon": horizon,
        "skip": random(channels, seed=5),
        **layout.arguments(),
    }


def dropout_add_layer_norm_case(
    sizes: tuple[int, ...] = (2, 7), channels: int = 3, residual: bool = True, p: float = 0.0, seed: int = 5
) -> Arguments:
    return {
        "branch": random(*sizes, channels, seed=1),
        "residual": random(*sizes, channels, seed=2) if residual else None,
        "weight": random(channels, seed=3),
        "bias": random(channels, seed=4),
        "p": p,
        "seed": torch.tensor(seed) if p > 0 else None,
    }


def linear_cross_entropy_case(
    rows: int = 6,
    items: int = 9,
    channels: int = 3,
    candidates: int | None = None,
    log_q: bool = False,
    bias: bool = True,
    label_smoothing: float = 0.0,
    reduction: str = "none",
    adjusted: int | None = None,
) -> Arguments:
    """Every fifth row has no target. Half of the candidates are targets, and the first one is there twice.

    Half of the rows have their target among the items with an adjusted score; some of these are none.
    """
    generator = torch.Generator().manual_seed(rows)
    target = torch.randint(items, (rows,), generator=generator)
    target[3::5] = -1
    sampled: Arguments = {}
    if candidates is not None:
        drawn = torch.randint(items, (candidates,), generator=generator)
        hits = target[target >= 0][: candidates // 2]
        drawn[: len(hits)] = hits
        drawn[-1:] = drawn[:1]
        sampled = {"candidates": drawn}
    if log_q:
        sampled["log_q"] = random(items, seed=4)
    if adjusted is not None:
        order = torch.rand(rows, items, generator=generator)
        order[torch.arange(0, rows, 2), target[::2]] = -1  # the target is first
        drawn = order.argsort(1)[:, :adjusted]
        sampled["adjusted"] = drawn.masked_fill(torch.arange(drawn.shape[1]) % 3 == 2, -1)
        sampled["adjustment"] = random(*drawn.shape, seed=5)
    return {
        "hidden": random(rows, channels, seed=1),
        "weight": random(items, channels, seed=2),
        "bias": random(items, seed=3) if bias else None,
        "target": target,
        **sampled,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }


# (horizon, length) for scans in chunks of 16 or 32 events: empty, shorter than a chunk, ending with one,
# one event beyond it, cut by the horizon; horizons whose last chunk has one event; histories that stop early.
SCAN_LENGTHS = [
    *((1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (7, 7)),
    *((16, 15), (16, 16), (17, 16), (17, 17), (18, 18), (31, 31), (32, 32), (33, 17), (33, 32), (33, 33)),
    *((34, 34), (49, 49), (63, 63), (64, 64), (65, 64), (65, 65), (66, 66), (97, 97), (100, 63), (100, 100)),
    *((129, 129), (193, 193), (200, 1), (200, 33), (200, 65), (200, 199), (200, 200)),
]
# (horizon, length, coefficients) for scans in segments of 16 or 32 chunks: ending with one, one event or
# chunk beyond it; horizons that cut the last segment after one event, a part of a chunk, many chunks.
SEGMENT_LENGTHS = [
    *((256, 256, 9), (257, 256, 9), (257, 257, 4), (258, 258, 2), (272, 272, 9), (273, 273, 9)),
    *(
        (300, 290, 9),
        (511, 511, 9),
        (512, 512, 9),
        (513, 513, 9),
        (600, 257, 9),
        (600, 512, 1),
        (600, 600, 9),
    ),
    *((513, 513, 17), (700, 544, 17), (700, 545, 17), (1024, 1024, 17), (1100, 1100, 17), (1100, 1030, 33)),
    *((5000, 1100, 9), (16384, 1100, 17)),
    (600, 513, 0),
    # Where rounding decides in float64 how many of a state's coefficients count.
    *((1095, 1095, 33), (1130, 1130, 25), (2985, 1300, 33), (11182, 1224, 17)),
]
# Lengths of packed sequences, for a horizon of 200.
PACKED_LENGTHS: list[tuple[int, ...]] = [
    (),
    (0,),
    (0, 0),
    (1,),
    (5,),
    (3, 0, 7, 1, 12),
    (0, 4, 0, 0, 2, 0),
    (1,) * 20,
    (200, 1, 0, 33, 64, 65, 16, 17, 199, 2, 0),
]

Case = tuple[str, Arguments]  # operator and arguments

# Every operator with and without its optional arguments, padded and packed: for the properties that need no
# large numbers. Scans take two chunks and more.
SMALL_CASES: dict[str, Case] = {
    "legendre_kernel": ("legendre_kernel", legendre_kernel_case()),
    "fft_conv": ("fft_conv", fft_conv_case()),
    "fft_conv plain": ("fft_conv", fft_conv_case(optional=())),
    "short_conv": ("short_conv", short_conv_case(padded(2, 7))),
    "short_conv plain": ("short_conv", short_conv_case(padded(2, 7), bias=False)),
    "short_conv packed": ("short_conv", short_conv_case(packed(3, 0, 7, 1, 12), width=4)),
    "legendre_conv": ("legendre_conv", legendre_conv_case(padded(2, 70), 2, 4, 75)),
    "legendre_conv plain": ("legendre_conv", legendre_conv_case(padded(2, 70), 2, 4, optional=())),
    "legendre_conv packed": ("legendre_conv", legendre_conv_case(packed(3, 0, 69, 1, 33), 2, 4)),
    "hyena_mixer": ("hyena_mixer", hyena_mixer_case(padded(2, 36), 2, 4, 40)),
    "hyena_mixer plain": ("hyena_mixer", hyena_mixer_case(padded(1, 70), 2, 4, bias=False)),
    "hyena_mixer packed": ("hyena_mixer", hyena_mixer_case(packed(3, 0, 69, 1, 2), 2, 4, width=4)),
    "dropout_add_layer_norm": ("dropout_add_layer_norm", dropout_add_layer_norm_case(p=0.25)),
    "dropout_add_layer_norm plain": ("dropout_add_layer_norm", dropout_add_layer_norm_case()),
    "dropout_add_layer_norm first": (
        "dropout_add_layer_norm",
        dropout_add_layer_norm_case((3,), 9, residual=False, p=0.25),
    ),
    "linear_cross_entropy": ("linear_cross_entropy", linear_cross_entropy_case(label_smoothing=0.25)),
    "linear_cross_entropy plain": ("linear_cross_entropy", linear_cross_entropy_case(bias=False)),
    "linear_cross_entropy adjusted": ("linear_cross_entropy", linear_cross_entropy_case(adjusted=4)),
    "linear_cross_entropy adjusted sum": (
        "linear_cross_entropy",
        linear_cross_entropy_case(adjusted=4, label_smoothing=0.25, reduction="sum"),
    ),
    "linear_cross_entropy mean": ("linear_cross_entropy", linear_cross_entropy_case(reduction="mean")),
    "linear_cross_entropy sampled": (
        "linear_cross_entropy",
        linear_cross_entropy_case(candidates=5, log_q=True, label_smoothing=0.25),
    ),
    "linear_cross_entropy sampled sum": (
        "linear_cross_entropy",
        linear_cross_entropy_case(candidates=5, reduction="sum"),
    ),
}
# Work enough for several threads, and sequences of very different lengths.
LARGE_CASES: dict[str, Case] = {
    "legendre_kernel": ("legendre_kernel", legendre_kernel_case(64, 17, 1021, 1021)),
    "fft_conv": ("fft_conv", fft_conv_case(20, 300, 70)),
    "short_conv": ("short_conv", short_conv_case(padded(20, 300), 70)),
    "short_conv packed": ("short_conv", short_conv_case(packed(1000, 3, 2000, 1), 70)),
    "legendre_conv": ("legendre_conv", legendre_conv_case(padded(20, 300), 70, 17)),
    "legendre_conv one": ("legendre_conv", legendre_conv_case(padded(1, 2000), 70, 9)),
    "legendre_conv packed": ("legendre_conv", legendre_conv_case(packed(*range(90), 3, 2000, 1), 70, 17)),
    "hyena_mixer": ("hyena_mixer", hyena_mixer_case(padded(20, 300), 70, 17)),
    "hyena_mixer one": ("hyena_mixer", hyena_mixer_case(padded(1, 2000), 70, 9)),
    "hyena_mixer packed": ("hyena_mixer", hyena_mixer_case(packed(*range(90), 3, 2000, 1), 70, 17)),
    "dropout_add_layer_norm": ("dropout_add_layer_norm", dropout_add_layer_norm_case((20, 300), 70, p=0.25)),
    "linear_cross_entropy": ("linear_cross_entropy", linear_cross_entropy_case(2500, 1100, 33)),
    "linear_cross_entropy adjusted": (
        "linear_cross_entropy",
        linear_cross_entropy_case(2500, 1100, 33, adjusted=16),
    ),
    "linear_cross_entropy sampled": (
        "linear_cross_entropy",
        linear_cross_entropy_case(2500, 1100, 33, 300, log_q=True, reduction="mean"),
    ),
}
