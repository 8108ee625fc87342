"""What the likelihood of targets depends on when counts are mixed in: the network's scores, and evidence."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyenarec.data import Targets
from hyenarec.data.batches import evaluation_batches
from hyenarec.data.histories import Int64Array, ragged_indices
from hyenarec.evaluation.scoring import Places, places_of_histories, scoring_mode, tile_width
from hyenarec.models.mixture.count_mixture import CountMixture
from hyenarec.models.mixture.evidence import Evidence
from hyenarec.models.sequential import Encoded, SequentialModel

SCALES = tuple(0.8**power for power in range(7))
"""The values of β that are tried, from 1 to 0.26."""

BATCH_SIZE = 256


@dataclass(frozen=True, eq=False)
class Observed:
    """What the likelihood of n targets after R histories depends on, besides the weights; float64.

    A cell is one bin, or none, of each source that has `bins`: items in it have their scores shifted alike.

    Attributes:
        row: int64 `[n]`, the history of each target.
        hidden: `[n, D]`, the row of the last event before each target.
        score: `[n]`, the network's score of the target.
        cell: int64 `[n]`, of the target.
        amounts: for each source `[n, K]`, E of the target.
        totals: for each source `[n, K]`, Σ E.
        kept: for each source `[n, K]`, Σ E over the items that may be recommended.
        log_rest: `[R, len(SCALES)]`, log Σ_j exp(β score[j]) over items in no bin that may be recommended.
        log_sums: `[m, len(SCALES)]`, the same over the items of a history in a cell, where there are any.
        place: int64 `[m]`, history · cells + cell.
        bins: for each source, the number of its bins.
    """

    row: Tensor
    hidden: Tensor
    score: Tensor
    cell: Tensor
    amounts: list[Tensor]
    totals: list[Tensor]
    kept: list[Tensor]
    log_rest: Tensor
    log_sums: Tensor
    place: Tensor
    bins: list[int]

    def __len__(self) -> int:
        """The number of targets."""
        return len(self.score)

    @staticmethod
    def joined(parts: list[Observed]) -> Observed:
        """The targets of all parts, of which there is at least one."""
        firsts = np.cumsum([0, *(len(part.log_rest) for part in parts)])[:-1].tolist()
        moved = [
            dataclasses.replace(part, row=part.row + first, place=part.place + first * part.cells)
            for part, first in zip(parts, firsts, strict=True)
        ]

        def together(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in moved])

        def of_sources(name: str) -> list[Tensor]:
            sources = zip(*(getattr(part, name) for part in moved), strict=True)
            return [torch.cat(tensors) for tensors in sources]

        return Observed(
            row=together("row"),
            hidden=together("hidden"),
            score=together("score"),
            cell=together("cell"),
            amounts=of_sources("amounts"),
            totals=of_sources("totals"),
            kept=of_sources("kept"),
            log_rest=together("log_rest"),
            log_sums=together("log_sums"),
            place=together("place"),
            bins=parts[0].bins,
        )

    @property
    def cells(self) -> int:
        """The number of cells."""
        return number_of_cells(self.bins)

    def scaled(self, index: int) -> Scaled:
        """The network's part with the scale `SCALES[index]`."""
        log_sums = self.log_rest.new_full((len(self.log_rest), self.cells), -torch.inf)
        log_sums.view(-1)[self.place] = self.log_sums[:, index]
        log_sums[:, -1] = self.log_rest[:, index]
        log_total = log_sums.logsumexp(1)
        offset = log_total[self.row].mean()
        return Scaled(
            SCALES[index],
            offset,
            score=SCALES[index] * self.score - offset,
            log_total=log_total - offset,
            shares=torch.exp(log_sums - log_total[:, None]).nan_to_num(0.0),
        )


@dataclass(frozen=True, eq=False)
class Scaled:
    """The network's part with one scale β.

    Attributes:
        scale: β.
        offset: c, so that the sum of exponentials is about 1.
        score: `[n]`, β score - c of the target.
        log_total: `[R]`, log Σ_j exp(β score[j] - c).
        shares: `[R, cells]`, what the items of each cell have of that sum; the last cell is that of no bin.
    """

    scale: float
    offset: Tensor
    score: Tensor
    log_total: Tensor
    shares: Tensor


def number_of_cells(bins: list[int]) -> int:
    """From the numbers of the sources' bins: one of each, or none."""
    return math.prod(number + 1 for number in bins)


def observe(
    model: SequentialModel, mixture: CountMixture, targets: Targets, max_len: int, exclude_history: bool
) -> Observed:
    """Scores the targets' histories with the network alone, and gathers what is counted after them.

    Targets that are unknown or excluded are misses whatever the weights, and left out.

    Args:
        model: without a mixture.
        mixture: has counted.
        targets: what came after some histories; at least one row.
        max_len: number of latest events of a history that the model sees.
        exclude_history: whether items of the history are never recommended.
    """
    device, parts = model.item_bias.device, []
    with scoring_mode(model):
        for batch in evaluation_batches(targets, max_len, BATCH_SIZE):
            rows = batch.users.numpy()
            batch = batch.to(device)
            left_out = None
            if exclude_history:
                left_out = places_of_histories(rows, targets.offsets, targets.items, device)
            times = batch.times if model.uses_time else None
            state = model.encode(batch.items, batch.offsets, times)
            evidence = model.evidence(mixture, batch.items, batch.offsets, times)
            wanted = _wanted(targets, rows, model.num_items).to(device)
            parts.append(_observe(model, mixture, state, evidence, wanted, left_out))
    return Observed.joined(parts)


