"""Measures what the Legendre scan promises, on a CPU: accuracy, speed, growth, packing, streaming, memory.

    python benchmarks/legendre_conv.py [--only speed growth] [--output figures.json]

- accuracy: output and every gradient in float32, compared with the truth in float64 (a direct sum; beyond
  1,024 events an FFT) and with torch.fft in float32
- speed: legendre_conv with gates and skip, compared with the same function in plain torch.fft and in
  fft_conv, and with a copy of the bytes that it must move
- mixer: hyena_mixer compared with short_conv and legendre_conv
- growth: time per element of histories of 16,384 events over that of 1,024, with the same number of elements.
  First each length is its own horizon; then both have a horizon of 16,384, where the short histories have
  less to do: each fits into one segment, and many of them share what a few long ones cannot
- packed: time per event of packed lengths like those of MovieLens-1M over that of equal lengths
- streaming: time per event of a stream, on one thread (streaming.py)
- memory: peak of forward + backward beyond inputs, output and gradients (peak_memory.py)

Everything that depends on weights or data is timed, including the contraction of tables with the coefficients
and, for plain torch, the evaluation of the kernel. What is compared takes turns. Ratios are of medians; those
of the fastest repetitions stand beside them, since they are closer to the truth on a busy machine. At the end
it says which bounds hold; the exit status is 1 if one does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import legendre_accuracy
import peak_memory
import streaming
import torch
from bounds import Bound, Section, at_least, at_most, run_sections
from convolutions import CHANNELS, DIRECTIONS, Call, Convolution, Mixer, Sequences, movielens_lengths
from ops import relative_error
from timing import Times, copy_of, timed

LENGTHS = (200, 1024, 4096, 16384)
EVENTS = (1 << 15, 1 << 17)
NUM_COEFFS = (17, 9)
FLOAT_BYTES = 4
GROWTH_LENGTHS = (1024, 16384)
GROWTH_EVENTS = 1 << 16
PACKED_LONGEST = (200, 2277)  # MovieLens-1M at max_len 200, and whole


def check_same(first: Call, second: Call) -> None:
    """Raises if the two differ by more than rounding: then there is nothing to compare."""
    error = relative_error(first.function(*first.arguments), second.function(*second.arguments).double())
    if not error < 1e-5:
        raise RuntimeError(f"two formulations of the same function differ by {error:.1e}")


def accuracy(_: int) -> Section:
    figures = legendre_accuracy.measure_all()
    print(f"{'T':>6} {'L':>6} {'N':>3} {'decay':>7}   worst of both lengths: error (times torch.fft's)")
    for pair in zip(figures[::2], figures[1::2], strict=True):
        figure = pair[0]
        cells = "  ".join(
            f"{name} {max(f.error[name] for f in pair):.1e} ({max(f.times_fft[name] for f in pair):.1f})"
            for name in legendre_accuracy.NAMES
        )
        decay = "learned" if figure.has_decay else "0"
        print(f"{figure.horizon:6} {pair[1].length:6} {figure.num_coeffs:3} {decay:>7}   {cells}")

    def errors(*names: str) -> list[float]:
        return [figure.error[name] for figure in figures for name in names]

    gradients = [name for name in legendre_accuracy.NAMES if name not in ("forward", "decay")]
    times_fft = [ratio for figure in figures for ratio in figure.times_fft.values()]
    return Section(
        [asdict(figure) for figure in figures],
        [
            at_most("forward error", errors("forward"), 1e-6),
            at_most("gradients' error", errors(*gradients), 2e-6),
            at_most("decay gradient's error", errors("decay"), 5e-6),
            at_most("errors over torch.fft's", times_fft, 5),
        ],
    )


@dataclass(frozen=True)
class SpeedFigure:
    """`bytes` are those that the copy moves."""

    direction: str
    num_coeffs: int
    length: int
    events: int
    times: Times
    plain_over_ours: float
    plain_over_ours_fastest: float
    ours_over_copy: float
    bytes: int


def bytes_moved(events: int, direction: str) -> int:
    """Each input read once and each output written once."""
    forward = 4  # u, two gates -> out
    backward = 7  # grad, u, two gates -> three gradients
    tensors = forward if direction == "forward" else forward + backward
    return tensors * events * CHANNELS * FLOAT_BYTES


def speed_figure(length: int, events: int, num_coeffs: int, direction: str, repetitions: int) -> SpeedFigure:
    sequences = Sequences.equal(length, events)
    convolution = Convolution(sequences, num_coeffs)
    check_same(convolution.legendre_conv(), convolution.plain())
    size = bytes_moved(sequences.events, direction)
    times = timed(
        {
            "legendre_conv": convolution.legendre_conv().run(direction),
            "torch.fft": convolution.plain().run(direction),
            "fft_conv": convolution.fft_conv().run(direction),
            "copy": copy_of(size, "cpu"),
        },
        repetitions,
    )
    return SpeedFigure(
        direction=direction,
        num_coeffs=num_coeffs,
        length=length,
        events=sequences.events,
        times=times,
        plain_over_ours=times.ratio("torch.fft", "legendre_conv"),
        plain_over_ours_fastest=times.fastest_ratio("torch.fft", "legendre_conv"),
        ours_over_copy=times.ratio("legendre_conv", "copy"),
        bytes=size,
    )


def print_speed(figure: SpeedFigure) -> None:
    elements = figure.events * CHANNELS
    per_element = {name: 1e6 * ms / elements for name, ms in figure.times.median_ms.items()}
    print(
        f"{figure.direction:18} N={figure.num_coeffs:<2} L={figure.length:<5} events={figure.events:<6} "
        f"ns an element: ours {per_element['legendre_conv']:6.3f}  torch.fft {per_element['torch.fft']:6.2f} "
        f"({figure.plain_over_ours:5.2f}x, fastest {figure.plain_over_ours_fastest:5.2f}x)  "
        f"fft_conv {per_element['fft_conv']:6.2f}  copy {per_element['copy']:6.3f} "
        f"(ours {figure.ours_over_copy:4.2f}x)",
        flush=True,
    )


def speed(repetitions: int) -> Section:
    figures = []
    for num_coeffs in NUM_COEFFS:
        for events in EVENTS:
            for length in LENGTHS:
                for direction in DIRECTIONS:
                    figures.append(speed_figure(length, events, num_coeffs, direction, repetitions))
                    print_speed(figures[-1])

    def bound(num_coeffs: int, direction: str, lengths: tuple[int, ...], least: float) -> Bound:
        chosen = [
            figure
            for figure in figures
            if (figure.num_coeffs, figure.direction) == (num_coeffs, direction) and figure.length in lengths
        ]
        return at_least(
            f"torch.fft over legendre_conv, N = {num_coeffs}, {direction}, L = {lengths}",
            [figure.plain_over_ours for figure in chosen],
            least,
            [figure.plain_over_ours_fastest for figure in chosen],
        )

    bounds = []
    for num_coeffs in NUM_COEFFS:
        bounds.append(bound(num_coeffs, "forward", (1024,), 7))
        bounds.append(bound(num_coeffs, "forward", (200, 4096), 5))
        bounds.append(bound(num_coeffs, "forward + backward", (200, 1024, 4096), 5))
    return Section([asdict(figure) for figure in figures], bounds)


@dataclass(frozen=True)
class RatioFigure:
    """Two things that took turns; the ratio is of their times, per event where they differ in those."""

    what: str
    direction: str
    num_coeffs: int
    times: Times
    ratio: float
    ratio_fastest: float

    def __str__(self) -> str:
        times = "  ".join(f"{name} {ms:8.2f} ms" for name, ms in self.times.median_ms.items())
        return (
            f"{self.what:44} {self.direction:18} N={self.num_coeffs:<2} {times}  "
            f"ratio {self.ratio:5.3f}, fastest {self.ratio_fastest:5.3f}"
        )


def ratios(figures: list[RatioFigure]) -> list[float]:
    return [figure.ratio for figure in figures]


def fastest_ratios(figures: list[RatioFigure]) -> list[float]:
    return [figure.ratio_fastest for figure in figures]


def mixer(repetitions: int) -> Section:
    figures = []
    for num_coeffs in NUM_COEFFS:
        for events in EVENTS:
            for length in LENGTHS:
                one = Mixer(Sequences.equal(length, events), num_coeffs)
                calls = {"separate": one.separate(), "hyena_mixer": one.hyena_mixer()}
                check_same(*calls.values())
                for direction in DIRECTIONS:
                    times = timed({name: call.run(direction) for name, call in calls.items()}, repetitions)
                    ratio = times.ratio(*calls), times.fastest_ratio(*calls)
                    what = f"hyena_mixer, L = {length:,}, {events:,} events"
                    figures.append(RatioFigure(what, direction, num_coeffs, times, *ratio))
                    print(figures[-1], flush=True)
    bounds = []
    for direction in DIRECTIONS:
        chosen = [figure for figure in figures if figure.direction == direction]
        what = f"short_conv + legendre_conv over hyena_mixer, {direction}"
        bounds.append(at_least(what, ratios(chosen), 1.3, fastest_ratios(chosen)))
    return Section([asdict(figure) for figure in figures], bounds)


def growth_figure(horizon: int | None, num_coeffs: int, direction: str, repetitions: int) -> RatioFigure:
    """`horizon` is that of both lengths, or each length's own."""
    short, long = GROWTH_LENGTHS
    runs = {
        f"L = {length:,}": Convolution(Sequences.equal(length, GROWTH_EVENTS), num_coeffs, horizon)
        .legendre_conv()
        .run(direction)
        for length in (long, short)
    }
    times = timed(runs, 2 * repetitions)
    what = f"horizon {'L' if horizon is None else f'{horizon:,}'}, {GROWTH_EVENTS:,} events"
    return RatioFigure(what, direction, num_coeffs, times, times.ratio(*runs), times.fastest_ratio(*runs))


