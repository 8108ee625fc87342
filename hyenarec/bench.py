"""What a training step of each model costs: `hyenarec bench train`.

All models take turns on the same batches, with the loss and optimiser of a training run, so that a change of
clock speed or a busy machine affects all of them alike; every time is the median over the repetitions. How a
step's time is distributed is measured in extra repetitions, so that the hooks don't slow down those that are
compared.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyenarec.config import MODEL_CONFIGS, BenchConfig, OptimizerConfig, SequentialConfig, to_dict
from hyenarec.evaluation.report import device_name, git_commit, write_report
from hyenarec.memory import reset_peak, resident, run_in_subprocess
from hyenarec.models.registry import make_model
from hyenarec.train.loss import NextItemLoss
from hyenarec.train.optimizer import make_optimizer

PARTS = ("mixer", "ffn", "loss", "optimizer", "other")
"""The parts of a step: what mixes the events of a sequence (attention, convolution, recurrence); the
feed-forward layers; from the last hidden rows to their gradient; clipping and the update; the rest."""

MODULES = ("mixer", "ffn")
"""The parts that are modules, by their names in the models."""

BATCH_EVENTS = {"cpu": 2**14, "cuda": 2**17}
"""Default events a step, by type of device. On a GPU fewer would measure how fast Python launches kernels."""

WARM_UP = 2
"""Steps before the first measured one: plans, allocations, clocks, and the optimiser's state."""


