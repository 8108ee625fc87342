"""The repeat head: where people come back to items, those of the history score by when they occurred.

    P(j) ∝ exp(score[j]) + g A[j],   A[j] = Σ_{s: item_s = j} w(t - s),   g = exp(a · hidden + b)
    w(τ) = Σ_k p_k (1 - exp(-r_k)) exp(-r_k τ)

after event t: the softmax over the catalogue, mixed with the items of the history. Each occurrence is
weighted by its lag, with a learned mixture of geometric distributions; the model's state says how much
repeats count. Only items of the history score differently than without the head: log(exp(score) + g A). And
the sum over all items, which the loss needs, is Σ exp(score) + g Σ_s w(t - s): it takes no further scores.

A[j] changes only with events of item j, apart from its fading, so all sums are computed along each item's own
occurrences: in training by a scan over these, in a stream one event after another.

Source: the mixture is the copy mechanism of Gu et al., "Incorporating Copying Mechanism in
Sequence-to-Sequence Learning", ACL 2016, with weights by lag in place of attention.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

RATES = 8
"""Geometric distributions that the weight over lags is a mixture of."""

FIRST_SHARE = 0.1
"""What the history's items get of the probability before anything is learned."""


class RepeatHead(nn.Module):
    """Adds to the scores of a history's items; see the top of this file.

    Args:
        dim: D, channels of a hidden row.
        num_items: V, size of the catalogue.
        max_len: T, most events of a history.
    """

    def __init__(self, dim: int, num_items: int, max_len: int) -> None:
        super().__init__()
        self._base = (num_items + 1, max_len)
        self.log_rate = nn.Parameter(
            torch.linspace(math.log(math.log(2)), -math.log(max(max_len, 2)), RATES)  # half-lives of 1 to T
        )
        self.mixture = nn.Parameter(torch.zeros(RATES))
        self.strength = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.tensor(math.log(num_items * FIRST_SHARE / (1 - FIRST_SHARE))))

    @property
    def rate(self) -> Tensor:
        """r, the rate of each distribution per lag, `[RATES]`."""
        return self.log_rate.exp()

    @property
    def weight(self) -> Tensor:
        """w(0) of each distribution, `[RATES]`."""
        return self.mixture.softmax(0) * -torch.expm1(-self.rate)

    def log_gain(self, hidden: Tensor) -> Tensor:
        """Rows `[..., D]` -> log g, `[...]`, in float32 at least."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, self.strength.dtype))
        return hidden @ self.strength + self.bias

    def of_targets(self, items: Tensor, offsets: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What the loss needs of every event's history up to that event.

        Args:
            items: int64 `[total]`, ids from 0 on, packed.
            offsets: int64 `[B + 1]`.
            targets: int64 `[total]`, the item after each event.

        Returns:
            log A of the targets, -inf for those that are not in the history, and log Σ_s w; `[total]` each.
        """
        occurrences = Occurrences.of(items, offsets, self._base)
        sums = self._sums(occurrences)
        place, lag, found = occurrences.latest(targets)
        faded = sums.index_select(0, place) * torch.exp(-self.rate * lag[:, None])
        everything = self.mixture.softmax(0) * -torch.expm1(-self.rate * (occurrences.position + 1)[:, None])
        return _log(faded @ self.weight, found), everything.sum(1).log()

    def of_histories(self, items: Tensor, offsets: Tensor, hidden: Tensor) -> RepeatScores:
        """What the items of whole histories score, after their last events.

        Args:
            items: int64 `[total]`, packed.
            offsets: int64 `[B + 1]`; no history is empty.
            hidden: `[B, D]`, the row of each last event.
        """
        occurrences = Occurrences.of(items, offsets, self._base)
        row = occurrences.sequence.index_select(0, occurrences.order)
        position = occurrences.position.index_select(0, occurrences.order)
        lag = offsets.diff().index_select(0, row) - 1 - position
        value = (self._sums(occurrences) * torch.exp(-self.rate * lag[:, None])) @ self.weight
        return RepeatScores(
            row=row,
            item=items.index_select(0, occurrences.order),
            log_score=_log(value, occurrences.is_last()) + self.log_gain(hidden).index_select(0, row),
        )

    def _sums(self, occurrences: Occurrences) -> Tensor:
        """Σ exp(-r lag) over an item's occurrences up to each one, `[total, RATES]`, in sorted order.

        A scan by doubling: after each round, the sums reach twice as far back.
        """
        is_first = occurrences.is_first()
        fade = torch.exp(-self.rate * occurrences.gap()[:, None]).masked_fill(is_first[:, None], 0)
        sums = torch.ones_like(fade)
        reach = 1
        while reach < min(len(sums), self._base[1]):
            sums = torch.cat([sums[:reach], torch.addcmul(sums[reach:], fade[reach:], sums[:-reach])])
            fade = torch.cat([torch.zeros_like(fade[:reach]), fade[reach:] * fade[:-reach]])
            reach *= 2
        return sums


