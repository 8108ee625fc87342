"""Times a stream event by event: does event 10,000 cost the same as event 10?

    python benchmarks/streaming.py [--device cuda] [--output figures.json]

A model with 4 blocks, 64 channels, 17 coefficients and a horizon of 16,384 receives histories one event at a
time; then the operator alone, `legendre_step`, does the same for a single convolution of that size. Each
event is timed separately. Ten streams take turns, one in each thousand of positions, so that a busy neighbour
affects all positions alike. Figures are medians; the ratio of the last thousand to events 10 to 1,000 must be
near 1. Events that finish a chunk (one in 16 or 32) cost more and are reported separately. Also reported: the
scores of the next item, the batch path over the whole history (what each event would cost without a stream),
and the bytes of state. One JSON file holds all of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from convolutions import learned_decay
from report import machine, write
from timing import medians

import hyenarec
from hyenarec import _C
from hyenarec.models.stream import Stream
from hyenarec.ops import legendre_step, legendre_step_state, legendre_step_weights

NUM_ITEMS = 3416
CONFIG = hyenarec.ModelConfig(num_items=NUM_ITEMS, dim=64, num_blocks=4, max_len=16_384, num_coeffs=17)
EVENTS = 10_000
STRETCH = 1_000  # positions that one of the streams passes through
WARM_UP = 10
CHUNK = _C.legendre_chunk_length(CONFIG.num_coeffs)

Append = Callable[[int], object]  # one event, given its position


@dataclass(frozen=True)
class Figure:
    """Microseconds of one event, medians. `by_thousand[i]` is of the positions from 1,000 i on."""

    what: str
    first_us: float
    last_us: float
    last_over_first: float
    chunk_end_us: float
    by_thousand: list[float]
    state_bytes: int
    passes: int


def event_times(streams: list[Append], device: str) -> list[float]:
    """Microseconds of each event from 0 to EVENTS: stream i begins at position i * STRETCH."""
    times = [0.0] * EVENTS
    for step in range(STRETCH):
        for i, append in enumerate(streams):
            position = i * STRETCH + step
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            append(position)
            if device == "cuda":
                torch.cuda.synchronize()
            times[position] = (time.perf_counter() - start) * 1e6
    return times


def measure(what: str, new_stream: Callable[[int], tuple[Append, int]], device: str, passes: int) -> Figure:
    """`new_stream(n)` gives what appends to a history of n events, and the bytes of its state."""
    all_times = []
    for _ in range(passes):
        streams = [new_stream(first) for first in range(0, EVENTS, STRETCH)]
        all_times.append(event_times([append for append, _ in streams], device))

    def over_passes(statistic: Callable[[list[float]], float]) -> float:
        return statistics.median(statistic(times) for times in all_times)

    def median_from(first: int) -> float:
        last = first + STRETCH
        return over_passes(lambda times: statistics.median(times[max(first, WARM_UP) : last]))

    return Figure(
        what=what,
        first_us=median_from(0),
        last_us=median_from(EVENTS - STRETCH),
        last_over_first=over_passes(
            lambda times: statistics.median(times[-STRETCH:]) / statistics.median(times[WARM_UP:STRETCH])
        ),
        chunk_end_us=over_passes(lambda times: statistics.median(times[CHUNK - 1 :: CHUNK])),
        by_thousand=[median_from(first) for first in range(0, EVENTS, STRETCH)],
        state_bytes=streams[-1][1],
        passes=passes,
    )


def item_at(position: int) -> int:
    return 1 + position * 7919 % NUM_ITEMS


def model_stream(empty: Stream, length: int) -> tuple[Append, int]:
    stream = empty.copy()
    stream.extend(map(item_at, range(length)))
    return lambda position: stream.append(item_at(position)), stream.nbytes


def operator_stream(device: str, length: int) -> tuple[Append, int]:
    generator = torch.Generator().manual_seed(0)
    coeffs = torch.randn(CONFIG.dim, CONFIG.num_coeffs, generator=generator).to(device)
    decay = learned_decay(CONFIG.dim, CONFIG.max_len).to(device)
    weights = legendre_step_weights(coeffs, decay, CONFIG.max_len)
    state = legendre_step_state(coeffs, 1)
    positions = torch.arange(EVENTS, device=device).split(1)
    history = torch.randn(1, length, CONFIG.dim, generator=generator).to(device)
    legendre_step(state, history, positions[0], weights, CONFIG.max_len)
    u, pre_gate, post_gate = torch.randn(3, 1, CONFIG.dim, device=device)

    def append(position: int) -> object:
        return legendre_step(state, u, positions[position], weights, CONFIG.max_len, pre_gate, post_gate)

    return append, state.nbytes


def whole_history(model: hyenarec.HyenaRec, device: str, repetitions: int) -> dict[str, float]:
    """Milliseconds over all events at once, and the stream's error against that, relative to the largest."""
    items = [item_at(position) for position in range(EVENTS)]
    packed = torch.tensor(items, device=device)
    offsets = torch.tensor([0, EVENTS], device=device)
    with torch.inference_mode():
        expected = model.score(packed, offsets)[0]
        (batch_ms,) = medians([lambda: model.score(packed, offsets)], device, repetitions)
    stream = model.stream()
    stream.extend(items)
    scores = stream.scores()
    (extend_ms,) = medians([lambda: model.stream().extend(items)], device, repetitions)
    scores_ms, copy_ms = medians([stream.scores, stream.copy], device, 20 * repetitions)
    return {
        "batch_score_ms": batch_ms,
        "extend_ms": extend_ms,
        "scores_us": 1e3 * scores_ms,
        "copy_us": 1e3 * copy_ms,
        "error": float((scores - expected).abs().max() / expected.abs().max()),
    }


def measure_all(device: str, passes: int) -> dict[str, Any]:
    """Everything, printed and as it goes into the JSON."""
    torch.manual_seed(0)
    model = hyenarec.HyenaRec(CONFIG).eval().to(device)
    figures = []
    with torch.inference_mode():
        figures.append(measure("HyenaRec.stream", partial(model_stream, model.stream()), device, passes))
        figures.append(measure("legendre_step", partial(operator_stream, device), device, passes))
    for figure in figures:
        print(
            f"{figure.what:16} events 10 to 1,000: {figure.first_us:6.1f} us  "
            f"last 1,000: {figure.last_us:6.1f} us  ratio {figure.last_over_first:.3f}  "
            f"end of a chunk {figure.chunk_end_us:6.1f} us  state {figure.state_bytes} bytes"
        )
    history = whole_history(model, device, passes)
    print(f"{EVENTS} events: " + "  ".join(f"{name} {value:.3g}" for name, value in history.items()))
    return {
        "config": asdict(CONFIG),
        "events": EVENTS,
        "threads": torch.get_num_threads(),
        "figures": [asdict(figure) for figure in figures],
        "whole_history": history,
    }


def main() -> int:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description="Times a stream event by event; see this file's head.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: nowhere")
    options = parser.parse_args()
    result = machine(options.device) | measure_all(options.device, options.passes)
    if options.output:
        write(options.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
