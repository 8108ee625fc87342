"""Writes the oracle tables that the C++ tests read: small cases, solved in float64 by hyenarec.reference.

    python cpp_tests/oracle/make_tables.py <folder>

One text file a case, `<op>.<case>.txt`, of blocks "name rank size... value..." separated by white space
(oracle_tables.h reads them): the operator's arguments by name (absent ones are left out, integers have
rank 0), `out`, `grad` (the gradient that arrives at `out`), and `grad_<argument>` for every differentiable
argument. Inputs are exact in bfloat16, float16, float32 and float64: one table serves every dtype.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

Arguments = dict[str, "Tensor | int"]


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


def fft_conv_arguments(
    generator: torch.Generator, batch: int, length: int, channels: int, lags: int, optional: str
) -> Arguments:
    arguments: Arguments = {"u": random(generator, batch, length, channels)}
    arguments["kernel"] = random(generator, channels, lags)
    for name in optional.split():
        arguments[name] = random(generator, *((channels,) if name == "skip" else (batch, length, channels)))
    return arguments


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


ALL = "skip pre_gate post_gate"
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
}


def solve(reference: ModuleType, op: str, arguments: Arguments, generator: torch.Generator) -> Arguments:
    """The arguments with the expected output, a gradient that arrives there, and the gradients it causes."""
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    out = getattr(reference, op)(**(arguments | leaves))
    grad = random(generator, *out.shape)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad, materialize_grads=True)
    named = {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return arguments | {"out": out.detach(), "grad": grad} | named


def write_case(path: Path, table: Arguments) -> None:
    lines = []
    for name, value in table.items():
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
