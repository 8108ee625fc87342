"""Measures what a model's options cost a training step: one with an option against one without it, in turns.

    python benchmarks/model_options.py [--threads 1] [--output figures.json]

A step is the loss of packed histories and its gradients, with the full softmax; the optimizer's part does
not depend on these options. Sizes are those that the recipe chooses for three of the data sets that
docs/accuracy.md shows. Ratios are of medians.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from bounds import Section, at_most, run_sections
from timing import Times, timed

from hyenarec.config import LossConfig, ModelConfig
from hyenarec.data.times import Times as Moments
from hyenarec.models.registry import make_model
from hyenarec.train.loss import NextItemLoss

OPTIONS: dict[str, dict[str, Any]] = {
    "lag_bias": {"lag_bias": True},
    "repeat_head": {"repeat_head": True},
    "time_unit": {"time_unit": "second"},
    "norm pre": {"norm": "pre"},
    "lookahead": {"lookahead": 3},  # of the loss
}


@dataclass(frozen=True)
class Size:
    """A step's events, in histories of that length, over that many items."""

    events: int
    length: int
    num_items: int


SIZES = {
    "Toys": Size(896, 50, 11_924),
    "Foursquare": Size(3968, 500, 10_815),
    "Online Retail": Size(2944, 200, 3659),
}
MOST = {"lag_bias": 1.15}  # times the step without


@dataclass(frozen=True)
class Figure:
    """`times`: of a step in milliseconds; `ratios`: over the step without options."""

    data: str
    precision: str
    size: Size
    times: Times
    ratios: dict[str, float]


def step(size: Size, half: bool, options: dict[str, Any]) -> Callable[[], object]:
    """A step of a model with these options, else those of the recipe for such data."""
    torch.manual_seed(0)
    shape = {"num_items": size.num_items, "max_len": size.length, "dropout": 0.3}
    options = dict(options)
    of_loss = LossConfig(name="softmax", lookahead=options.pop("lookahead", 1))
    loss = NextItemLoss(make_model(ModelConfig(**shape, **options)), of_loss)
    items, targets = torch.randint(1, size.num_items + 1, (2, size.events))
    offsets = torch.arange(0, size.events + size.length, size.length).clamp(max=size.events)
    moments = torch.arange(size.events) * 3600
    times = Moments(moments, moments) if "time_unit" in options else None
    parameters = list(loss.parameters())

    def run() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss(items, offsets, targets, None, times)
        return torch.autograd.grad(value, parameters)

    return run


def steps(repetitions: int) -> Section:
    figures, bounds = [], []
    for data, size in SIZES.items():
        for half in (False, True):
            functions = {"plain": step(size, half, {})}
            functions |= {name: step(size, half, options) for name, options in OPTIONS.items()}
            times = timed(functions, repetitions)
            ratios = {name: times.ratio(name, "plain") for name in OPTIONS}
            precision = "bf16" if half else "no"
            figures.append(Figure(data, precision, size, times, ratios))
            line = "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
            print(f"{data:<14} {precision:<5} {line}")
    for name, most in MOST.items():
        of_all = [figure.ratios[name] for figure in figures]
        fastest = [figure.times.fastest_ratio(name, "plain") for figure in figures]
        bounds.append(at_most(f"a step with {name} over one without", of_all, most, fastest))
    return Section([asdict(figure) for figure in figures], bounds)


if __name__ == "__main__":
    text = "Measures what a model's options cost a training step; see this file's head."
    sys.exit(run_sections(text, {"steps": steps}))
