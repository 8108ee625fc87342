"""The repeat head: where people come back to items, those of the history score by when they occurred.

    P(j) ∝ exp(score[j]) + g A[j],   A[j] = F[j] w(τ[j]),   g = exp(a · hidden + b)

after event t, where τ[j] is the number of events since item j occurred last, and

    F[j] = Σ_k c_k Σ_{s: item_s = j} exp(-r_k (t - τ[j] - s))   how often it had occurred, fading,
    w(τ) = (Σ_m a_m exp(-q_m τ))² / Z                           how likely it is to return after so long.

So the softmax over the catalogue is mixed with the items of the history; the model's state says how much
repeats count. All weights are positive, and w, which sums to 1, may be small at first, for what rests before
it returns. Only items of the history score differently than without the head: log(exp(score) + g A).

Nothing here takes pairs of events. F changes only with events of its item, along whose occurrences it is a
scan. Σ_j A[j], which the loss needs, is a sum of exponentials in time, to which each event adds its item's
new ones and from which it takes the old ones: a long convolution with N = 1.

Source: the mixture is the copy mechanism of Gu et al., "Incorporating Copying Mechanism in
Sequence-to-Sequence Learning", ACL 2016, with learned weights by time in place of attention.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from hyenarec import ops
from hyenarec.models.mixture.fading import FadingSums

RATES = 4
"""Exponentials in F, and in the root of w."""

FIRST_SHARE = 0.1
"""What the history's items get of the probability, roughly, before anything is learned."""

TINY = 1e-30
"""The least weight, so that logarithms and their gradients are finite."""