def _observe(
    model: SequentialModel,
    mixture: CountMixture,
    state: Encoded,
    evidence: list[Evidence],
    wanted: Tensor,
    left_out: Places | None,
) -> Observed:
    """`observe` for the encoded histories of a batch; `wanted` are the keys of their targets."""
    bins = [source.bins for source in mixture.each_source()]
    binned = [counted.of_kinds(kinds).key for counted, kinds in zip(evidence, bins, strict=True)]
    lengths = [len(kinds) for kinds in bins]
    own, wide = torch.unique(torch.cat(binned)), model.num_items + 1
    score, log_rest, of_own = _network(model, state, wanted, own, left_out)
    wanted, score = wanted[score.isfinite()], score[score.isfinite()]
    row, amounts = wanted // wide, _amounts(evidence, wanted)
    place = own // wide * number_of_cells(lengths) + _cells(_amounts(evidence, own), bins)
    place, log_sums = _summed(place, of_own)
    return Observed(
        row=row,
        hidden=state.hidden[row].double(),
        score=score,
        cell=_cells(amounts, bins),
        amounts=amounts,
        totals=[counted.totals()[row] for counted in evidence],
        kept=[_kept(counted, left_out).totals()[row] for counted in evidence],
        log_rest=log_rest,
        log_sums=log_sums,
        place=place,
        bins=lengths,
    )


def _summed(places: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct places, and log Σ exp(β score) of each, `[m, len(SCALES)]`."""
    distinct, group = torch.unique(places, return_inverse=True)
    scaled = scores[:, None] * scores.new_tensor(SCALES)
    most = scaled.new_full((len(distinct), len(SCALES)), -torch.inf)
    most = most.scatter_reduce(0, group[:, None].expand_as(scaled), scaled, "amax")
    each = torch.exp(scaled - most[group]).nan_to_num(0.0)  # of -inf, which is none, minus itself
    return distinct, most + torch.zeros_like(most).index_add(0, group, each).log()


def _amounts(evidence: list[Evidence], keys: Tensor) -> list[Tensor]:
    """E of each source at some keys, `[m, K]`."""
    return [counted.of(keys) for counted in evidence]


def _cells(amounts: list[Tensor], bins: list[range]) -> Tensor:
    """The cells of items with these amounts of each source, int64 `[m]`."""
    cell = torch.zeros(len(amounts[0]), dtype=torch.int64, device=amounts[0].device)
    for each, kinds in zip(amounts, bins, strict=True):
        inside = each[:, kinds.start : kinds.stop] > 0
        none = inside.new_ones(len(each), 1)
        cell = cell * (len(kinds) + 1) + torch.cat([inside, none], 1).int().argmax(1)
    return cell


def _wanted(targets: Targets, rows: Int64Array, num_items: int) -> Tensor:
    """The known targets of these rows as `Evidence.key` has them, where rows count from 0; int64 `[n]`."""
    counts = targets.target_offsets[rows + 1] - targets.target_offsets[rows]
    item = targets.target_items[ragged_indices(targets.target_offsets[rows], counts)].astype(np.int64)
    key = np.repeat(np.arange(len(rows)), counts) * (num_items + 1) + item
    return torch.from_numpy(key[item > 0])


def _network(
    model: SequentialModel, state: Encoded, wanted: Tensor, own: Tensor, left_out: Places | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The network's scores at some keys, tile by tile.

    Returns:
        The scores at `wanted`, -inf for those left out; `log_rest`, over all but those at `own`; and the
        scores at `own`, likewise.
    """
    device, rows = state.hidden.device, len(state.hidden)
    log_rest = torch.full((rows, len(SCALES)), -torch.inf, dtype=torch.float64, device=device)
    at = [Looked.up(keys, model.num_items) for keys in (wanted, own)]
    width = tile_width(rows, device)
    for first in range(0, model.num_items, width):
        last = min(first + width, model.num_items)
        tile = model.score_tile(state, first, last)
        out = tile.new_full((), -torch.inf)
        if left_out is not None:
            tile = tile.index_put(left_out.index(first, last), out)
        for looked in at:
            looked.take(tile, first, last)
        rest = tile.index_put(at[1].places.index(first, last), out)
        sums = torch.stack([(scale * rest).logsumexp(1) for scale in SCALES], 1)
        log_rest = torch.logaddexp(log_rest, sums.double())
    return at[0].scores, log_rest, at[1].scores


class Looked(NamedTuple):
    """Scores that are looked up at keys `[n]`.

    Attributes:
        places: of the keys, by column.
        order: int64 `[n]`, the key of each place.
        scores: float64 `[n]`, at each key.
    """

    places: Places
    order: Tensor
    scores: Tensor

    @staticmethod
    def up(keys: Tensor, num_items: int) -> Looked:
        """To be filled tile by tile."""
        row, item = keys // (num_items + 1), keys % (num_items + 1)
        order = item.argsort()
        column = item[order] - 1
        places = Places(row[order], column, column.cpu().numpy())
        return Looked(places, order, torch.empty(len(keys), dtype=torch.float64, device=keys.device))

    def take(self, tile: Tensor, first: int, last: int) -> None:
        """Takes the scores of the columns `first` up to `last`."""
        here = self.order[self.places.within(first, last)]
        self.scores[here] = tile[self.places.index(first, last)].double()


def _kept(evidence: Evidence, left_out: Places | None) -> Evidence:
    """The evidence for items that may be recommended."""
    if left_out is None:
        return evidence
    excluded = left_out.row * (evidence.shape[2] + 1) + left_out.column + 1
    return evidence.where(~torch.isin(evidence.key, excluded))
