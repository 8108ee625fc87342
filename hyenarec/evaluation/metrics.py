"""From the ranks of the targets to figures: first one value a user, then the mean and its interval.

A rank is the position of a target in its user's list, 1 for the top. Nothing here knows how ranks are
computed (see `hyenarec.evaluation.evaluate`); every function is pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MISS = int(np.iinfo(np.int64).max)
"""The rank of a target that no list can contain, such as an unknown item: beyond every k, so a miss."""

DRAWS_PER_BLOCK = 1 << 22
"""Bootstrap counts that exist at a time (32 MiB)."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of every user's targets, in compressed sparse form.

    Attributes:
        values: int64 `[targets]`, from 1 on; `MISS` for a target that cannot be found.
        offsets: int64 `[users + 1]`; user u has `values[offsets[u]:offsets[u + 1]]`, at least one.
    """

    values: Ints
    offsets: Ints

    def __post_init__(self) -> None:
        values, offsets = self.values, self.offsets
        if values.ndim != 1 or offsets.ndim != 1 or values.dtype != np.int64 or offsets.dtype != np.int64:
            raise ValueError(
                "values and offsets must be one-dimensional int64 arrays, got "
                f"{values.dtype} {list(values.shape)} and {offsets.dtype} {list(offsets.shape)}"
            )
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(values):
            raise ValueError(f"offsets must run from 0 to the number of ranks, {len(values)}, got {offsets}")
        if (np.diff(offsets) < 1).any():
            user = int(np.argmin(np.diff(offsets) >= 1))
            raise ValueError(f"offsets must give every user at least one target, got none for user {user}")
        if (values < 1).any():
            raise ValueError(f"values must be ranks of at least 1, got {int(values.min())}")

    @classmethod
    def of_single_targets(cls, values: npt.ArrayLike) -> Ranks:
        """One target a user, as in leave-one-out."""
        ranks = np.asarray(values, dtype=np.int64)
        return cls(ranks, np.arange(len(ranks) + 1, dtype=np.int64))

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def num_targets(self) -> Ints:
        """Number of targets of each user, `[users]`."""
        return np.diff(self.offsets)

    def best(self) -> Ints:
        """The best rank of each user, `[users]`."""
        best: Ints = np.minimum.reduceat(self.values, self.offsets[:-1])
        return best

    def sum_by_user(self, values: Floats) -> Floats:
        """Sums a value of each target, `[targets]`, over each user's targets, to `[users]`."""
        total: Floats = np.add.reduceat(values, self.offsets[:-1])
        return total


def hit_rate(ranks: Ranks, k: int) -> Floats:
    """HR@k of each user, `[users]`: 1 where at least one target is among the first k, else 0."""
    _check_k(k)
    return (ranks.best() <= k).astype(np.float64)


def recall(ranks: Ranks, k: int) -> Floats:
    """Recall@k of each user, `[users]`: the share of the targets that is among the first k.

    With one target a user it equals `hit_rate`. The denominator is the number of targets, never k.
    """
    _check_k(k)
    return ranks.sum_by_user((ranks.values <= k).astype(np.float64)) / ranks.num_targets


def ndcg(ranks: Ranks, k: int) -> Floats:
    """NDCG@k of each user, `[users]`: discounted gain over the best possible one, in [0, 1].

    Gain is 1 for each target among the first k, discounted by log2(rank + 1); the ideal list starts with
    min(number of targets, k) targets.

    Source: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.
    """
    _check_k(k)
    discount = 1 / np.log2(np.arange(2, k + 2))
    gain = np.where(ranks.values <= k, discount[np.minimum(ranks.values, k) - 1], 0.0)
    ideal = np.cumsum(discount)[np.minimum(ranks.num_targets, k) - 1]
    normalised: Floats = ranks.sum_by_user(gain) / ideal
    return normalised


def mrr(ranks: Ranks, k: int) -> Floats:
    """MRR@k of each user, `[users]`: 1 / rank of the first target in the list, 0 if that rank is beyond k."""
    _check_k(k)
    best = ranks.best()
    return np.where(best <= k, 1 / best, 0.0)


PER_USER: dict[str, Callable[[Ranks, int], Floats]] = {
    "HR": hit_rate,
    "NDCG": ndcg,
    "MRR": mrr,
    "Recall": recall,
}
"""The metrics by the name they are printed with, `NAME@k`."""


@dataclass(frozen=True)
class Figure:
    """The mean of a metric over the users and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def mean_with_interval(values: Floats, *, resamples: int = 1000, seed: int = 0) -> Figure:
    """The mean over the users and its 95% percentile bootstrap interval.

    A resample draws as many users as there are, with replacement. Only how often each distinct value is drawn
    matters for the mean, and those counts are multinomial. The cost is resamples x distinct values (with one
    target a user at most k + 1), however many users there are.

    Args:
        values: one value a user, `[users]`, at least one.
        resamples: number of bootstrap resamples.
        seed: of the resampling; the same values and seed give the same interval.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be [users] with at least one user, got shape {list(values.shape)}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWS_PER_BLOCK // len(distinct))
    means = [
        generator.multinomial(len(values), counts / len(values), size=min(rows, resamples - begin)) @ distinct
        for begin in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means) / len(values), [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high))


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
