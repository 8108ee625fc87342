"""What is counted for some items after each of several histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from hyenarec.data.histories import Histories
from hyenarec.data.times import Times


@dataclass(frozen=True, eq=False)
class Evidence:
    """Amounts E[b, k, j] >= 0 of kind k for item j after history b; those that are not here are 0.

    Attributes:
        row: int64 `[n]`, b. The same b, k and j are here once.
        kind: int64 `[n]`, k.
        item: int64 `[n]`, j, ids 1..V.
        amount: float64 `[n]`.
        shape: the numbers of histories, kinds and items: B, K, V.
    """

    row: Tensor
    kind: Tensor
    item: Tensor
    amount: Tensor
    shape: tuple[int, int, int]

    @staticmethod
    def of_first_kinds(row: Tensor, item: Tensor, amount: Tensor, shape: tuple[int, int, int]) -> Evidence:
        """From amounts of the first k kinds: int64 `[n]`, int64 `[n]` and `[n, k]`."""
        kinds = amount.shape[1]
        kind = torch.arange(kinds, device=row.device).repeat(len(row))
        row, item = row.repeat_interleave(kinds), item.repeat_interleave(kinds)
        return Evidence(row, kind, item, amount.flatten(), shape)

    @staticmethod
    def joined(parts: Sequence[Evidence]) -> Evidence:
        """All amounts of evidence of one shape."""
        columns = zip(*((part.row, part.kind, part.item, part.amount) for part in parts), strict=True)
        row, kind, item, amount = map(torch.cat, columns)
        return Evidence(row, kind, item, amount, parts[0].shape)

    @property
    def key(self) -> Tensor:
        """One number for each history and item, `[n]`: `row * (V + 1) + item`."""
        return self.row * (self.shape[2] + 1) + self.item

    def where(self, chosen: Tensor) -> Evidence:
        """The amounts that a mask `[n]` chooses."""
        row, kind, item, amount = (x[chosen] for x in (self.row, self.kind, self.item, self.amount))
        return Evidence(row, kind, item, amount, self.shape)

    def summed(self) -> Evidence:
        """The same from amounts of which several may have the same b, k and j: they add up."""
        _, kinds, num_items = self.shape
        key, place = torch.unique(self.key * kinds + self.kind, return_inverse=True)
        amount = self.amount.new_zeros(len(key)).index_add_(0, place, self.amount)
        key, kind = key // kinds, key % kinds
        return Evidence(key // (num_items + 1), kind, key % (num_items + 1), amount, self.shape)

    def totals(self) -> Tensor:
        """Σ_j E[b, k, j], `[B, K]`."""
        rows, kinds, _ = self.shape
        sums = self.amount.new_zeros(rows * kinds)
        return sums.index_add_(0, self.row * kinds + self.kind, self.amount).view(rows, kinds)


class Source(nn.Module):
    """Counts something for the items that it concerns.

    Args:
        num_items: V, size of the catalogue.

    Attributes:
        kinds: K, how many different amounts an item has.
        bins: the kinds that are bins, if any: an item that the source counts is in exactly one of them.
        unit: the amount from which on it matters how many times as large another one is, and below which
            only the difference does.
    """

    kinds: int
    bins = range(0)
    unit: float

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items = num_items

    def count(self, train: Histories) -> None:
        """Counts in the training events, once, if the source needs that."""

    def features(self, evidence: Evidence) -> Tensor:
        """What a shift is in proportion to, `[n]`: log(1 + E / unit), and 1 in bins."""
        in_bins = (evidence.kind >= self.bins.start) & (evidence.kind < self.bins.stop)
        return torch.where(in_bins, 1.0, torch.log1p(evidence.amount / self.unit))

    def evidence(self, items: Tensor, offsets: Tensor, seconds: Times | None = None) -> Evidence:
        """What is counted after packed histories.

        Args:
            items: int64 `[total]`, ids 1..V.
            offsets: int64 `[B + 1]`; an empty history has no amounts.
            seconds: moments of events and questions, for sources that need them.
        """
        raise NotImplementedError

    def memory(self, device: torch.device) -> Memory:
        """What the source keeps of an empty history, to be extended event by event."""
        raise NotImplementedError


class Memory(Protocol):
    """What a source keeps of one growing history."""

    def append(self, item: int, second: int | None = None) -> None:
        """Adds the next event; its moment is for sources that need it."""
        ...

    def evidence(self, asked: int | None = None) -> Evidence:
        """What `Source.evidence` says of the history, asked at a moment in seconds."""
        ...

    def copy(self) -> Self:
        """An independent copy."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the state, without the model's."""
        ...


def rows_and_lags(offsets: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Of each packed event, its history and the number of events since, int64 `[total]` each."""
    place = torch.arange(total, device=offsets.device)
    row = torch.bucketize(place, offsets[1:], right=True)
    return row, offsets[1:].index_select(0, row) - 1 - place
