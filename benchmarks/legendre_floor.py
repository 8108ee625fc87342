"""What legendre_conv has to do at least: its multiply-adds, counted from its own tables, and its bytes."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from convolutions import CHANNELS, Sequences

from hyenarec import _C

FLOAT_BYTES = 4


def bytes_moved(events: int, direction: str) -> int:
    """Each input read once and each output written once."""
    forward = 4  # u, two gates -> out
    backward = 7  # grad, u, two gates -> three gradients
    tensors = forward if direction == "forward" else forward + backward
    return tensors * events * CHANNELS * FLOAT_BYTES


def triangle(n: int) -> int:
    """Entries of an upper triangular matrix [n, n]."""
    return n * (n + 1) // 2


def upper(rows: int, columns: int) -> int:
    """Entries of an upper triangular matrix [rows, columns], rows <= columns."""
    return triangle(columns) - triangle(columns - rows)


@dataclass(frozen=True)
class Step:
    """What a state goes through from the start of a chunk, or of a section, to its end."""

    state: int  # coefficients that it starts with
    local: int  # and of its part on the interval
    moments: int  # of the interval's inputs
    next: int  # coefficients that it ends with
    transfer: int  # multiply-adds of the moments into the next state
    contract: int  # multiply-adds of the transfer table with the coefficients, once a call

    @property
    def restrict(self) -> int:
        return upper(self.next, self.state) + self.next  # and the decay


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one channel of one sequence, by what they do.

    A multiplication alone counts as one; an addition alone doesn't. Polynomials are even or odd about a
    chunk's middle, so evaluation and moments take half of a matrix product.
    """

    events: int = 0
    near: int = 0  # lags within a chunk, directly
    evaluate: int = 0  # the state's contribution to the outputs: local, basis, fade; or its transposed
    moments: int = 0  # of the inputs, with lift; or its transposed
    advance: int = 0  # states restricted, decayed, entered from section to section; moments gathered
    transfer: int = 0  # the contracted moments into the state
    products: int = 0  # the decay's gradient: states by their gradients

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def forward(self) -> int:
        gates = 2 * self.events
        return self.near + gates + self.evaluate + self.moments + self.advance + self.transfer

    def backward(self) -> int:
        # States once more; post_gate's gradient needs the output, the decay's its far part, a lag each.
        again = self.forward() + 3 * self.events
        # Gradients of inputs (near), of the near kernel (near), of states and moments, of both gates and u.
        adjoint = 2 * self.near + 3 * self.events + self.evaluate + self.moments + self.advance
        # The moments' gradient, and the products of moments and states' gradients; the decay's sums.
        return again + adjoint + 2 * self.transfer + 2 * self.events + self.products


def upper_rows(step: Step) -> int:
    return upper(step.local, step.state)


def chunk_work(step: Step, size: int, rows: int, moments: int, has_past: bool, has_next: bool) -> Work:
    """`moments` are all that are taken of it."""
    goes_on = rows == size and moments > 0
    directly, by_local = rows * step.state, upper_rows(step) + size // 2 * step.local
    evaluate = (min(directly, by_local) if step.local > 0 else directly) + rows
    return Work(
        events=rows,
        near=triangle(rows),
        evaluate=evaluate if has_past else 0,
        moments=size // 2 * moments + size if goes_on else 0,
        advance=step.restrict if has_past and has_next else 0,
        transfer=step.transfer if has_next else 0,
        products=step.state if has_past and has_next else 0,
    )


class Scan:
    """The steps of a scan, from its own tables (csrc/ops/cpu/section_tables.h)."""

    def __init__(self, horizon: int, num_coeffs: int, length: int) -> None:
        terms = _C.legendre_scan_terms(horizon, num_coeffs, length)
        self.horizon, self.length = horizon, length
        self.chunk, self.section = _C.legendre_chunk_length(num_coeffs), terms["section"]
        self.whole, self.cut, self.between = (
            [Step(**step) for step in terms[part]] for part in ("whole", "cut", "between")
        )
        self.gathered: list[int] = terms["gathered"]

    def is_cut(self, begin: int) -> bool:
        return begin + self.section > self.horizon

    def section_work(self, begin: int) -> Work:
        end = min(begin + self.section, self.length)
        passes = self.length > begin + self.section
        between = self.between[begin // self.section]
        steps = self.cut if self.is_cut(begin) else self.whole
        gathers = bool(self.gathered) and not self.is_cut(begin)
        work = Work()
        for i, start in enumerate(range(begin, end, self.chunk)):
            step, rows = steps[i], min(self.chunk, self.length - start)
            has_next = self.length > start + self.chunk and i + 1 < len(steps)
            moments = max(step.moments, self.gathered[i] if gathers else 0)
            goes_on = self.length > start + self.chunk
            work += chunk_work(step, self.chunk, rows, moments if goes_on else 0, start > 0, has_next)
            if passes:
                gather = upper(self.gathered[i], between.moments) + between.moments
                work += Work(advance=gather, products=self.gathered[i])
        if begin > 0:
            work += Work(advance=0 if self.is_cut(begin) else upper_rows(between))
        if passes:
            work += Work(transfer=between.transfer)
        if passes and begin > 0:
            work += Work(advance=between.restrict, products=between.state)
        return work

    def work(self) -> Work:
        begins = range(0, self.length, self.section)
        return sum((self.section_work(begin) for begin in begins), Work())

    def contract(self) -> int:
        """Once a call."""
        begins = range(0, self.length, self.section)
        in_last = self.length - begins[-1]
        longest_whole = min(self.length, self.section)
        chunks = {
            "whole": (longest_whole - 1) // self.chunk,
            "cut": (in_last - 1) // self.chunk if self.is_cut(begins[-1]) else 0,
            "between": len(begins) - 1,
        }
        return sum(step.contract for part, count in chunks.items() for step in getattr(self, part)[:count])


def multiply_adds(sequences: Sequences, horizon: int, num_coeffs: int, direction: str) -> int:
    """Of one call over equal lengths, forward or forward + backward."""
    scan = Scan(horizon, num_coeffs, sequences.longest)
    of_one = scan.work().forward()
    contract = scan.contract()
    if direction != "forward":
        of_one += scan.work().backward()
        contract *= 3  # again for the states, transposed for the coefficients' gradient
    return (of_one * len(sequences.lengths) + contract) * CHANNELS
