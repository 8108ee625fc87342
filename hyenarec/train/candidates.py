"""The items among which the validation targets are to be found, with what counts tell of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
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

NEAREST = 50
"""Items after a history that the network scores highest, and of each source that it counts most of."""

BATCH_SIZE = 256


@dataclass(frozen=True, eq=False)
class Counted:
    """m amounts of one source, in float32 where they are no whole numbers.

    Attributes:
        place: int64 `[m]`, the candidate of each.
        kind: int64 `[m]`.
        own: int64 `[m]`, 1 if the history has the item, else 0.
        feature: `[m]`, what a shift is in proportion to.
        amount: `[m]`, E.
        total: `[m]`, Σ E over all items.
    """

    place: Tensor
    kind: Tensor
    own: Tensor
    feature: Tensor
    amount: Tensor
    total: Tensor


@dataclass(frozen=True, eq=False)
class Candidates:
    """n items that may come after R histories, those of one history after those of the one before.

    Attributes:
        row: int64 `[n]`, the history of each, ascending.
        score: float32 `[n]`, the network's.
        counted: what each source counts for them.
        target: int64 `[t]`, the candidates that are targets.
        rows: R.
    """

    row: Tensor
    score: Tensor
    counted: list[Counted]
    target: Tensor
    rows: int

    def __len__(self) -> int:
        """The number of targets."""
        return len(self.target)

    @staticmethod
    def joined(parts: Sequence[Candidates]) -> Candidates:
        """Those of all parts, of which there is at least one."""
        rows = np.cumsum([0, *(part.rows for part in parts)]).tolist()
        firsts = np.cumsum([0, *(len(part.row) for part in parts)]).tolist()
        moved = [
            Candidates(
                row=part.row + row,
                score=part.score,
                counted=[dataclasses.replace(each, place=each.place + first) for each in part.counted],
                target=part.target + first,
                rows=part.rows,
            )
            for part, row, first in zip(parts, rows, firsts, strict=False)
        ]
        of_sources = zip(*(part.counted for part in moved), strict=True)
        return Candidates(
            row=torch.cat([part.row for part in moved]),
            score=torch.cat([part.score for part in moved]),
            counted=[_joined(source) for source in of_sources],
            target=torch.cat([part.target for part in moved]),
            rows=rows[-1],
        )

    def log_totals(self, scores: Tensor) -> Tensor:
        """Log Σ exp(score) over the candidates of each history: `[n]` -> `[R]`."""
        highest = scores.detach().new_full((self.rows,), -torch.inf)
        highest = highest.scatter_reduce(0, self.row, scores.detach(), "amax")
        each = torch.exp(scores - highest[self.row])
        return highest + scores.new_zeros(self.rows).index_add(0, self.row, each).log()


def _joined(parts: Sequence[Counted]) -> Counted:
    names = [field.name for field in dataclasses.fields(Counted)]
    return Counted(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def candidates_of(
    model: SequentialModel, mixture: CountMixture, targets: Targets, max_len: int, exclude_history: bool
) -> Candidates:
    """Gathers the candidates after the targets' histories.

    Targets that are none of them are misses whatever the weights, or nearly, and left out.

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
            excluded = wanted.new_empty(0)
            if left_out is not None:
                excluded = left_out.row * (model.num_items + 1) + left_out.column + 1
            most = [_most_counted(each, excluded) for each in evidence]
            keys = torch.unique(torch.cat([_nearest(model, state, left_out), *most]))
            counted = _counted(mixture, evidence, keys)
            parts.append(_candidates(model, state, keys, counted, wanted))
    return Candidates.joined(parts)


def _candidates(
    model: SequentialModel, state: Encoded, keys: Tensor, counted: list[Counted], wanted: Tensor
) -> Candidates:
    """The candidates with these keys, ascending; `wanted` are the keys of the targets."""
    return Candidates(
        row=keys // (model.num_items + 1),
        score=_scores(model, state, keys).float(),
        counted=counted,
        target=torch.searchsorted(keys, wanted[torch.isin(wanted, keys)]),
        rows=len(state.hidden),
    )