class Step:
    """A model and its training step on one batch: sequences of one length, of random items.

    Args:
        config: the settings.
        name: of the model.
        length: events of a sequence.
    """

    def __init__(self, config: BenchConfig, name: str, length: int) -> None:
        self.config, self.device = config, device_of(config)
        torch.manual_seed(config.seed)
        kind = MODEL_CONFIGS[name]
        assert issubclass(kind, SequentialConfig)  # BenchConfig has seen to it
        shape = kind(num_items=config.num_items, max_len=length, dim=config.dim)
        self.model = make_model(shape).to(self.device)
        self.loss = NextItemLoss(self.model)
        self.optimizer = make_optimizer(self.model, OptimizerConfig())
        generator = torch.Generator().manual_seed(config.seed)
        number = max(events_of_a_step(config) // length, 1)
        self.offsets = (torch.arange(number + 1) * length).to(self.device)
        self.events = number * length
        items = torch.randint(1, config.num_items + 1, (2, self.events), generator=generator)
        self.items, self.targets = items.to(self.device)

    def __call__(self) -> None:
        """The whole step, as a training run takes it."""
        self.backward(self.forward())
        self.update()

    def forward(self) -> Tensor:
        """The loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss: Tensor = self.loss(self.items, self.offsets, self.targets) / self.events
        return loss

    def backward(self, loss: Tensor) -> None:
        """The gradients of the loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """The optimiser's part."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Clock:
    """Points in time on the device, which a GPU reaches later than the program does."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def now(self) -> Any:
        """The present point in the queued work."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Seconds between two points; waits until a GPU has passed both."""
        if not self.on_gpu:
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


class Hooks:
    """Within this context, measures where a step spends its time, forward and backward.

    Autograd runs a module's backward without interruption, from its output's gradient to its input's.
    """

    def __init__(self, step: Step, clock: Clock) -> None:
        self.step, self.clock = step, clock
        self._spans: list[tuple[str, Any, Any]] = []
        self._begun: dict[str, Any] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Hooks:
        for name, module in self.step.model.named_modules():
            part = name.rpartition(".")[2]
            if part in MODULES:
                begin, end = partial(self._begin, part), partial(self._end, part)
                self._handles += [
                    module.register_forward_pre_hook(begin),
                    module.register_forward_hook(end),
                    module.register_full_backward_pre_hook(begin),
                    module.register_full_backward_hook(end),
                ]
        self._handles += [
            self.step.model.register_forward_hook(self._begin_loss),
            self.step.loss.register_forward_hook(partial(self._end, "loss")),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def seconds(self) -> dict[str, float]:
        """Runs the step once and returns its seconds by `PARTS`."""
        self._spans.clear()
        start = self.clock.now()
        loss = self.step.forward()
        self._begin("loss")
        self.step.backward(loss)
        self._begin("optimizer")
        self.step.update()
        self._end("optimizer")
        whole = self.clock.seconds(start, self._spans[-1][2])
        parts = dict.fromkeys(PARTS, 0.0)
        for part, begin, end in self._spans:
            parts[part] += self.clock.seconds(begin, end)
        parts["other"] = whole - sum(parts.values())
        return parts

    def _begin_loss(self, model: nn.Module, arguments: object, hidden: Tensor) -> None:
        hidden.register_hook(partial(self._end, "loss"))  # type: ignore[no-untyped-call]
        self._begin("loss")

    def _begin(self, part: str, *arguments: object) -> None:
        self._begun[part] = self.clock.now()

    def _end(self, part: str, *arguments: object) -> None:
        self._spans.append((part, self._begun.pop(part), self.clock.now()))


@dataclass(frozen=True)
class Cost:
    """What a step of a model costs at one length.

    Attributes:
        model: the model's name.
        length: events a sequence.
        events: events a step.
        seconds: of a whole step, median.
        peak_mebibytes: peak memory of weights, optimiser state and two steps.
        parts: seconds by `PARTS`, medians.
    """

    model: str
    length: int
    events: int
    seconds: float
    peak_mebibytes: float
    parts: dict[str, float]

    @property
    def title(self) -> str:
        """The model's name in tables."""
        return MODEL_CONFIGS[self.model].title

    @property
    def seconds_without_mixer(self) -> float:
        """What the step would take if its mixers took no time."""
        return self.seconds - self.parts["mixer"]


def bench_train(config: BenchConfig) -> list[Cost]:
    """Measures every model at every length, prints tables, and writes the files that the settings ask for.

    Raises:
        ValueError: a plot is asked for, but matplotlib is not installed.
    """
    if config.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plot needs matplotlib: pip install 'hyenarec[plot]'")
    device = device_of(config)
    lengths = config.lengths or (200, 1024, 4096, *([16384] if device.type == "cuda" else []))
    costs: list[Cost] = []
    for length in lengths:
        costs += measure(config, length)
        print(table(costs[-len(config.models) :]), flush=True)
    if config.output is not None:
        where = {"device": device_name(device), "torch": torch.__version__, "commit": git_commit()}
        found = {"costs": [dataclasses.asdict(cost) for cost in costs], "config": to_dict(config)}
        write_report(Path(config.output), where | found)
    if config.plot is not None:
        plot(costs, Path(config.plot))
    return costs


def measure(config: BenchConfig, length: int) -> list[Cost]:
    """The cost of every model at one length, measured in turns."""
    peaks = [peak_memory(config, name, length) for name in config.models]
    clock = Clock(device_of(config))
    steps = [Step(config, name, length) for name in config.models]
    for step in steps:
        for _ in range(WARM_UP):
            step()
    seconds: list[list[float]] = [[] for _ in steps]
    parts: list[dict[str, list[float]]] = [defaultdict(list) for _ in steps]
    for _ in range(config.repetitions):
        for step, series in zip(steps, seconds, strict=True):
            begin = clock.now()
            step()
            series.append(clock.seconds(begin, clock.now()))
        for step, by_part in zip(steps, parts, strict=True):
            with Hooks(step, clock) as hooks:
                for part, time_of_part in hooks.seconds().items():
                    by_part[part].append(time_of_part)
    return [
        Cost(
            model=name,
            length=length,
            events=step.events,
            seconds=statistics.median(series),
            peak_mebibytes=peak,
            parts={part: statistics.median(times) for part, times in by_part.items()},
        )
        for name, step, series, by_part, peak in zip(config.models, steps, seconds, parts, peaks, strict=True)
    ]


def device_of(config: BenchConfig) -> torch.device:
    """The device that the settings select."""
    return torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu")


def events_of_a_step(config: BenchConfig) -> int:
    """Events a step: as set, or enough to keep the device busy."""
    if config.batch_events is not None:
        return config.batch_events
    return BATCH_EVENTS[device_of(config).type]


# --- memory ---


def peak_memory(config: BenchConfig, name: str, length: int) -> float:
    """Peak MiB of a model and its steps, beyond what the process had before.

    On a CPU it takes a process of its own, for only resident memory includes everything there.
    """
    if device_of(config).type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        take_steps(config, name, length)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    case = {"config": to_dict(config), "name": name, "length": length}
    return float(run_in_subprocess(["-m", "hyenarec.bench"], case))


def take_steps(config: BenchConfig, name: str, length: int) -> None:
    """Makes a model and takes two steps: the second holds the optimiser's state besides the gradients."""
    step = Step(config, name, length)
    for _ in range(2):
        step()


def peak_of_this_process(config: BenchConfig, name: str, length: int) -> float:
    """Peak MiB of resident memory that the steps added; to be called once in a process."""
    small = dataclasses.replace(config, batch_events=1, num_items=1)
    take_steps(small, name, 1)  # loads and initialises what all steps need
    reset_peak()
    before = resident("VmRSS")
    take_steps(config, name, length)
    return resident("VmHWM") - before


# --- what the user sees ---


def table(costs: Sequence[Cost]) -> str:
    """The costs of all models at one length; times by part in milliseconds.

    The last columns are the time as a multiple of HyenaRec's, and what that would be if HyenaRec's mixers
    took no time.
    """
    reference = next((cost for cost in costs if cost.model == "hyenarec"), None)
    header = ["", "events/s", "peak MiB", "ms", *PARTS]
    columns: list[Callable[[Cost], str]] = [
        lambda cost: cost.title,
        lambda cost: f"{cost.events / cost.seconds:,.0f}",
        lambda cost: f"{cost.peak_mebibytes:,.0f}",
        lambda cost: f"{cost.seconds * 1e3:,.1f}",
        *(partial(_milliseconds, part) for part in PARTS),
    ]
    if reference is not None:
        header += ["x HyenaRec", "limit"]
        columns += [
            lambda cost: f"{cost.seconds / reference.seconds:.2f}",
            lambda cost: f"{cost.seconds / reference.seconds_without_mixer:.2f}",
        ]
    rows = [header, *([column(cost) for column in columns] for cost in costs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    return "\n".join([f"L = {costs[0].length:,}, {costs[0].events:,} events a step", *lines])


def _milliseconds(part: str, cost: Cost) -> str:
    return f"{cost.parts[part] * 1e3:,.1f}"


def plot(costs: Sequence[Cost], path: Path) -> None:
    """Plots the time of an event over the length on logarithmic axes, one line a model; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="L, events of a sequence")
    axes.set_ylabel("µs of training an event")
    for name in dict.fromkeys(cost.model for cost in costs):
        own = [cost for cost in costs if cost.model == name]
        axes.plot(
            [cost.length for cost in own],
            [cost.seconds / cost.events * 1e6 for cost in own],
            marker="o",
            label=own[0].title,
        )
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    case = json.loads(sys.argv[1])
    print(json.dumps(peak_of_this_process(BenchConfig(**case.pop("config")), **case)))
