"""Ranks every target among the whole catalogue and summarises the ranks in figures with their protocol.

All V items are ranked, never a sample of them. Ties count against the model: the rank of a target is 1 + the
number of other items that score at least as much. A target that cannot be recommended, because it is not in
the catalogue or is in the excluded history, is a miss: dropping it would flatter the figures, and keeping it
in a list without the rest of the history would give it away. Scores that are not finite are an error, never a
rank. A user's other targets stay in the list and compete, as in retrieval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hyenarec.data.histories import ragged_indices
from hyenarec.data.split import Targets
from hyenarec.evaluation.metrics import MISS, PER_USER, Figure, Ints, Ranks, mean_with_interval
from hyenarec.evaluation.scoring import (
    Block,
    Places,
    Recommender,
    device_of,
    score_blocks,
    scoring_mode,
)
from hyenarec.transfer import to_device

TARGETS_PER_BLOCK = 32
"""Targets compared at a time with copies of their rows of scores; few, so that the copies stay in cache."""


@dataclass(frozen=True)
class Evaluation:
    """Figures, with everything a reader needs to compare them with others.

    Attributes:
        figures: mean over the users and 95% bootstrap interval by name, such as `figures["NDCG@10"].mean`.
        split: what was ranked, such as "leave-one-out test".
        exclude_history: whether the items of a user's history were left out of the user's ranking.
        max_len: events of the history that the recommender saw.
        num_items: V, size of the catalogue that was ranked.
        num_users: evaluated users.
        without_history: users with a target but no history, who could not be evaluated.
        unknown_targets: targets that are not in the catalogue; each is a miss.
        excluded_targets: targets that are in the excluded history; each is a miss.
        moment_given: whether the targets came with their moments, which tell something of them to a
            recommender that uses time.
        ranks: of each user's targets, in the order of the targets.
    """

    figures: dict[str, Figure]
    split: str
    exclude_history: bool
    max_len: int
    num_items: int
    num_users: int
    without_history: int
    unknown_targets: int
    excluded_targets: int
    ranks: Ranks = field(repr=False, compare=False)
    moment_given: bool = False

    @property
    def protocol(self) -> str:
        """One line that says how the figures were computed."""
        history = "excluded" if self.exclude_history else "not excluded"
        parts = [
            self.split,
            f"{self.num_users:,} users",
            f"all {self.num_items:,} items ranked",
            f"history {history}",
            f"max_len {self.max_len}",
        ]
        if self.moment_given:
            parts.append("moment of the target given")
        if self.unknown_targets:
            parts.append(f"{self.unknown_targets:,} unknown targets counted as misses")
        if self.excluded_targets:
            parts.append(f"{self.excluded_targets:,} targets in the excluded history counted as misses")
        if self.without_history:
            parts.append(f"{self.without_history:,} users without history left out")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ranks, ready for JSON."""
        return {
            "split": self.split,
            "exclude_history": self.exclude_history,
            "max_len": self.max_len,
            "num_items": self.num_items,
            "num_users": self.num_users,
            "without_history": self.without_history,
            "unknown_targets": self.unknown_targets,
            "excluded_targets": self.excluded_targets,
            "moment_given": self.moment_given,
            "figures": {
                name: {"mean": figure.mean, "low": figure.low, "high": figure.high}
                for name, figure in self.figures.items()
            },
        }

    def __str__(self) -> str:
        width = max(map(len, self.figures))
        lines = [f"  {name:<{width}}  {figure}" for name, figure in self.figures.items()]
        return "\n".join([self.protocol, *lines])


