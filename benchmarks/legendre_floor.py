"""What legendre_conv has to do at least: its multiply-adds, counted from its own tables, and its bytes."""

from __future__ import annotations

from dataclasses import dataclass

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
class Chunk:
    """Multiply-adds of each part of one chunk of one channel, as csrc/ops/legendre_tables.h describes them.

    A multiplication alone counts as one; an addition alone doesn't. Polynomials are even or odd about the
    chunk's middle, so evaluation and moments take half of a matrix product.
    """

    rows: int
    near: int  # lags within the chunk, directly
    evaluate: int  # the state's contribution to the outputs: local, basis, fade; or its transposed
    moments: int  # of the inputs, with lift; or its transposed
    restrict: int  # the state, and its decay
    transfer: int  # the contracted moments into the state
    contract: int  # coefficients with the transfer table: once for all sequences

    def forward(self, sequences: int) -> float:
        gates = 2 * self.rows
        states = self.evaluate + self.moments + self.restrict + self.transfer
        return self.near + gates + states + self.contract / sequences

    def backward(self, sequences: int, num_coeffs: int) -> float:
        # States once more; post_gate's gradient needs the output, the decay's its far part, a lag each.
        again = self.forward(sequences) + 3 * self.rows
        # Gradients of inputs (near), of the near kernel (near), of states and moments, of both gates and u.
        adjoint = 2 * self.near + 3 * self.rows + self.evaluate + self.moments + self.restrict
        # The moments' gradient, and the products of moments and states' gradients; the decay's two sums.
        products = 2 * self.transfer + (2 * self.rows + num_coeffs if self.transfer else 0)
        return again + adjoint + products + 2 * self.contract / sequences


def chunks(size: int, length: int, horizon: int, num_coeffs: int) -> list[Chunk]:
    result = []
    for i, (local, moments) in enumerate(_C.legendre_chunk_terms(horizon, size, num_coeffs, length)):
        rows, goes_on = min(size, length - i * size), length > (i + 1) * size
        by_local = upper(local, num_coeffs) + min(size // 2, rows) * local
        evaluate = (by_local if local > 0 else rows * num_coeffs) + rows  # no local: the horizon's cut chunk
        result.append(
            Chunk(
                rows=rows,
                near=triangle(rows),
                evaluate=evaluate if i > 0 else 0,
                moments=(size // 2 * moments + size) if goes_on else 0,
                restrict=(triangle(num_coeffs) if i > 0 else 0) + num_coeffs if goes_on else 0,
                transfer=upper(moments, num_coeffs) if goes_on else 0,
                contract=sum(triangle(num_coeffs - q) for q in range(moments)) if goes_on else 0,
            )
        )
    return result


def multiply_adds(sequences: Sequences, horizon: int, num_coeffs: int, direction: str) -> float:
    """Of one call over equal lengths, forward or forward + backward."""
    count = len(sequences.lengths)
    size = _C.legendre_chunk_length(num_coeffs)
    total = sum(chunk.forward(count) for chunk in chunks(size, sequences.longest, horizon, num_coeffs))
    if direction != "forward":
        size = _C.legendre_backward_chunk_length(num_coeffs, horizon)
        backward = chunks(size, sequences.longest, horizon, num_coeffs)
        total += sum(chunk.backward(count, num_coeffs) for chunk in backward)
    return total * count * CHANNELS
