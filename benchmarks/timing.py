"""Times functions that take turns, so that a change of clocks or a busy neighbour affects all of them."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def gradients(function: Function, arguments: list[Tensor], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """What computes the gradients of all arguments from `grad` at the output, after one forward pass."""
    leaves = [argument.detach().requires_grad_() for argument in arguments]
    out = function(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def forward_backward(
    function: Function, arguments: list[Tensor], grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """What computes the output and, from `grad` at it, the gradients of all arguments."""
    leaves = [argument.detach().requires_grad_() for argument in arguments]
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)


def copy_of(size: int, device: str) -> Callable[[], object]:
    """A copy that reads and writes `size` bytes in all."""
    source = torch.randint(0, 256, (max(size // 2, 1),), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, up to 2 GiB, and to take blocks of any size from it.

    By itself it gives large blocks back to the system. New ones then cost a page fault for every 4 KiB,
    several times what the arithmetic on them does, for whoever comes next: no time would be like another.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_max = -1, -4
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)


def milliseconds(function: Callable[[], object], device: str, calls: int) -> float:
    """Milliseconds of one call, the mean of `calls` in a row."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls * 1e3
    start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start_event.record()
    for _ in range(calls):
        function()
    end_event.record()
    end_event.synchronize()
    return float(start_event.elapsed_time(end_event)) / calls


def take_turns(
    functions: list[Callable[[], object]], device: str, repetitions: int, warm_up: int = 3
) -> list[list[float]]:
    """Milliseconds of each function's repetitions; short functions are repeated up to a millisecond."""
    calls = []
    for function in functions:
        for _ in range(warm_up):  # plans, allocations, clocks
            function()
        calls.append(max(1, min(100, int(1.0 / max(milliseconds(function, device, 1), 1e-3)))))
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repetitions):
        for function, count, series in zip(functions, calls, times, strict=True):
            series.append(milliseconds(function, device, count))
    return times


def medians(functions: list[Callable[[], object]], device: str, repetitions: int) -> list[float]:
    """Median milliseconds of each function."""
    return [statistics.median(series) for series in take_turns(functions, device, repetitions)]


@dataclass(frozen=True)
class Times:
    """Milliseconds of what took turns, by name."""

    median_ms: dict[str, float]
    fastest_ms: dict[str, float]

    def ratio(self, slow: str, fast: str) -> float:
        return self.median_ms[slow] / self.median_ms[fast]

    def fastest_ratio(self, slow: str, fast: str) -> float:
        return self.fastest_ms[slow] / self.fastest_ms[fast]


def timed(functions: dict[str, Callable[[], object]], repetitions: int, device: str = "cpu") -> Times:
    """The times of functions that take turns, after one call each."""
    series = dict(zip(functions, take_turns([*functions.values()], device, repetitions, 1), strict=True))
    return Times(
        {name: statistics.median(times) for name, times in series.items()},
        {name: min(times) for name, times in series.items()},
    )
