"""Measures what linear_cross_entropy promises: accuracy, speed, a step's cost at any catalogue, memory.

    python benchmarks/linear_cross_entropy.py [--device cuda] [--only speed] [--output figures.json]

- accuracy: loss and every gradient in float32 against plain torch in float64
- speed: forward + backward compared with its three matrix products alone, in the same tiles; with torch's
  linear_cross_entropy in its default chunks and in larger ones, where torch has it (2.13 and later); and with
  cross_entropy of linear, which holds all scores
- sampled: a step with 1,000 shared negatives and the rows of its own items, with two sizes of the catalogue
- memory: peak of forward + backward beyond inputs and gradients, with a catalogue of 1,000,000 items. On a
  CPU it is measured in a separate process, which is this file called with a case in JSON

What is compared takes turns. Ratios are of medians; those of the fastest repetitions stand beside them. At
the end it says which bounds hold; the exit status is 1 if one does not. The bounds on time are for a CPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from bounds import Section, at_least, at_most, run_sections
from ops import relative_error
from peak_memory import mebibytes
from timing import Function, Times, forward_backward, timed
from torch import Tensor

from hyenarec import ops
from hyenarec.memory import reset_peak, resident, run_in_subprocess

DIM = 64
SHAPES = [(16000, 3416), (16000, 1000), (4000, 26744)]  # rows, items; the first is MovieLens-1M's step
# Scores of a tile, and its fewest and most rows, as in csrc/ops/linear_cross_entropy.
TILES = {"cpu": (1 << 20, 64, 1024), "cuda": (1 << 26, 64, 1 << 30)}
SAMPLED_ROWS, NEGATIVES = 16000, 1000
SAMPLED_ITEMS = (10_000, 1_000_000)
LARGE_ROWS, LARGE_ITEMS = 4096, 1_000_000


def device() -> str:
    return torch.get_default_device().type


class Problem:
    """Rows of one size with a target each, and the ways to compute their mean loss."""

    def __init__(self, rows: int, items: int, dtype: torch.dtype = torch.float32) -> None:
        self.rows, self.items = rows, items
        self.arguments = [
            torch.randn(rows, DIM).to(dtype),
            torch.randn(items, DIM).div(DIM**0.5).to(dtype),
            torch.randn(items),
        ]
        self.target = torch.randint(items, (rows,))

    def ours(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.linear_cross_entropy(hidden, weight, bias, self.target)

    def plain(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight, bias), self.target)

    def chunked(self, rows: int | None) -> Function:
        """torch's own, in chunks of so many rows, or as it chooses."""
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)

        def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.linear_cross_entropy(hidden, weight, self.target, linear_bias=bias, options=options)

        return loss

    def run(self, function: Function) -> Callable[[], object]:
        return forward_backward(function, self.arguments, torch.ones(()))

    def products(self) -> Callable[[], object]:
        """The matrix products of `ours` alone: scores, gradient of hidden, gradient of weight."""
        hidden, weight, _ = self.arguments
        scores, fewest, most = TILES[device()]
        tile_rows = min(max(scores // self.items, fewest), most, self.rows) // 16 * 16
        tile = torch.empty(tile_rows, self.items, dtype=hidden.dtype)
        of_hidden, of_weight = torch.empty_like(hidden), torch.empty_like(weight)

        def run() -> None:
            sums = torch.zeros(weight.shape)
            for first in range(0, self.rows, tile_rows):
                of_rows = hidden[first : first + tile_rows]
                of_tile = tile[: len(of_rows)]
                torch.mm(of_rows, weight.t(), out=of_tile)
                torch.mm(of_tile, weight, out=of_hidden[first : first + tile_rows])
                if hidden.dtype == torch.float32:
                    sums.addmm_(of_tile.t(), of_rows)
                else:
                    sums.add_(torch.mm(of_tile.t(), of_rows, out=of_weight))

        return run


def accuracy(_: int) -> Section:
    problem = Problem(2000, 3416)
    ours, plain = (
        (f, [argument.to(dtype) for argument in problem.arguments])
        for f, dtype in ((problem.ours, torch.float32), (problem.plain, torch.float64))
    )
    results = []
    for function, arguments in (ours, plain):
        one = torch.ones((), dtype=arguments[0].dtype)
        results.append([function(*arguments), *forward_backward(function, arguments, one)()])
    names = ("loss", "hidden", "weight", "bias")
    errors = {name: relative_error(*pair) for name, *pair in zip(names, *results, strict=True)}
    print("  ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    return Section(errors, [at_most("error of loss and gradients", [*errors.values()], 1e-5)])


@dataclass(frozen=True)
class SpeedFigure:
    """`times`: forward + backward in milliseconds."""

    rows: int
    items: int
    times: Times

    def __str__(self) -> str:
        times = "  ".join(f"{name} {ms:.1f}" for name, ms in self.times.median_ms.items())
        return f"{self.rows:,} rows, {self.items:,} items, ms: {times}"


def speed_figure(rows: int, items: int, repetitions: int) -> SpeedFigure:
    exact, rounded = Problem(rows, items), Problem(rows, items, torch.bfloat16)
    functions = {
        "float32": exact.run(exact.ours),
        "float32 products": exact.products(),
        "plain": exact.run(exact.plain),
        "bfloat16": rounded.run(rounded.ours),
        "bfloat16 products": rounded.products(),
    }
    if hasattr(F, "linear_cross_entropy"):
        functions["torch in chunks"] = exact.run(exact.chunked(None))
        functions["torch in chunks of 1,024"] = exact.run(exact.chunked(1024))
    return SpeedFigure(rows, items, timed(functions, repetitions, device()))


def speed(repetitions: int) -> Section:
    figures = []
    for rows, items in SHAPES:
        figures.append(speed_figure(rows, items, repetitions))
        print(figures[-1], flush=True)
    section = Section([asdict(figure) for figure in figures], [])
    if device() != "cpu":
        return section

    def ratios(slow: str, fast: str, chosen: list[SpeedFigure]) -> tuple[list[float], list[float]]:
        times = [figure.times for figure in chosen]
        return [t.ratio(slow, fast) for t in times], [t.fastest_ratio(slow, fast) for t in times]

    of_products, fastest = ratios("float32", "float32 products", figures[:1])
    section.bounds.append(at_most("float32 over its products alone", of_products, 1.25, fastest))
    for name in figures[0].times.median_ms:
        if name.startswith("torch"):
            of_torch, fastest = ratios(name, "float32", figures)
            section.bounds.append(at_least(f"{name} over ours, float32", of_torch, 1, fastest))
    of_plain, fastest = ratios("plain", "bfloat16", figures)
    section.bounds.append(at_least("plain in float32 over ours in bfloat16", of_plain, 3, fastest))
    return section


def sampled_step(items: int) -> Callable[[], object]:
    """Loss and gradients of a step with the rows of its own items, as the operator's docstring gives it."""
    hidden = torch.randn(SAMPLED_ROWS, DIM).requires_grad_()
    weight, bias = torch.randn(items, DIM).requires_grad_(), torch.zeros(items, 1).requires_grad_()
    log_q = torch.randn(items)

    def run() -> object:
        ids = torch.randint(items, (SAMPLED_ROWS + NEGATIVES,))
        found, place = ids.unique(return_inverse=True)
        target, candidates = place.split([SAMPLED_ROWS, NEGATIVES])
        rows, biases = (F.embedding(found, table, sparse=True) for table in (weight, bias))
        loss = ops.linear_cross_entropy(
            hidden, rows, biases.squeeze(1), target, candidates=candidates, log_q=log_q[found]
        )
        return torch.autograd.grad(loss, (hidden, weight, bias))

    return run


def sampled(repetitions: int) -> Section:
    small, large = (f"{items:,} items" for items in SAMPLED_ITEMS)
    steps = {small: sampled_step(SAMPLED_ITEMS[0]), large: sampled_step(SAMPLED_ITEMS[1])}
    times = timed(steps, repetitions, device())
    print("ms: " + "  ".join(f"{name} {ms:.1f}" for name, ms in times.median_ms.items()))
    return Section(asdict(times), [])


def peak_beyond(items: int) -> float:
    """MiB beyond inputs and gradients, of forward + backward in float32; on a CPU once in a process."""
    problem = Problem(LARGE_ROWS, items)
    run = problem.run(problem.ours)
    needed = 2 * mebibytes(problem.arguments)
    if device() == "cuda":
        run()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**20 - needed
    warm = Problem(100, 100)
    warm.run(warm.ours)()
    reset_peak()
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before - needed / 2


def memory(_: int) -> Section:
    if device() == "cuda":
        beyond = peak_beyond(LARGE_ITEMS)
    else:
        case = {"items": LARGE_ITEMS, "threads": torch.get_num_threads()}
        beyond = run_in_subprocess([__file__], case)
    scores = LARGE_ROWS * LARGE_ITEMS * 4 / 2**20
    print(f"{beyond:.0f} MiB beyond inputs and gradients; all scores together: {scores:.0f} MiB")
    bound = at_most("MiB beyond inputs and gradients, 1,000,000 items", [beyond], 1e9 / 2**20)
    return Section({"beyond_mib": beyond, "scores_mib": scores}, [bound])


SECTIONS = {"accuracy": accuracy, "speed": speed, "sampled": sampled, "memory": memory}


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        case = json.loads(sys.argv[1])
        torch.set_num_threads(case["threads"])
        print(json.dumps(peak_beyond(case["items"])))
    else:
        text = "Measures linear_cross_entropy; see this file's head."
        sys.exit(run_sections(text, SECTIONS, ("cpu", "cuda")))
