"""Compares every operator on a GPU with its float64 oracle, forward and backward, and with the CPU.

    python benchmarks/gpu_operators.py [--device cpu] --output figures.json

The cases are those of `hyenarec doctor`, in float32 and bfloat16, plus the Legendre scan over one sequence
that is long enough to be cut into segments. An error is the largest difference over the largest expected
number. Memory given to operators holds NaN, so that a number that was never written is noticed. The exit
status is 1 if an error is larger than `hyenarec doctor` allows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch
from report import machine, save

from hyenarec import ops, reference
from hyenarec.doctor import TOLERANCES, Arguments, SelfTest, largest_error, self_tests

CUT = 1100  # events: 35 chunks, from 16 on a single sequence is cut
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """Errors of one operator; None: it has no gradients, or it failed with `problem`."""

    operator: str
    dtype: str
    forward: float | None
    backward: float | None
    cpu_forward: float | None
    cpu_backward: float | None
    passed: bool
    problem: str = ""

    def __str__(self) -> str:
        verdict = "ok" if self.passed else f"WRONG {self.problem[:80]}"
        errors = (self.forward, self.backward, self.cpu_forward, self.cpu_backward)
        device, gradients, cpu, cpu_gradients = (f"{e:7.1e}" if e is not None else "      -" for e in errors)
        return f"{self.operator:29} {self.dtype:8} {device} {gradients}  CPU {cpu} {cpu_gradients}  {verdict}"


def cut_tests() -> list[SelfTest]:
    """One long sequence: few warps would walk it whole, so the scan cuts it."""
    generator = torch.Generator().manual_seed(1)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    channels, num_coeffs = 40, 17
    kernel: Arguments = {
        "coeffs": normal(channels, num_coeffs) / CUT**0.5,
        "decay": torch.logspace(-1, -10, channels, base=2, dtype=torch.float64),
        "horizon": CUT,
        "skip": normal(channels),
    }
    gates: Arguments = {name: normal(1, CUT, channels) for name in ("u", "pre_gate", "post_gate")}
    taps: Arguments = {
        "x": normal(1, CUT, 3 * channels),
        "short_weight": normal(3 * channels, 4),
        "short_bias": normal(3 * channels),
    }
    conv, mixer = reference.legendre_conv, reference.hyena_mixer
    return [
        SelfTest("legendre_conv, cut", ops.legendre_conv, conv, kernel | gates, tuple(gates)),
        SelfTest("hyena_mixer, cut", ops.hyena_mixer, mixer, kernel | taps, ("x",)),
    ]


def compare(test: SelfTest, device: torch.device, dtype: torch.dtype) -> Row:
    """The errors of one operator in one dtype."""
    name = str(dtype).removeprefix("torch.")
    try:
        poison(device)
        forward, backward = largest_error(test, device, dtype)
    except torch.AcceleratorError:
        raise
    except RuntimeError as error:
        return failed(test, dtype, error)
    cpu_forward, cpu_backward = (forward, backward) if device == CPU else largest_error(test, CPU, dtype)
    allowed = TOLERANCES[dtype]
    passed = forward <= allowed and (backward is None or backward <= allowed)  # NaN is wrong
    return Row(test.name, name, forward, backward, cpu_forward, cpu_backward, passed)


def failed(test: SelfTest, dtype: torch.dtype, error: RuntimeError) -> Row:
    message = str(error).partition("\n")[0]
    return Row(test.name, str(dtype).removeprefix("torch."), None, None, None, None, False, message)


def poison(device: torch.device) -> None:
    """Leaves NaN in the memory that torch keeps for the next tensors."""
    for elements in (1 << 24, 1 << 18, 1 << 12):
        torch.full((elements,), torch.nan, device=device)


def comparisons() -> list[tuple[SelfTest, torch.dtype]]:
    """Every operator in its dtypes, those first that the model runs most."""
    return [
        (test, dtype)
        for test in [*cut_tests(), *self_tests()]
        for dtype in ((torch.float32, torch.bfloat16) if test.activations else (torch.float32,))
    ]


def go_on_in_a_new_process(first: int) -> NoReturn:
    """From comparison `first` on: after an illegal access CUDA refuses all that this process asks for."""
    sys.stdout.flush()
    own = [word for word in sys.argv if not word.startswith("--first=")]
    os.execv(sys.executable, [sys.executable, *own, f"--first={first}"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares operators with oracles; see this file's head.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--output", type=Path, required=True, help="where the JSON goes")
    parser.add_argument("--first", type=int, default=0, help="go on there, with the JSON as it is")
    options = parser.parse_args()
    head = machine(options.device)
    rows = json.loads(options.output.read_text())["rows"] if options.first > 0 else []
    for number, (test, dtype) in enumerate(comparisons()):
        if number < options.first:
            continue
        is_dead = False
        try:
            row = compare(test, torch.device(options.device), dtype)
        except torch.AcceleratorError as error:
            is_dead, row = True, failed(test, dtype, error)
        print(row, flush=True)
        rows.append(asdict(row))
        save(options.output, head | {"rows": rows})
        if is_dead:
            go_on_in_a_new_process(number + 1)
    wrong = [Row(**row) for row in rows if not row["passed"]]
    if wrong:
        print("\n".join(["wrong:", *map(str, wrong)]))
    print(f"{len(rows) - len(wrong)} of {len(rows)} comparisons hold")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