class RepeatHead(nn.Module):
    """Adds to the scores of a history's items; see the top of this file. It computes in float64.

    Args:
        dim: D, channels of a hidden row.
        num_items: V, size of the catalogue.
        max_len: T, most events of a history.
    """

    def __init__(self, dim: int, num_items: int, max_len: int) -> None:
        super().__init__()
        self._base = (num_items + 1, max_len)
        # Half-lives of 1 to about T.
        rates = torch.linspace(math.log(math.log(2)), -math.log(max(max_len, 2)), RATES)
        self.log_frequency_rate = nn.Parameter(rates.clone())  # r
        self.frequency_mixture = nn.Parameter(torch.zeros(RATES))  # c = softmax
        self.log_return_rate = nn.Parameter(rates.clone())  # q
        self.return_amplitude = nn.Parameter(rates.exp().sqrt())  # a; each exponential with the same sum
        self.strength = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.tensor(math.log(num_items * FIRST_SHARE / (1 - FIRST_SHARE))))

    def log_gain(self, hidden: Tensor) -> Tensor:
        """Rows `[..., D]` -> log g, `[...]`, in float32 at least."""
        # No product of matrices, which autocast would round.
        return (hidden * self.strength).sum(-1, dtype=self.strength.dtype) + self.bias

    def of_targets(self, items: Tensor, offsets: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What the loss needs of every event's history up to that event.

        Args:
            items: int64 `[total]`, ids from 0 on, packed.
            offsets: int64 `[B + 1]`.
            targets: int64 `[total]`, the item after each event.

        Returns:
            log A of the targets, -inf for those that are not in the history, and log Σ_j A[j]: `[total]`,
            float64.
        """
        occurrences = Occurrences.of(items, offsets, self._base)
        frequency = self._frequency(occurrences)
        place, lag, found = occurrences.latest(targets)
        log_targets = _log(frequency.index_select(0, place), found) + self._log_return(lag)
        return log_targets, self._log_total(occurrences, frequency, offsets)

    def of_histories(self, items: Tensor, offsets: Tensor, hidden: Tensor) -> RepeatScores:
        """What the items of whole histories score, after their last events.

        Args:
            items: int64 `[total]`, packed.
            offsets: int64 `[B + 1]`.
            hidden: `[B, D]`, the row of each last event.
        """
        occurrences = Occurrences.of(items, offsets, self._base)
        row = occurrences.sequence.index_select(0, occurrences.order)
        position = occurrences.position.index_select(0, occurrences.order)
        lag = offsets.diff().index_select(0, row) - 1 - position
        log_score = _log(self._frequency(occurrences), occurrences.is_last()) + self._log_return(lag)
        return RepeatScores(
            row=row,
            item=items.index_select(0, occurrences.order),
            log_score=log_score + self.log_gain(hidden).index_select(0, row),
        )

    def _frequency(self, occurrences: Occurrences) -> Tensor:
        """F at each event, of its item, `[total]`, in sorted order.

        A scan by doubling: after each round, the sums reach twice as far back.
        """
        rate = self.log_frequency_rate.double().exp()
        fade = torch.exp(-rate * occurrences.gap()[:, None])
        fade = fade.masked_fill(occurrences.is_first()[:, None], 0)
        sums = torch.ones_like(fade)
        reach = 1
        while reach < min(len(sums), self._base[1]):
            sums = torch.cat([sums[:reach], torch.addcmul(sums[reach:], fade[reach:], sums[:-reach])])
            fade = torch.cat([torch.zeros_like(fade[:reach]), fade[reach:] * fade[:-reach]])
            reach *= 2
        return sums @ self.frequency_mixture.double().softmax(0)

    def _return_terms(self) -> tuple[Tensor, Tensor]:
        """Rates and coefficients of w as a sum of `RATES`² exponentials."""
        rate = self.log_return_rate.double().exp()
        rates = (rate[:, None] + rate).flatten()
        amplitude = self.return_amplitude.double()
        coefficients = (amplitude[:, None] * amplitude).flatten()
        return rates, coefficients / (coefficients / -torch.expm1(-rates)).sum().clamp(min=TINY)

    def _log_return(self, lag: Tensor) -> Tensor:
        """Log w of each lag."""
        rates, coefficients = self._return_terms()
        return (torch.exp(-rates * lag[:, None]) @ coefficients).clamp(min=TINY).log()

    def _log_total(self, occurrences: Occurrences, frequency: Tensor, offsets: Tensor) -> Tensor:
        """Log Σ_j A[j] after each event, `[total]`, in the events' original order."""
        rates, coefficients = self._return_terms()
        before = frequency.roll(1).masked_fill(occurrences.is_first(), 0)
        old = before[:, None] * torch.exp(-rates * occurrences.gap()[:, None])
        change = torch.zeros_like(old).index_copy(0, occurrences.order, frequency[:, None] - old)
        one = torch.ones_like(rates)[:, None]
        terms = ops.legendre_conv(change, one, rates, self._base[1], offsets=offsets)
        return (terms @ coefficients).clamp(min=TINY).log()


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
        self._mixture = head.frequency_mixture.detach().double().softmax(0)
        self._occurred = FadingSums(head.log_frequency_rate.detach().double().exp().cpu().numpy())

    def append(self, item: int, position: int) -> None:
        """Adds the event at `position`, counted from 0; it is later than all before."""
        self._occurred.append(item, position)

    def scores(self, hidden: Tensor, length: int) -> RepeatScores:
        """What the history's items score after `length` events; `hidden` `[D]` is the last one's row."""
        device = hidden.device
        _, lag = self._occurred.at(length - 1)
        frequency = self._occurred.as_of_last().to(device) @ self._mixture
        item = torch.tensor(list(self._occurred.rows), dtype=torch.int64, device=device)
        log_score = frequency.log() + self._head._log_return(lag.to(device)) + self._head.log_gain(hidden)
        return RepeatScores(torch.zeros_like(item), item, log_score)

    def copy(self) -> Self:
        """An independent copy."""
        other = copy.copy(self)
        other._occurred = self._occurred.copy()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the sums and positions."""
        return self._occurred.nbytes


def _log(value: Tensor, found: Tensor) -> Tensor:
    """Log of `value` where `found`, else -inf, with a gradient that is finite everywhere."""
    return value.where(found, 1).log().masked_fill(~found, -math.inf)