@dataclass(frozen=True, eq=False)
class Occurrences:
    """The events of packed sequences, sorted by sequence, then item, then time.

    Attributes:
        sequence: int64 `[total]`, of each event in its original place.
        position: int64 `[total]`, within the sequence.
        order: int64 `[total]`, the original place of each sorted event.
        key: int64 `[total]`, ascending: (sequence, item, position) as one number.
        base: of the digits of `key`: items are below the first, positions below the second.
    """

    sequence: Tensor
    position: Tensor
    order: Tensor
    key: Tensor
    base: tuple[int, int]

    @staticmethod
    def of(items: Tensor, offsets: Tensor, base: tuple[int, int]) -> Occurrences:
        """Sorts the events of packed sequences."""
        total = items.shape[0]
        place = torch.arange(total, device=items.device)
        sequence = torch.bucketize(place, offsets[1:], right=True)
        position = place - offsets.index_select(0, sequence)
        key, order = ((sequence * base[0] + items) * base[1] + position).sort()
        return Occurrences(sequence, position, order, key, base)

    def gap(self) -> Tensor:
        """Events since the item's last occurrence, `[total]`; of no meaning where there is none."""
        return self.key.diff(prepend=self.key[:1])

    def is_first(self) -> Tensor:
        """Whether an event is the first one of its item in its sequence, `[total]`, in sorted order."""
        group = self.key // self.base[1]
        return torch.cat([torch.ones_like(group[:1], dtype=torch.bool), group[1:] != group[:-1]])

    def is_last(self) -> Tensor:
        """Whether an event is the last one of its item in its sequence, `[total]`, in sorted order."""
        first = self.is_first()
        return torch.cat([first[1:], torch.ones_like(first[:1])])

    def latest(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where each event's target occurred last, up to the event.

        Args:
            targets: int64 `[total]`, in the events' original order.

        Returns:
            The place in sorted order, the lag, and whether there is one: `[total]` each.
        """
        num_items, max_len = self.base
        wanted = (self.sequence * num_items + targets) * max_len + self.position
        place = (torch.searchsorted(self.key, wanted, right=True) - 1).clamp(min=0)
        key = self.key.index_select(0, place)
        found = (key // max_len == wanted // max_len) & (key <= wanted)
        return place, (wanted - key).masked_fill(~found, 0), found


@dataclass(frozen=True, eq=False)
class RepeatScores:
    """What is added to some scores, in the sum of their exponentials.

    Attributes:
        row: int64 `[n]`, of the history.
        item: int64 `[n]`, ids 1..V.
        log_score: `[n]`, log(g A); -inf to add nothing. No others have a row and item in common.
    """

    row: Tensor
    item: Tensor
    log_score: Tensor

    def add_to(self, scores: Tensor, first: int) -> Tensor:
        """The scores `[B, n]` of the columns from `first` on with those of the histories' items changed."""
        width = scores.shape[1]
        column = self.item - 1 - first
        used = (column >= 0) & (column < width) & (self.log_score > -math.inf)
        column = column.where(used, width)  # a column of its own takes what belongs to no item here
        padded = nn.functional.pad(scores, (0, 1))
        changed = torch.logaddexp(padded[self.row, column], self.log_score.to(scores.dtype))
        return padded.index_put((self.row, column), changed)[:, :-1]


class RepeatMemory:
    """The occurrences of one growing history: constant time an event, memory for each distinct item.

    Args:
        head: the weights, which must not change.
    """

    def __init__(self, head: RepeatHead) -> None:
        self._head = head
        self._rate, self._weight = head.rate.detach(), head.weight.detach()
        self._slots: dict[int, int] = {}
        self._sums = self._rate.new_zeros(0, RATES)
        self._last = torch.zeros(0, dtype=torch.int64, device=self._rate.device)

    def append(self, item: int, position: int) -> None:
        """Adds the event at `position`, counted from 0; it is later than all before."""
        slot = self._slots.setdefault(item, len(self._slots))
        if slot == len(self._sums):
            room = max(slot, 8)
            self._sums = torch.cat([self._sums, self._sums.new_zeros(room, RATES)])
            self._last = torch.cat([self._last, self._last.new_zeros(room)])
        gap = position - self._last[slot]
        self._sums[slot] = self._sums[slot] * torch.exp(-self._rate * gap) + 1
        self._last[slot] = position

    def scores(self, hidden: Tensor, length: int) -> RepeatScores:
        """What the history's items score after `length` events; `hidden` `[D]` is the last one's row."""
        used = len(self._slots)
        lag = length - 1 - self._last[:used]
        value = (self._sums[:used] * torch.exp(-self._rate * lag[:, None])) @ self._weight
        item = torch.tensor(list(self._slots), dtype=torch.int64, device=lag.device)
        return RepeatScores(torch.zeros_like(item), item, value.log() + self._head.log_gain(hidden))

    def copy(self) -> Self:
        """An independent copy."""
        other = copy.copy(self)
        other._slots = dict(self._slots)
        other._sums, other._last = self._sums.clone(), self._last.clone()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the sums and positions."""
        return self._sums.nbytes + self._last.nbytes


def _log(value: Tensor, found: Tensor) -> Tensor:
    """Log of `value` where `found`, else -inf, with a gradient that is finite everywhere."""
    return value.where(found, 1).log().masked_fill(~found, -math.inf)
