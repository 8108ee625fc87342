"""What the likelihood of targets depends on when counts are mixed in: the network's scores, and evidence."""

from __future__ import annotations

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
    """What the likelihood of n targets depends on, besides the weights; float64.

    A cell is one bin, or none, of each source that has `bins`: items in it have their scores shifted alike.

    Attributes:
        hidden: `[n, D]`, the row of the last event before each target.
        score: `[n]`, the network's score of the target.
        log_total: `[n, len(SCALES)]`, log Σ_j exp(β score[j]) over the items that may be recommended.
        amounts: for each source `[n, K]`, E of the target.
        totals: for each source `[n, K]`, Σ E.
        kept: for each source `[n, K]`, Σ E over the items that may be recommended.
        cell: int64 `[n]`, of the target.
        shifted: the items of each target's history that are in a bin.
        bins: for each source, the number of its bins.
    """

    hidden: Tensor
    score: Tensor
    log_total: Tensor
    amounts: list[Tensor]
    totals: list[Tensor]
    kept: list[Tensor]
    cell: Tensor
    shifted: Shifted
    bins: list[int]

    def __len__(self) -> int:
        """The number of targets."""
        return len(self.score)

    @staticmethod
    def joined(parts: list[Observed]) -> Observed:
        """The targets of all parts, of which there is at least one."""

        def together(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        def of_sources(name: str) -> list[Tensor]:
            sources = zip(*(getattr(part, name) for part in parts), strict=True)
            return [torch.cat(tensors) for tensors in sources]

        firsts = np.cumsum([0, *map(len, parts)])[:-1].tolist()
        return Observed(
            together("hidden"),
            together("score"),
            together("log_total"),
            of_sources("amounts"),
            of_sources("totals"),
            of_sources("kept"),
            together("cell"),
            Shifted.joined([part.shifted for part in parts], firsts),
            parts[0].bins,
        )

    def scaled(self, index: int) -> Scaled:
        """The network's part with the scale `SCALES[index]`."""
        scale, log_total = SCALES[index], self.log_total[:, index]
        of, cell, score = self.shifted
        cells = math.prod(bins + 1 for bins in self.bins)
        each = torch.exp(scale * score - log_total[of])
        shares = each.new_zeros(len(self) * cells).index_add_(0, of * cells + cell, each)
        offset = log_total.mean()
        return Scaled(
            scale, offset, scale * self.score - offset, log_total - offset, shares.view(len(self), cells)
        )


class Shifted(NamedTuple):
    """Items whose scores are shifted: m of some targets' histories.

    Attributes:
        of: int64 `[m]`, the target.
        cell: int64 `[m]`, of the item.
        score: float64 `[m]`, the network's; -inf if it may not be recommended.
    """

    of: Tensor
    cell: Tensor
    score: Tensor

    @staticmethod
    def joined(parts: list[Shifted], firsts: list[int]) -> Shifted:
        """All items, where the targets of each part are numbered from `firsts` on."""
        moved = [part._replace(of=part.of + first) for part, first in zip(parts, firsts, strict=True)]
        return Shifted(*(torch.cat(tensors) for tensors in zip(*moved, strict=True)))


@dataclass(frozen=True, eq=False)
class Scaled:
    """The network's part with one scale β.

    Attributes:
        scale: β.
        offset: c, so that the sum of exponentials is about 1.
        score: `[n]`, β score - c of the target.
        log_total: `[n]`, log Σ_j exp(β score[j] - c).
        shares: `[n, cells]`, what the items of each cell have of that sum.
    """

    scale: float
    offset: Tensor
    score: Tensor
    log_total: Tensor
    shares: Tensor


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
    own = torch.unique(torch.cat(binned))
    wide = model.num_items + 1
    log_total, score = _network(model, state, torch.cat([wanted, own]), left_out)
    score, score_of_own = score[: len(wanted)], score[len(wanted) :]
    wanted, score = wanted[score.isfinite()], score[score.isfinite()]
    row = wanted // wide
    begin = torch.searchsorted(own, row * wide)
    counts = torch.searchsorted(own, (row + 1) * wide) - begin
    of = torch.arange(len(row), device=row.device).repeat_interleave(counts)
    which = torch.arange(len(of), device=row.device) - (counts.cumsum(0) - counts - begin)[of]
    amounts = [counted.of(wanted) for counted in evidence]
    return Observed(
        hidden=state.hidden[row].double(),
        score=score,
        log_total=log_total[row],
        amounts=amounts,
        totals=[counted.totals()[row] for counted in evidence],
        kept=[_kept(counted, left_out).totals()[row] for counted in evidence],
        cell=_cells(evidence, bins, wanted),
        shifted=Shifted(of, _cells(evidence, bins, own)[which], score_of_own[which]),
        bins=[len(kinds) for kinds in bins],
    )


def _cells(evidence: list[Evidence], bins: list[range], keys: Tensor) -> Tensor:
    """The cells of some histories' items, given as `Evidence.key` numbers them: int64 `[m]` -> `[m]`."""
    cell = torch.zeros_like(keys)
    for counted, kinds in zip(evidence, bins, strict=True):
        inside = counted.of(keys)[:, kinds.start : kinds.stop] > 0
        none = inside.new_ones(len(keys), 1)
        cell = cell * (len(kinds) + 1) + torch.cat([inside, none], 1).int().argmax(1)
    return cell


def _wanted(targets: Targets, rows: Int64Array, num_items: int) -> Tensor:
    """The known targets of these rows as `Evidence.key` has them, where rows count from 0; int64 `[n]`."""
    counts = targets.target_offsets[rows + 1] - targets.target_offsets[rows]
    item = targets.target_items[ragged_indices(targets.target_offsets[rows], counts)].astype(np.int64)
    key = np.repeat(np.arange(len(rows)), counts) * (num_items + 1) + item
    return torch.from_numpy(key[item > 0])


def _network(
    model: SequentialModel, state: Encoded, keys: Tensor, left_out: Places | None
) -> tuple[Tensor, Tensor]:
    """`log_total` of the rows, and the network's scores at keys, -inf for those left out; tile by tile."""
    device, rows, wide = state.hidden.device, len(state.hidden), model.num_items + 1
    order = (keys % wide).argsort()
    column = (keys % wide - 1)[order]
    places = Places((keys // wide)[order], column, column.cpu().numpy())
    log_total = torch.full((rows, len(SCALES)), -torch.inf, dtype=torch.float64, device=device)
    scores = torch.empty(len(keys), dtype=torch.float64, device=device)
    width = tile_width(rows, device)
    for first in range(0, model.num_items, width):
        last = min(first + width, model.num_items)
        tile = model.score_tile(state, first, last)
        if left_out is not None:
            tile = tile.index_put(left_out.index(first, last), tile.new_full((), -torch.inf))
        scores[order[places.within(first, last)]] = tile[places.index(first, last)].double()
        sums = torch.stack([(scale * tile).logsumexp(1) for scale in SCALES], 1)
        log_total = torch.logaddexp(log_total, sums.double())
    return log_total, scores


def _kept(evidence: Evidence, left_out: Places | None) -> Evidence:
    """The evidence for items that may be recommended."""
    if left_out is None:
        return evidence
    excluded = left_out.row * (evidence.shape[2] + 1) + left_out.column + 1
    return evidence.where(~torch.isin(evidence.key, excluded))
