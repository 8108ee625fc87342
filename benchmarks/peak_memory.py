"""Peak memory of forward + backward beyond inputs, output and gradients; see legendre_conv.py.

Each case runs in a separate process, because torch does not account for the kernels' own buffers: only the
process's peak resident memory includes everything. Called with a case in JSON, this file is that process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from convolutions import CHANNELS, Call, Convolution, Mixer, Sequences, movielens_lengths
from timing import forward_backward
from torch import Tensor

from hyenarec import ops
from hyenarec.memory import reset_peak, resident, run_in_subprocess

NUM_COEFFS = 17
EVENTS = 1 << 16
LENGTHS = (200, 1024, 16384)
LONGEST_PACKED = 2277


@dataclass(frozen=True)
class Case:
    """`length` is that of all sequences, or the longest of packed ones."""

    op: str
    length: int
    is_packed: bool
    threads: int

    def call(self) -> Call:
        sequences = (
            movielens_lengths(self.length, EVENTS) if self.is_packed else Sequences.equal(self.length, EVENTS)
        )
        if self.op == "hyena_mixer":
            return Mixer(sequences, NUM_COEFFS, self.length).hyena_mixer()
        convolution = Convolution(sequences, NUM_COEFFS, self.length)
        return convolution.plain() if self.op == "torch.fft" else convolution.legendre_conv()


@dataclass(frozen=True)
class Figure:
    """MiB. `needed`: inputs, output, all gradients. `tables`: kept for later calls. `extra`: beyond both."""

    op: str
    length: int
    is_packed: bool
    needed: float
    tables: float
    extra: float
    beyond_share: float  # (tables + extra) / needed


def mebibytes(tensors: list[Tensor]) -> float:
    return sum(tensor.nbytes for tensor in tensors) / 2**20


def warm_up(length: int) -> float:
    """Loads and starts what the first call of all needs, then builds the scan's tables; MiB of those."""
    for sequences, channels in ((Sequences([1, 1]), CHANNELS), (Sequences([length]), 1)):
        reset_peak()
        before = resident("VmRSS")
        u = torch.zeros(*sequences.sizes(), channels)
        arguments = [u, torch.zeros(channels, NUM_COEFFS), torch.zeros(channels)]
        forward_backward(lambda *tensors: ops.legendre_conv(*tensors, length), arguments, u)()
    reset_peak()
    return max(resident("VmRSS") - before, 0.0)


def measure(case: Case) -> Figure:
    """To be called once in a process."""
    torch.set_num_threads(case.threads)
    call = case.call()
    tables = warm_up(case.length)
    run = call.run("forward + backward")
    reset_peak()
    before = resident("VmRSS")
    run()
    peak = resident("VmHWM") - before
    results = mebibytes([call.grad, *call.arguments])  # as large as the output and the gradients
    needed = 2 * results
    extra = peak - results
    if case.op == "torch.fft":
        tables = 0.0  # it has none
    return Figure(case.op, case.length, case.is_packed, needed, tables, extra, (tables + extra) / needed)


def cases(threads: int) -> Iterator[Case]:
    for op in ("legendre_conv", "hyena_mixer", "torch.fft"):
        for length in LENGTHS:
            yield Case(op, length, False, threads)
        if op != "torch.fft":
            yield Case(op, LONGEST_PACKED, True, threads)


def measure_all(threads: int) -> Iterator[Figure]:
    for case in cases(threads):
        yield Figure(**run_in_subprocess([__file__], asdict(case)))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Case(**json.loads(sys.argv[1]))))))
