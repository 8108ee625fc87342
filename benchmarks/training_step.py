"""Measures a training step of HyenaRec: the mixer against attention, the step against SASRec's, an epoch.

    python benchmarks/training_step.py [--data ml1m_sasrec.txt.gz] [--only attention] [--output figures.json]

- attention: hyena_mixer against causal scaled_dot_product_attention, forward + backward, on the same queries,
  keys and values. One tensor holds them side by side, as a projection produces them, and attention takes its
  heads from there as in SASRec. hyena_mixer also does the short convolution, which attention does not have
- step: the whole step of HyenaRec against SASRec's, from `hyenarec bench train`, and the limit of that ratio:
  what it would be if HyenaRec's mixer, including projections, took no time. HyenaRec's cost per event at all
  lengths is measured in a separate run, in which the lengths take turns
- epoch: only with --data, a file of `user item` lines or anything else that `hyenarec train` reads: every
  step of an epoch against the same step of the same model in plain torch (plain_model.py), which gets its
  batches padded before the clock starts and computes no scores for padding. The two take turns step by step.
  Both keep the memory that they free (timing.py). In a process that returns it, as is the default, page
  faults made plain take 36.9 instead of 24.4 seconds, ours 12.7 instead of 12.6

What is compared takes turns; ratios are of medians, those of an epoch of sums. At the end it says which
bounds hold; the exit status is 1 if one does not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from bounds import Section, at_least, at_most, run_sections
from convolutions import Mixer, Sequences
from plain_model import PlainLoss, padded
from timing import Times, forward_backward, timed
from torch import Tensor, nn

from hyenarec import bench
from hyenarec.config import BenchConfig, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from hyenarec.data import Batch, TrainingBatches, load_histories, split_histories
from hyenarec.models.baselines import causal_attention
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.train.loss import NextItemLoss
from hyenarec.train.optimizer import make_optimizer

LENGTHS = (200, 1024, 4096, 16384)
NUM_COEFFS = ModelConfig().num_coeffs
EVENTS = 1 << 15  # of a call of the mixer
TIMES_ATTENTION = {200: 2, 1024: 8, 4096: 20}  # by length, how many times faster than attention
NUM_HEADS = (2, 1)
MODELS = ("hyenarec", "sasrec")


@dataclass(frozen=True)
class AttentionFigure:
    """`times`: forward + backward in milliseconds."""

    length: int
    events: int
    times: Times

    def __str__(self) -> str:
        times = "  ".join(f"{name} {ms:.2f} ms" for name, ms in self.times.median_ms.items())
        return f"L = {self.length:,}, {self.events:,} events: {times}"


def heads_name(num_heads: int) -> str:
    return f"attention, {num_heads} head{'s' if num_heads > 1 else ''}"


def attention(repetitions: int) -> Section:
    figures, bounds = [], []
    for length, least in TIMES_ATTENTION.items():
        sequences = Sequences.equal(length, EVENTS)
        mixer = Mixer(sequences, NUM_COEFFS)
        functions = {"hyena_mixer": mixer.hyena_mixer().run("forward + backward")}
        for num_heads in NUM_HEADS:
            function = partial(causal_attention, num_heads=num_heads)
            functions[heads_name(num_heads)] = forward_backward(function, mixer.arguments[:1], mixer.grad)
        times = timed(functions, repetitions)
        figures.append(AttentionFigure(length, sequences.events, times))
        print(figures[-1], flush=True)
        for num_heads in NUM_HEADS:
            pair = heads_name(num_heads), "hyena_mixer"
            what = f"{pair[0]}, over hyena_mixer, L = {length:,}"
            bounds.append(at_least(what, [times.ratio(*pair)], least, [times.fastest_ratio(*pair)]))
    return Section([asdict(figure) for figure in figures], bounds)


@dataclass(frozen=True)
class StepFigure:
    """Both models' costs at one length; SASRec's time over HyenaRec's, and the limit of that ratio."""

    length: int
    hyenarec: bench.Cost
    sasrec: bench.Cost
    ratio: float
    limit: float


def step_figure(config: BenchConfig, length: int) -> StepFigure:
    ours, theirs = pair = bench.measure(config, length)
    print(bench.table(pair), flush=True)
    ratio, limit = (theirs.seconds / seconds for seconds in (ours.seconds, ours.seconds_without_mixer))
    return StepFigure(length, ours, theirs, ratio, limit)


