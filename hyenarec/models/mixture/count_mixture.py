"""Counts mixed into the softmax over the catalogue.

    P(j) ∝ exp(β score[j] + Σ_h Σ_k b_hk f_hk[j] - c) + Σ_h Σ_k w_hk E_hk[j] / (κ_h + Σ_i E_hk[i])

The network knows what items have in common, but not what a few events tell about a single one; counts do.
E_hk[j] is what source h counts for item j after a history (`SOURCES` has them), 0 for most items. Counts take
part twice, because each form does what the other one can't:

- The sum lets an item come first that the network ranks low. κ makes little evidence count less.
- The shift of the network's scores agrees with the network or contradicts it: what usually follows counts for
  more where the network expects its like, and what was there just now can be taken back where people rarely
  take a thing twice in a row. f is 1 in the bin that an item is in, and log(1 + E / unit) in other kinds; b
  differs between items that the history has and all others.

β, mostly below 1, takes back the confidence that a network has in what it was trained on; c only keeps
numbers near 1. The mixed scores are the logarithm of the right side.

Nothing of this is trained with the network, which would leave to the counts what it can learn better itself,
and weigh them by events it has seen: `train/mixture_weights.py` fits β, b, w and κ to the validation targets.

Source: Neubig and Dyer, "Generalizing and hybridizing count-based and neural language models", EMNLP 2016,
for the sum; Hinton, "Training products of experts by minimizing contrastive divergence", Neural Computation
2002, for the shift, a product; weights from held-out data: Jelinek and Mercer, "Interpolated estimation of
Markov source parameters from sparse data", Pattern Recognition in Practice 1980.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hyenarec.data.histories import Histories, Int64Array
from hyenarec.data.times import Times
from hyenarec.models.mixture.evidence import Evidence, Memory, Source
from hyenarec.models.mixture.followers import Followers
from hyenarec.models.mixture.own_followers import OwnFollowers
from hyenarec.models.mixture.repeats import Repeats
from hyenarec.models.mixture.repeats_by_time import RepeatsByTime

SOURCES: dict[str, type[Source]] = {
    "repeats": Repeats,
    "own_followers": OwnFollowers,
    "followers": Followers,
    "repeats_by_time": RepeatsByTime,
}
"""What can be counted, by the name of its setting."""


REPEATS = "repeats"
"""The source that counts all items of a history: without it no item is taken for one of the history's."""


class Weights(nn.Module):
    """How much a source counts; 0 until it is fitted.

    Args:
        kinds: K, of the source.
    """

    weight: Tensor
    shift: Tensor
    shrinkage: Tensor

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(kinds))  # w
        self.register_buffer("shift", torch.zeros(2, kinds))  # b, of other items, then of the history's
        self.register_buffer("shrinkage", torch.ones(()))  # κ

    def forward(self, totals: Tensor) -> Tensor:
        """What an amount of 1 adds, given Σ E: `[B, K]` -> `[B, K]`, float64."""
        return self.weight.double() / (self.shrinkage + totals)


@dataclass(frozen=True, eq=False)
class Added:
    """What is added to some scores and to their exponentials; each of these scores is here once.

    Attributes:
        row: int64 `[n]`, of the history.
        column: int64 `[n]`, the item's id - 1, ascending.
        shift: float64 `[n]`, added to the score.
        log_amount: float64 `[n]`, the logarithm of what is then added to the exponential.
        columns: `column` on the host, where those of a tile are looked up.
    """

    row: Tensor
    column: Tensor
    shift: Tensor
    log_amount: Tensor
    columns: Int64Array

    @staticmethod
    def of(row: Tensor, column: Tensor, shift: Tensor, amount: Tensor) -> Added:
        """Sums up what is added to each score."""
        rows = int(row.max()) + 1 if len(row) > 0 else 1
        key, place = torch.unique(column * rows + row, return_inverse=True)
        sums = torch.zeros(len(key), 2, dtype=amount.dtype, device=amount.device)
        shift, amount = sums.index_add(0, place, torch.stack([shift, amount], 1)).unbind(1)
        column = key // rows
        return Added(key % rows, column, shift, amount.log(), column.cpu().numpy())

    def mix_into(self, scores: Tensor, first: int) -> Tensor:
        """Adds, in place, to scores `[B, v]` of the columns from `first` on, and to their exponentials."""
        here = slice(*np.searchsorted(self.columns, (first, first + scores.shape[1])))
        place = (self.row[here], self.column[here] - first)
        shift, log_amount = (x[here].to(scores.dtype) for x in (self.shift, self.log_amount))
        return scores.index_put_(place, torch.logaddexp(scores[place] + shift, log_amount))


class CountMixture(nn.Module):
    """Mixes what sources count into scores; see the top of this file.

    Args:
        names: of the sources, from `SOURCES`.
        num_items: V, size of the catalogue.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, names: Iterable[str], num_items: int) -> None:
        super().__init__()
        self.sources = nn.ModuleDict({name: SOURCES[name](num_items) for name in names})
        self.weights = nn.ModuleDict({name: Weights(SOURCES[name].kinds) for name in names})
        self.register_buffer("scale", torch.ones(()))  # β
        self.register_buffer("offset", torch.zeros(()))  # c

    def count(self, train: Histories) -> None:
        """Counts what the sources need of the training events."""
        for source in self.each_source():
            source.count(train)

    def evidence(self, items: Tensor, offsets: Tensor, seconds: Times | None = None) -> list[Evidence]:
        """What each source counts after packed histories; see `Source.evidence`."""
        return [source.evidence(items, offsets, seconds) for source in self.each_source()]

    def memories(self, device: torch.device) -> list[Memory]:
        """What each source keeps of an empty history."""
        return [source.memory(device) for source in self.each_source()]

    def weigh(self, evidence: Sequence[Evidence]) -> Added:
        """Turns what the sources count into what is added."""
        parts = []
        which = zip(self.each_source(), self.each_weights(), evidence, self.own(evidence), strict=True)
        for source, weights, counted, own in which:
            each = weights(counted.totals())[counted.row, counted.kind]
            shift = weights.shift.double()[own, counted.kind] * source.features(counted)
            parts.append((counted.row, counted.item - 1, shift, each * counted.amount))
        return Added.of(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def own(self, evidence: Sequence[Evidence]) -> list[Tensor]:
        """For each source int64 `[n]`: 1 where an amount is one of an item that the history has, else 0."""
        has = dict(zip(self.sources, evidence, strict=True)).get(REPEATS)
        if has is None or len(has.key) == 0:
            return [torch.zeros_like(counted.kind) for counted in evidence]
        keys = torch.unique(has.where(has.kind == 0).key)  # each item has an amount of each half-life
        places = [torch.searchsorted(keys, counted.key).clamp(max=len(keys) - 1) for counted in evidence]
        return [(keys[place] == counted.key).long() for place, counted in zip(places, evidence, strict=True)]

    def mix(self, scores: Tensor, added: Added, first: int) -> Tensor:
        """The scores `[B, v]` of the columns from `first` on, mixed with what is added."""
        return added.mix_into(self.scale.to(scores.dtype) * scores - self.offset.to(scores.dtype), first)

    def each_source(self) -> list[Source]:
        """The sources in their order."""
        return list(self.sources.values())  # type: ignore[arg-type]

    def each_weights(self) -> list[Weights]:
        """The weights of the sources."""
        return list(self.weights.values())  # type: ignore[arg-type]