def growth(repetitions: int) -> Section:
    figures, bounds = [], []
    for horizon in (None, max(GROWTH_LENGTHS)):
        of_horizon = [
            growth_figure(horizon, num_coeffs, direction, repetitions)
            for num_coeffs in NUM_COEFFS
            for direction in DIRECTIONS
        ]
        print("\n".join(map(str, of_horizon)), flush=True)
        figures += of_horizon
        name = "the length's own horizon" if horizon is None else "the same horizon"
        what = f"time per element, L = 16,384 over 1,024, {name}"
        bounds.append(at_most(what, ratios(of_horizon), 1.15, fastest_ratios(of_horizon)))
    return Section([asdict(figure) for figure in figures], bounds)


def packed_figure(
    problem: type[Convolution] | type[Mixer],
    packed: Sequences,
    equal: Sequences,
    num_coeffs: int,
    direction: str,
    repetitions: int,
) -> RatioFigure:
    def run(sequences: Sequences) -> Callable[[], object]:
        one = problem(sequences, num_coeffs, max(packed.longest, equal.longest))
        return (one.legendre_conv() if isinstance(one, Convolution) else one.hyena_mixer()).run(direction)

    times = timed({"packed": run(packed), "equal": run(equal)}, 2 * repetitions)
    events = equal.events / packed.events
    op = "legendre_conv" if problem is Convolution else "hyena_mixer"
    what = f"{op}, packed up to {packed.longest:,} over {equal.longest:,}"
    ratio = times.ratio("packed", "equal") * events, times.fastest_ratio("packed", "equal") * events
    return RatioFigure(what, direction, num_coeffs, times, *ratio)


