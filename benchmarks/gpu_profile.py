"""Where the time of hyena_mixer goes on a GPU: its kernels, forward and backward, in bfloat16.

    python benchmarks/gpu_profile.py [--device cpu] [--tiny] [--output figures.json]
    ncu ... python benchmarks/gpu_profile.py --once

torch.profiler measures three shapes: many short sequences in few and in many channels, and few long ones. For
each kernel: its time per call and its share of the total; also how much time passes between kernels. With
--once the first shape runs once and nothing is measured: for use under a profiler.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from convolutions import TAPS, learned_decay
from ops import NUM_COEFFS
from report import machine, save
from timing import forward_backward, milliseconds
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hyenarec import ops

SHAPES = ((1 << 17, 64, 1024), (1 << 17, 768, 200), (1 << 17, 64, 16384))  # events, channels, length
TINY = ((1 << 10, 64, 128), (1 << 10, 40, 100), (1 << 10, 64, 1024))
CALLS = 10
ROWS = 8  # kernels shown
NAME = 56  # characters of theirs


@dataclass(frozen=True)
class Kernel:
    name: str
    calls: float  # a forward and backward pass
    microseconds: float  # each
    share: float  # of the time of all kernels


def mixer(events: int, channels: int, length: int) -> Callable[[], object]:
    """Forward and backward pass of one shape, on torch's default device."""
    x = torch.randn(events // length, length, 3 * channels, dtype=torch.bfloat16)
    parameters = [
        torch.randn(3 * channels, TAPS) / TAPS**0.5,
        torch.randn(3 * channels),
        torch.randn(channels, NUM_COEFFS) / length**0.5,
        learned_decay(channels, length),
        torch.randn(channels),
    ]

    def function(x: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> Tensor:
        coeffs, decay, skip = others
        return ops.hyena_mixer(x, weight, bias, coeffs, decay, length, skip)

    grad = torch.randn(events // length, length, channels, dtype=torch.bfloat16)
    return forward_backward(function, [x, *parameters], grad)


def kernels(run: Callable[[], object], device: str) -> list[Kernel]:
    """What runs, the longest first; on a CPU operators instead of kernels."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(CALLS):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
    on_gpu = device == "cuda"
    times = [
        (event.key, event.count, event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in profiler.key_averages()
        if not on_gpu or event.device_type == DeviceType.CUDA
    ]
    total = sum(time for *_, time in times) or 1.0
    found = [Kernel(name, count / CALLS, time / count, time / total) for name, count, time in times]
    return sorted(found, key=lambda kernel: -kernel.share)


def main() -> int:
    parser = argparse.ArgumentParser(description="Profiles hyena_mixer; see this file's head.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU takes a moment for")
    parser.add_argument("--once", action="store_true", help="run the first shape once, measure nothing")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: nowhere")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_default_device(options.device)
    shapes = TINY if options.tiny else SHAPES
    if options.once:
        mixer(*shapes[0])()
        return 0
    head, found = machine(options.device), []
    for shape in shapes:
        run = mixer(*shape)
        for _ in range(3):
            run()
        time = milliseconds(run, options.device, CALLS)
        of_shape = kernels(run, options.device)
        inside = sum(kernel.calls * kernel.microseconds for kernel in of_shape) / 1e3
        print(
            f"events {shape[0]:,}, D = {shape[1]}, L = {shape[2]:,}: {time:.3f} ms, {inside:.3f} in kernels"
        )
        for kernel in of_shape[:ROWS]:
            numbers = f"{kernel.share:5.1%} {kernel.microseconds:8.1f} us x {kernel.calls:<4g}"
            print(f"  {numbers} {short(kernel.name)}", flush=True)
        rows = [asdict(kernel) for kernel in of_shape]
        found.append({"shape": shape, "milliseconds": time, "in_kernels": inside, "kernels": rows})
        if options.output:
            save(options.output, head | {"shapes": found})
    return 0


def short(name: str) -> str:
    """A kernel's name without what all have in common."""
    return name.removeprefix("void ").replace("hyenarec::", "").replace("at::native::", "")[:NAME]


if __name__ == "__main__":
    sys.exit(main())