def evaluate(
    recommender: Recommender,
    targets: Targets,
    *,
    max_len: int,
    exclude_history: bool,
    ks: Sequence[int] = (10,),
    batch_size: int = 256,
    split: str = "unnamed split",
    seed: int = 0,
    distributed: bool = False,
) -> Evaluation:
    """HR@k, NDCG@k, MRR@k (and Recall@k, where a user has several targets) of a recommender.

    Args:
        recommender: scores the catalogue; a module is put in evaluation mode meanwhile.
        targets: the users' histories and what came next.
        max_len: number of latest events of a history that the recommender sees.
        exclude_history: leave the items of a user's whole history out of the list; a target in it is a miss.
        ks: lengths of the list.
        batch_size: users scored at a time. A `TiledRecommender` scores one tile of the items at a time, at
            most `TILE_SCORES` scores; any other recommender scores all V.
        split: name of the targets, for the reader.
        seed: of the bootstrap.
        distributed: every process of torch.distributed's default group calls this with the same arguments,
            ranks its share of the users, and returns the figures of all of them.

    Returns:
        The figures, with intervals, and the protocol.

    Raises:
        ValueError: if there are no users, or scores are not finite numbers `[B, V]`.
    """
    if len(targets) == 0:
        raise ValueError("targets must hold at least one user, got none")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    begin, end = (len(targets) * bound // world_size for bound in (rank, rank + 1))
    with scoring_mode(recommender):
        values, num_items = _rank_targets(
            recommender, _rows(targets, begin, end), max_len, exclude_history, batch_size
        )
    if distributed:
        values, num_items = _join_processes(values, num_items, targets, begin, device_of(recommender))
    ranks = Ranks(values, targets.target_offsets)
    unknown = int((targets.target_items == 0).sum())
    return Evaluation(
        figures=_figures(ranks, ks, seed),
        split=split,
        exclude_history=exclude_history,
        max_len=max_len,
        num_items=num_items,
        num_users=len(targets),
        without_history=targets.without_history,
        unknown_targets=unknown,
        excluded_targets=int((values == MISS).sum()) - unknown,
        ranks=ranks,
        moment_given=targets.times is not None,
    )


def _figures(ranks: Ranks, ks: Sequence[int], seed: int) -> dict[str, Figure]:
    metrics = dict(PER_USER)
    if len(ranks.values) == ranks.num_users:
        del metrics["Recall"]  # the same as HR
    return {
        f"{name}@{k}": mean_with_interval(metric(ranks, k), seed=seed)
        for k in ks
        for name, metric in metrics.items()
    }


def _rows(targets: Targets, begin: int, end: int) -> Targets:
    """The rows from `begin` up to `end`, without copying their items."""
    items = slice(targets.offsets[begin], targets.offsets[end])
    wanted = slice(targets.target_offsets[begin], targets.target_offsets[end])
    return Targets(
        offsets=targets.offsets[begin : end + 1] - targets.offsets[begin],
        items=targets.items[items],
        target_offsets=targets.target_offsets[begin : end + 1] - targets.target_offsets[begin],
        target_items=targets.target_items[wanted],
        users=targets.users[begin:end],
        timestamps=None if targets.timestamps is None else targets.timestamps[items],
        asked=None if targets.asked is None else targets.asked[begin:end],
    )


def _rank_targets(
    recommender: Recommender, targets: Targets, max_len: int, exclude_history: bool, batch_size: int
) -> tuple[Ints, int]:
    """The rank of every target, `[targets]`, and the size of the catalogue, 0 if there are no rows."""
    ranks = np.full(len(targets.target_items), MISS, dtype=np.int64)
    num_items = 0
    blocks = score_blocks(
        recommender,
        targets.offsets,
        targets.items,
        max_len=max_len,
        batch_size=batch_size,
        exclude_history=exclude_history,
        times=targets.times,
    )
    for block in blocks:
        rows, num_items = block.rows, block.num_items
        counts = targets.target_offsets[rows + 1] - targets.target_offsets[rows]
        target = ragged_indices(targets.target_offsets[rows], counts)
        row = np.repeat(np.arange(len(rows)), counts)
        column = targets.target_items[target].astype(np.int64) - 1
        if (column >= num_items).any():
            raise ValueError(f"targets must lie in 0..V = 0..{num_items}, got {column.max() + 1}")
        known = np.flatnonzero(column >= 0)
        known = known[np.argsort(column[known], kind="stable")]
        places = Places.of(row[known], column[known], device_of(recommender))
        ranks[target[known]] = _ranks_within(block, places).cpu().numpy()
    return ranks, num_items


def _ranks_within(block: Block, targets: Places) -> Tensor:
    """The rank of each target in its row, `[targets]` int64; `MISS` if it was left out (-inf).

    Unless the catalogue is a single tile, it is scored twice: first for the scores of the targets, which are
    then compared with all tiles. Computed other than as part of its own tile, a target's score might be
    rounded differently and miss ties. No value is read on the host, so that no tile waits for a GPU.
    """
    tiles = list(block) if len(block) == 1 else block
    wanted = None
    for tile in tiles:
        own = tile.scores[targets.index(tile.first, tile.last)]
        # Into one tensor: small ones kept from each tile would fragment the memory that the tiles reuse.
        wanted = own.new_empty(len(targets.row)) if wanted is None else wanted
        wanted[targets.within(tile.first, tile.last)] = own
    assert wanted is not None  # a catalogue that holds the histories' items has a tile
    ranks = torch.ones_like(wanted, dtype=torch.int64)
    for tile in tiles:
        here = targets.within(tile.first, tile.last)
        own = tile.scores[targets.index(tile.first, tile.last)]
        ranks += _at_least(tile.scores, targets.row, wanted)
        ranks[here] -= (own >= wanted[here]).long()  # a target does not compete with itself
    return ranks.masked_fill(wanted.isneginf(), MISS)


def _at_least(scores: Tensor, rows: Tensor, least: Tensor) -> Tensor:
    """How many scores in row `rows[i]` are `least[i]` or more."""
    blocks = zip(torch.split(rows, TARGETS_PER_BLOCK), torch.split(least, TARGETS_PER_BLOCK), strict=True)
    # A sum in int64 would take four times as long.
    counts = [(scores[row] >= bound[:, None]).sum(dim=1, dtype=torch.int32) for row, bound in blocks]
    return torch.cat(counts)


def _join_processes(
    values: Ints, num_items: int, targets: Targets, begin: int, device: torch.device
) -> tuple[Ints, int]:
    """The ranks of all processes, in order, and the size of the catalogue, on every process."""
    everyone = torch.zeros(len(targets.target_items) + 1, dtype=torch.int64)
    first = int(targets.target_offsets[begin])
    everyone[first : first + len(values)] = torch.from_numpy(values)
    everyone[-1] = num_items
    # Each rank is at least 1 in one process and 0 in all others. NCCL needs tensors on the device.
    everyone = to_device(everyone, device)
    dist.all_reduce(everyone, op=dist.ReduceOp.MAX)
    joined = everyone.cpu().numpy()
    return joined[:-1], int(joined[-1])
