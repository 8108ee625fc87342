"""Writes the oracle tables that the C++ tests read: small cases, solved in float64 by hyenarec.reference.

    python cpp_tests/oracle/make_tables.py <folder>

One text file a case, `<op>.<case>.txt`, of blocks "name rank size... value..." separated by white space
(oracle_tables.h reads them): the operator's arguments by name (absent ones and words are left out, numbers
have rank 0), `out` (several outputs are stacked), `grad` (the gradient that arrives at `out`), and
`grad_<argument>` for every differentiable argument. Inputs are exact in bfloat16, float16, float32 and
float64: one table serves every dtype.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

Arguments = dict[str, "Tensor | int | float | str | None"]  # None: absent
CONSTANTS = ("log_q",)  # floating tensors without a gradient


def load_reference() -> ModuleType:
    """hyenarec.reference by its path: the tables need no compiled extension."""
    path = Path(__file__).resolve().parents[2] / "hyenarec" / "reference.py"
    spec = importlib.util.spec_from_file_location("hyenarec_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random(generator: torch.Generator, *sizes: int) -> Tensor:
    """Normal numbers with seven significant bits, exact in every dtype."""
    values = torch.randn(sizes, generator=generator, dtype=torch.float64)
    return (values * 32).round() / 32


def legendre_arguments(
    generator: torch.Generator, channels: int, coefficients: int, horizon: int, length: int
) -> Arguments:
    return {
        "coeffs": random(generator, channels, coefficients),
        "decay": random(generator, channels).abs() / 8,
        "horizon": horizon,
        "length": length,
    }


def optional_arguments(
    generator: torch.Generator, names: str, sizes: tuple[int, ...], offsets: list[int] | None = None
) -> Arguments:
    """skip [D] and gates, where `names` has them, for an activation of these sizes."""
    arguments: Arguments = {
        name: random(generator, *(sizes[-1:] if name == "skip" else sizes)) for name in names.split()
    }
    return arguments if offsets is None else arguments | {"offsets": torch.tensor(offsets)}


def fft_conv_arguments(
    generator: torch.Generator, batch: int, length: int, channels: int, lags: int, optional: str
) -> Arguments:
    sizes = (batch, length, channels)
    arguments: Arguments = {"u": random(generator, *sizes), "kernel": random(generator, channels, lags)}
    return arguments | optional_arguments(generator, optional, sizes)


def short_conv_arguments(
    generator: torch.Generator,
    sizes: tuple[int, ...],
    width: int,
    bias: bool,
    offsets: list[int] | None = None,
) -> Arguments:
    arguments: Arguments = {"u": random(generator, *sizes), "weight": random(generator, sizes[-1], width)}
    if bias:
        arguments["bias"] = random(generator, sizes[-1])
    if offsets is not None:
        arguments["offsets"] = torch.tensor(offsets)
    return arguments


def legendre_conv_arguments(
    generator: torch.Generator,
    sizes: tuple[int, ...],
    coefficients: int,
    horizon: int,
    optional: str,
    offsets: list[int] | None = None,
    decay: float | None = None,
) -> Arguments:
    """Without `decay`, channels forget in about an eighth of the horizon."""
    channels = sizes[-1]
    rate = random(generator, channels).abs() / 2 ** (horizon // 8).bit_length()
    return {
        "u": random(generator, *sizes),
        "coeffs": random(generator, channels, coefficients),
        "decay": rate if decay is None else torch.full_like(rate, decay),
        "horizon": horizon,
    } | optional_arguments(generator, optional, sizes, offsets)


def hyena_mixer_arguments(
    generator: torch.Generator,
    sizes: tuple[int, ...],
    coefficients: int,
    horizon: int,
    width: int,
    bias: bool,
    offsets: list[int] | None = None,
) -> Arguments:
    """`sizes` are those of the result."""
    scan = legendre_conv_arguments(generator, sizes, coefficients, horizon, "skip", offsets)
    del scan["u"]
    wide = 3 * sizes[-1]
    return {
        "x": random(generator, *sizes[:-1], wide),
        "short_weight": random(generator, wide, width),
        "short_bias": random(generator, wide) if bias else None,
    } | scan


def norm_arguments(
    generator: torch.Generator, sizes: tuple[int, ...], residual: bool = True, p: float = 0.0
) -> Arguments:
    """The seed needs both words of the generator's key, and is exact in float64."""
    return {
        "branch": random(generator, *sizes),
        "residual": random(generator, *sizes) if residual else None,
        "weight": random(generator, sizes[-1]),
        "bias": random(generator, sizes[-1]),
        "p": p,
        "eps": 2.0**-10,
        "seed": torch.tensor(2**50 + 12345) if p > 0 else None,
    }