def _counted(mixture: CountMixture, evidence: list[Evidence], keys: Tensor) -> list[Counted]:
    """What the sources count for the candidates with these keys."""
    counted = []
    which = zip(mixture.each_source(), evidence, mixture.own(evidence), strict=True)
    for source, each, own in which:
        here = torch.isin(each.key, keys)
        found, total = each.where(here), each.totals()
        counted.append(
            Counted(
                place=torch.searchsorted(keys, found.key),
                kind=found.kind,
                own=own[here],
                feature=source.features(found).float(),
                amount=found.amount.float(),
                total=total[found.row, found.kind].float(),
            )
        )
    return counted


def _wanted(targets: Targets, rows: Int64Array, num_items: int) -> Tensor:
    """The known targets of these rows as `Evidence.key` has them, where rows count from 0; int64 `[n]`."""
    counts = targets.target_offsets[rows + 1] - targets.target_offsets[rows]
    item = targets.target_items[ragged_indices(targets.target_offsets[rows], counts)].astype(np.int64)
    key = np.repeat(np.arange(len(rows)), counts) * (num_items + 1) + item
    return torch.from_numpy(key[item > 0])


def _most_counted(evidence: Evidence, excluded: Tensor) -> Tensor:
    """The keys of the `NEAREST` items of each history with the largest amounts, but `excluded` ones."""
    evidence = evidence.where(~torch.isin(evidence.key, excluded))
    key, place = torch.unique(evidence.key, return_inverse=True)
    amount = evidence.amount.new_zeros(len(key)).index_add_(0, place, evidence.amount)
    key = key[amount.argsort(descending=True, stable=True)]
    row = key // (evidence.shape[2] + 1)
    order = row.argsort(stable=True)
    key, row = key[order], row[order]
    rank = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    most: Tensor = key[rank < NEAREST]
    return most


def _nearest(model: SequentialModel, state: Encoded, left_out: Places | None) -> Tensor:
    """The keys of the `NEAREST` items that the network scores highest after each history."""
    rows = len(state.hidden)
    best = state.hidden.new_empty(rows, 0)
    column = torch.empty(rows, 0, dtype=torch.int64, device=best.device)
    for first, tile in _tiles(model, state):
        if left_out is not None:
            out = tile.new_full((), -torch.inf)
            tile = tile.index_put(left_out.index(first, first + tile.shape[1]), out)
        here = torch.arange(first, first + tile.shape[1], device=tile.device).expand_as(tile)
        best, column = torch.cat([best, tile], 1), torch.cat([column, here], 1)
        best, chosen = best.topk(min(NEAREST, best.shape[1]), 1)
        column = column.gather(1, chosen)
    row = torch.arange(rows, device=best.device)[:, None]
    return (row * (model.num_items + 1) + column + 1)[best > -torch.inf]


def _scores(model: SequentialModel, state: Encoded, keys: Tensor) -> Tensor:
    """The network's scores at these keys, `[n]`."""
    row, item = keys // (model.num_items + 1), keys % (model.num_items + 1)
    order = item.argsort()
    column = item[order] - 1
    places = Places(row[order], column, column.cpu().numpy())
    scores = state.hidden.new_empty(len(keys))
    for first, tile in _tiles(model, state):
        last = first + tile.shape[1]
        scores[order[places.within(first, last)]] = tile[places.index(first, last)]
    return scores


def _tiles(model: SequentialModel, state: Encoded) -> Iterator[tuple[int, Tensor]]:
    """The scores, tile by tile, each with its first column."""
    width = tile_width(len(state.hidden), state.hidden.device)
    for first in range(0, model.num_items, width):
        yield first, model.score_tile(state, first, min(first + width, model.num_items))
