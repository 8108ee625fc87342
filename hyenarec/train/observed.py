"""What the likelihood of targets depends on when counts are mixed in: the network's scores, and evidence."""

from __future__ import annotations

from dataclasses import dataclass

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

    Attributes:
        hidden: `[n, D]`, the row of the last event before each target.
        score: `[n]`, the network's score of the target.
        log_total: `[n, len(SCALES)]`, log Σ_j exp(β score[j]) over the items that may be recommended.
        amounts: for each source `[n, K]`, E of the target.
        totals: for each source `[n, K]`, Σ E.
        kept: for each source `[n, K]`, Σ E over the items that may be recommended.
    """

    hidden: Tensor
    score: Tensor
    log_total: Tensor
    amounts: list[Tensor]
    totals: list[Tensor]
    kept: list[Tensor]

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

        return Observed(
            together("hidden"),
            together("score"),
            together("log_total"),
            of_sources("amounts"),
            of_sources("totals"),
            of_sources("kept"),
        )


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
            wanted = _wanted(targets, rows, device)
            times = batch.times if model.uses_time else None
            state = model.encode(batch.items, batch.offsets, times)
            score, log_total = _network(model, state, wanted, left_out)
            possible = score.isfinite()
            row, score = wanted.row[possible], score[possible]
            keys = row * (model.num_items + 1) + wanted.column[possible] + 1
            evidence = model.evidence(mixture, batch.items, batch.offsets, times)
            parts.append(
                Observed(
                    hidden=state.hidden[row].double(),
                    score=score,
                    log_total=log_total[row],
                    amounts=[source.of(keys) for source in evidence],
                    totals=[source.totals()[row] for source in evidence],
                    kept=[_kept(source, left_out).totals()[row] for source in evidence],
                )
            )
    return Observed.joined(parts)


def _wanted(targets: Targets, rows: Int64Array, device: torch.device) -> Places:
    """The known targets of these rows, numbered from 0."""
    counts = targets.target_offsets[rows + 1] - targets.target_offsets[rows]
    item = targets.target_items[ragged_indices(targets.target_offsets[rows], counts)].astype(np.int64)
    row = np.repeat(np.arange(len(rows)), counts)
    order = np.argsort(item, kind="stable")
    order = order[item[order] > 0]
    return Places.of(row[order], item[order] - 1, device)


def _network(
    model: SequentialModel, state: Encoded, wanted: Places, left_out: Places | None
) -> tuple[Tensor, Tensor]:
    """Scores of the targets, -inf for those left out, and `log_total` of the rows, tile by tile."""
    device, rows = state.hidden.device, len(state.hidden)
    log_total = torch.full((rows, len(SCALES)), -torch.inf, dtype=torch.float64, device=device)
    score = torch.empty(len(wanted.row), dtype=torch.float64, device=device)
    width = tile_width(rows, device)
    for first in range(0, model.num_items, width):
        last = min(first + width, model.num_items)
        tile = model.score_tile(state, first, last)
        if left_out is not None:
            tile = tile.index_put(left_out.index(first, last), tile.new_full((), -torch.inf))
        score[wanted.within(first, last)] = tile[wanted.index(first, last)].double()
        sums = torch.stack([(scale * tile).logsumexp(1) for scale in SCALES], 1)
        log_total = torch.logaddexp(log_total, sums.double())
    return score, log_total


def _kept(evidence: Evidence, left_out: Places | None) -> Evidence:
    """The evidence for items that may be recommended."""
    if left_out is None:
        return evidence
    excluded = left_out.row * (evidence.shape[2] + 1) + left_out.column + 1
    return evidence.where(~torch.isin(evidence.key, excluded))