def packed(repetitions: int) -> Section:
    figures = []
    num_coeffs = NUM_COEFFS[0]
    for longest in PACKED_LONGEST:
        histories = movielens_lengths(longest, EVENTS[1])
        mean = round(histories.events / len(histories.lengths))
        lengths = (200, mean) if longest == 200 else (1024, mean)
        print(f"packed: {len(histories.lengths)} histories, {histories.events:,} events, mean {mean}")
        for length in lengths:
            equal = Sequences.equal(length, histories.events)
            for problem in (Convolution, Mixer):
                for direction in DIRECTIONS:
                    figures.append(
                        packed_figure(problem, histories, equal, num_coeffs, direction, repetitions)
                    )
                    print(figures[-1], flush=True)
    bound = at_most("time per event, packed over equal", ratios(figures), 1.15, fastest_ratios(figures))
    return Section([asdict(figure) for figure in figures], [bound])


def streams(_: int) -> Section:
    """On one thread: an event is too little to share, and threads that wait for each other only disturb."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = streaming.measure_all("cpu", passes=3)
    torch.set_num_threads(threads)
    growth = [figure["last_over_first"] for figure in result["figures"]]
    return Section(
        result,
        [
            at_most("time per event, last thousand over first", growth, 1.1),
            at_most("stream's error against the batch path", [result["whole_history"]["error"]], 1e-5),
        ],
    )


def memory(_: int) -> Section:
    figures = []
    for figure in peak_memory.measure_all(torch.get_num_threads()):
        figures.append(figure)
        layout = "packed up to" if figure.is_packed else "L ="
        print(
            f"{figure.op:14} {layout:12} {figure.length:<6} needed {figure.needed:6.1f} MiB  tables "
            f"{figure.tables:5.2f}  extra {figure.extra:6.2f}  beyond {100 * figure.beyond_share:5.1f}%",
            flush=True,
        )
    ours = [figure.beyond_share for figure in figures if figure.op != "torch.fft"]
    return Section(
        [asdict(figure) for figure in figures], [at_most("memory beyond what is needed, share", ours, 0.1)]
    )


SECTIONS: dict[str, Callable[[int], Section]] = {
    "accuracy": accuracy,
    "speed": speed,
    "mixer": mixer,
    "growth": growth,
    "packed": packed,
    "streaming": streams,
    "memory": memory,
}


def main() -> int:
    return run_sections("Measures the Legendre scan; see this file's head.", SECTIONS)


if __name__ == "__main__":
    sys.exit(main())