def step(repetitions: int) -> Section:
    config = BenchConfig(models=MODELS, device="cpu", repetitions=repetitions)
    figures = [step_figure(config, length) for length in LENGTHS]
    shares = [figure.ratio / figure.limit for figure in figures]
    steps = {f"L = {length:,}": bench.Step(config, "hyenarec", length) for length in LENGTHS}
    times = timed({**steps}, repetitions)
    microseconds, fastest = (
        {name: 1e3 * ms / steps[name].events for name, ms in series.items()}
        for series in (times.median_ms, times.fastest_ms)
    )
    print("HyenaRec, µs an event: " + "  ".join(f"{name} {cost:.2f}" for name, cost in microseconds.items()))
    growth, of_fastest = (max(costs.values()) / min(costs.values()) for costs in (microseconds, fastest))
    what = "SASRec's step over HyenaRec's"
    return Section(
        {
            "items": config.num_items,
            "figures": [asdict(figure) for figure in figures],
            "hyenarec_microseconds_an_event": microseconds,
        },
        [
            at_least(f"{what}, share of its limit, all lengths", shares, 0.85),
            at_least(f"{what}, L = {LENGTHS[-1]:,}", [figures[-1].ratio], 6),
            at_most("HyenaRec's dearest event over its cheapest, all lengths", [growth], 1.2, [of_fastest]),
        ],
    )


class Training:
    """A loss with its model's optimiser; a step takes what the loss does, after `prepare` of a batch."""

    def __init__(
        self, loss: NextItemLoss | PlainLoss, prepare: Callable[[Batch], tuple[Tensor, ...]]
    ) -> None:
        self.loss, self.prepare = loss, prepare
        self.optimizer = make_optimizer(loss.model, OptimizerConfig())

    def step(self, events: int, *arguments: Tensor) -> None:
        (self.loss(*arguments) / events).backward()
        nn.utils.clip_grad_norm_(self.loss.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def exact_loss(self, batch: Batch) -> float:
        """Without dropout."""
        self.loss.eval()
        with torch.no_grad():
            loss = float(self.loss(*self.prepare(batch)))
        self.loss.train()
        return loss


def packed(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.items, batch.offsets, batch.targets


def both_trainings(config: ModelConfig) -> dict[str, Training]:
    """The package's and the plain one, which begin with the same parameters."""
    loss = NextItemLoss(HyenaRec(config))
    return {"ours": Training(loss, packed), "plain": Training(PlainLoss(loss.model), padded)}


@torch.no_grad()
def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Between modules that have them in the same order."""
    for parameter, other in zip(source.parameters(), target.parameters(), strict=True):
        other.copy_(parameter)


def epoch(data: Path, _: int) -> Section:
    config = TrainConfig(data=DataConfig(path=str(data), windows="all"))
    histories = split_histories(load_histories(config.data), config.data).train
    model = ModelConfig(num_items=histories.num_items)
    batches = TrainingBatches(histories, model.max_len, config.batch_events, config.seed, config.data.windows)
    trainings = both_trainings(model)
    first = next(batches.batches(0))
    for training in trainings.values():
        training.step(len(first.items), *training.prepare(first))  # the optimiser's state, plans, allocations
    seconds = dict.fromkeys(trainings, 0.0)
    events = places = 0
    for batch in batches.batches(0):
        for name, training in trainings.items():
            arguments = training.prepare(batch)
            start = time.perf_counter()
            training.step(len(batch.items), *arguments)
            seconds[name] += time.perf_counter() - start
        events += len(batch.items)
        places += len(batch.users) * int(batch.offsets.diff().max())
    # Of trained weights: at first all scores are near 0, whatever a model computes.
    copy_parameters(trainings["ours"].loss, trainings["plain"].loss)
    losses = {name: training.exact_loss(first) for name, training in trainings.items()}
    difference = abs(losses["ours"] / losses["plain"] - 1)
    figures = {"steps": batches.steps_per_epoch, "windows": batches.num_windows, "events": events}
    figures |= {"events_and_padding": places, "items": histories.num_items, "losses": losses}
    print(f"{figures}\n" + "  ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
    return Section(
        figures | {"seconds": seconds},
        [
            at_most("an epoch's time, ours over plain", [seconds["ours"] / seconds["plain"]], 0.5),
            at_most("relative difference of the losses on a batch", [difference], 1e-5),
        ],
    )


def main() -> int:
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", type=Path, help="what `epoch` trains on; default: no such section")
    path: Path | None = data.parse_known_args()[0].data
    sections: dict[str, Callable[[int], Section]] = {"attention": attention, "step": step}
    if path is not None:
        sections["epoch"] = partial(epoch, path)
    return run_sections("Measures a training step; see this file's head.", sections, parents=[data])


if __name__ == "__main__":
    sys.exit(main())