def cross_entropy_arguments(
    generator: torch.Generator,
    rows: int,
    items: int,
    channels: int,
    candidates: int | None = None,
    label_smoothing: float = 0.0,
    optional: str = "bias",
    adjusted: int | None = None,
) -> Arguments:
    """Every fifth row has no target; half of the candidates are targets; half of the targets are adjusted."""
    target = torch.randint(items, (rows,), generator=generator)
    target[3::5] = -1
    drawn = None
    if candidates is not None:
        drawn = torch.randint(items, (candidates,), generator=generator)
        hits = target[target >= 0][: candidates // 2]
        drawn[: len(hits)] = hits
    adjustment: Arguments = {}
    if adjusted is not None:
        order = torch.rand(rows, items, generator=generator)
        order[torch.arange(0, rows, 2), target[::2]] = -1  # the target is first
        places = order.argsort(1)[:, :adjusted]
        places[:, 2::3] = -1
        adjustment = {"adjusted": places, "adjustment": random(generator, *places.shape)}
    return {
        "hidden": random(generator, rows, channels),
        "weight": random(generator, items, channels),
        "bias": random(generator, items) if "bias" in optional else None,
        "target": target,
        "candidates": drawn,
        "log_q": random(generator, items) if "log_q" in optional else None,
        "label_smoothing": label_smoothing,
        "reduction": "none",
        **adjustment,
    }


ALL = "skip pre_gate post_gate"
# Sequences of very different lengths, empty ones among them.
OFFSETS = [0, 3, 3, 10, 11, 11, 81, 113]
CASES: dict[str, Callable[[torch.Generator], Arguments]] = {
    "legendre_kernel.single": lambda g: legendre_arguments(g, 1, 1, 1, 1),
    "legendre_kernel.horizon_one": lambda g: legendre_arguments(g, 3, 4, 1, 1),
    "legendre_kernel.small": lambda g: legendre_arguments(g, 3, 5, 7, 7),
    "legendre_kernel.more_coeffs_than_lags": lambda g: legendre_arguments(g, 3, 9, 4, 4),
    "legendre_kernel.part_of_horizon": lambda g: legendre_arguments(g, 5, 33, 300, 77),
    "legendre_kernel.long": lambda g: legendre_arguments(g, 2, 17, 1021, 1021),
    "legendre_kernel.many_channels": lambda g: legendre_arguments(g, 70, 2, 40, 40),
    "legendre_kernel.many_coeffs": lambda g: legendre_arguments(g, 17, 75, 150, 130),
    "legendre_kernel.empty": lambda g: legendre_arguments(g, 4, 6, 10, 0),
    "fft_conv.single": lambda g: fft_conv_arguments(g, 1, 1, 1, 1, ALL),
    "fft_conv.plain": lambda g: fft_conv_arguments(g, 2, 7, 3, 7, ""),
    "fft_conv.odd_size": lambda g: fft_conv_arguments(g, 2, 8, 3, 8, ALL),  # 15 = 8 + 8 - 1
    "fft_conv.all": lambda g: fft_conv_arguments(g, 2, 64, 5, 64, ALL),
    "fft_conv.long_kernel": lambda g: fft_conv_arguments(g, 3, 20, 4, 33, ALL),
    "fft_conv.short_kernel": lambda g: fft_conv_arguments(g, 2, 33, 9, 5, "skip pre_gate"),
    "fft_conv.post_gate": lambda g: fft_conv_arguments(g, 1, 200, 17, 200, "post_gate"),
    "fft_conv.skip": lambda g: fft_conv_arguments(g, 2, 100, 40, 100, "skip"),
    "fft_conv.empty": lambda g: fft_conv_arguments(g, 0, 5, 3, 5, ALL),
    "short_conv.single": lambda g: short_conv_arguments(g, (1, 1, 1), 8, True),
    "short_conv.three_taps": lambda g: short_conv_arguments(g, (2, 7, 3), 3, True),
    "short_conv.four_taps": lambda g: short_conv_arguments(g, (2, 150, 70), 4, False),
    "short_conv.one_tap": lambda g: short_conv_arguments(g, (3, 5, 8), 1, True),
    "short_conv.packed": lambda g: short_conv_arguments(g, (41, 5), 4, True, [0, 3, 3, 10, 11, 11, 41]),
    "short_conv.packed_eight_taps": lambda g: short_conv_arguments(
        g, (150, 16), 8, True, [0, 0, 5, 17, 18, 20, 60, 150, 150]
    ),
    "short_conv.packed_long": lambda g: short_conv_arguments(g, (700, 33), 3, False, [0, 1, 400, 402, 700]),
    "short_conv.empty": lambda g: short_conv_arguments(g, (0, 4), 3, True, [0, 0]),
    # Sizes, coefficients, horizon. Chunks of the scan have 16 or 32 events.
    "legendre_conv.single": lambda g: legendre_conv_arguments(g, (1, 1, 1), 1, 1, ALL),
    "legendre_conv.horizon_one": lambda g: legendre_conv_arguments(g, (2, 1, 3), 4, 1, ALL),
    "legendre_conv.plain": lambda g: legendre_conv_arguments(g, (2, 7, 3), 5, 7, ""),
    "legendre_conv.more_coeffs_than_lags": lambda g: legendre_conv_arguments(g, (2, 4, 3), 9, 4, ALL),
    "legendre_conv.one_chunk": lambda g: legendre_conv_arguments(g, (2, 16, 4), 9, 40, "skip"),
    "legendre_conv.whole_chunks": lambda g: legendre_conv_arguments(g, (2, 128, 8), 9, 128, "pre_gate"),
    "legendre_conv.cut_by_horizon": lambda g: legendre_conv_arguments(g, (2, 70, 5), 9, 70, ALL),
    "legendre_conv.last_chunk_of_one": lambda g: legendre_conv_arguments(g, (2, 129, 5), 17, 129, ALL),
    "legendre_conv.part_of_horizon": lambda g: legendre_conv_arguments(g, (1, 77, 17), 33, 300, ALL),
    "legendre_conv.long": lambda g: legendre_conv_arguments(g, (1, 1021, 2), 17, 1500, ALL),
    "legendre_conv.many_channels": lambda g: legendre_conv_arguments(g, (1, 70, 70), 2, 70, "post_gate"),
    "legendre_conv.many_coeffs": lambda g: legendre_conv_arguments(g, (2, 150, 3), 40, 150, "skip"),
    "legendre_conv.no_coeffs": lambda g: legendre_conv_arguments(g, (2, 40, 3), 0, 40, ALL),
    "legendre_conv.no_decay": lambda g: legendre_conv_arguments(g, (2, 150, 4), 17, 200, ALL, decay=0),
    "legendre_conv.fast_decay": lambda g: legendre_conv_arguments(g, (2, 70, 4), 9, 70, ALL, decay=50),
    "legendre_conv.packed": lambda g: legendre_conv_arguments(g, (113, 5), 9, 70, ALL, OFFSETS),
    "legendre_conv.packed_plain": lambda g: legendre_conv_arguments(g, (113, 8), 17, 90, "", OFFSETS),
    "legendre_conv.packed_long": lambda g: legendre_conv_arguments(
        g, (500, 9), 33, 298, ALL, [0, 1, 200, 202, 500]
    ),
    "legendre_conv.empty": lambda g: legendre_conv_arguments(g, (0, 5, 3), 9, 5, ALL),
    "legendre_conv.no_events": lambda g: legendre_conv_arguments(g, (0, 3), 9, 5, ALL, [0, 0]),
    "hyena_mixer.single": lambda g: hyena_mixer_arguments(g, (1, 1, 1), 1, 1, 3, True),
    "hyena_mixer.plain": lambda g: hyena_mixer_arguments(g, (2, 7, 3), 5, 7, 3, False),
    "hyena_mixer.whole_chunks": lambda g: hyena_mixer_arguments(g, (2, 128, 8), 9, 128, 4, True),
    "hyena_mixer.cut_by_horizon": lambda g: hyena_mixer_arguments(g, (2, 70, 5), 17, 70, 1, True),
    "hyena_mixer.last_chunk_of_one": lambda g: hyena_mixer_arguments(g, (1, 129, 5), 9, 129, 8, False),
    "hyena_mixer.part_of_horizon": lambda g: hyena_mixer_arguments(g, (1, 77, 17), 33, 300, 3, True),
    "hyena_mixer.many_channels": lambda g: hyena_mixer_arguments(g, (1, 40, 70), 2, 40, 3, True),
    "hyena_mixer.packed": lambda g: hyena_mixer_arguments(g, (113, 5), 9, 70, 4, True, OFFSETS),
    "hyena_mixer.packed_eight_taps": lambda g: hyena_mixer_arguments(g, (113, 8), 17, 90, 8, True, OFFSETS),
    "hyena_mixer.packed_plain": lambda g: hyena_mixer_arguments(g, (113, 3), 17, 90, 3, False, OFFSETS),
    "hyena_mixer.empty": lambda g: hyena_mixer_arguments(g, (0, 4), 9, 5, 3, True, [0, 0]),
    "dropout_add_layer_norm.single": lambda g: norm_arguments(g, (1, 1), p=0.25),
    "dropout_add_layer_norm.plain": lambda g: norm_arguments(g, (2, 7, 3)),
    "dropout_add_layer_norm.many_rows": lambda g: norm_arguments(g, (200, 3), p=0.25),
    "dropout_add_layer_norm.vectors": lambda g: norm_arguments(g, (3, 5, 16), p=0.25),
    "dropout_add_layer_norm.half_a_block": lambda g: norm_arguments(g, (11, 12), p=0.5),
    "dropout_add_layer_norm.first": lambda g: norm_arguments(g, (9, 40), residual=False, p=0.25),
    "dropout_add_layer_norm.first_plain": lambda g: norm_arguments(g, (5, 40), residual=False),
    "dropout_add_layer_norm.all_dropped": lambda g: norm_arguments(g, (5, 8), p=1.0),
    "dropout_add_layer_norm.several_vectors": lambda g: norm_arguments(g, (4, 144), p=0.25),
    "dropout_add_layer_norm.several_warps": lambda g: norm_arguments(g, (2, 600), p=0.25),
    "dropout_add_layer_norm.empty": lambda g: norm_arguments(g, (0, 4), p=0.25),
    "linear_cross_entropy.single": lambda g: cross_entropy_arguments(g, 1, 1, 1),
    "linear_cross_entropy.plain": lambda g: cross_entropy_arguments(g, 7, 9, 3, optional=""),
    "linear_cross_entropy.smoothed": lambda g: cross_entropy_arguments(g, 9, 130, 5, None, 0.25),
    "linear_cross_entropy.several_warps": lambda g: cross_entropy_arguments(g, 4, 300, 3),
    "linear_cross_entropy.adjusted": lambda g: cross_entropy_arguments(g, 9, 130, 5, None, 0.25, adjusted=7),
    "linear_cross_entropy.sampled": lambda g: cross_entropy_arguments(g, 9, 40, 5, 17),
    "linear_cross_entropy.sampled_all": lambda g: cross_entropy_arguments(
        g, 12, 30, 5, 150, 0.25, "bias log_q"
    ),
    "linear_cross_entropy.no_candidates": lambda g: cross_entropy_arguments(g, 5, 4, 3, 0),
    "linear_cross_entropy.empty": lambda g: cross_entropy_arguments(g, 0, 4, 3),
}


def solve(reference: ModuleType, op: str, arguments: Arguments, generator: torch.Generator) -> Arguments:
    """The arguments with the expected output, a gradient that arrives there, and the gradients it causes."""
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name not in CONSTANTS
    }
    outputs = getattr(reference, op)(**(arguments | leaves))
    out = torch.stack(outputs) if isinstance(outputs, tuple) else outputs
    grad = random(generator, *out.shape)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad, materialize_grads=True)
    named = {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return arguments | {"out": out.detach(), "grad": grad} | named


def write_case(path: Path, table: Arguments) -> None:
    lines = []
    for name, value in table.items():
        if value is None or isinstance(value, str):
            continue
        tensor = torch.as_tensor(value)
        head = [name, str(tensor.dim()), *map(str, tensor.shape)]
        lines.append(" ".join([*head, *(repr(number) for number in tensor.flatten().tolist())]))
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    reference = load_reference()
    for seed, (name, make_arguments) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed)
        table = solve(reference, name.split(".")[0], make_arguments(generator), generator)
        write_case(folder / f"{name}.txt", table)


if __name__ == "__main__":
    main()
