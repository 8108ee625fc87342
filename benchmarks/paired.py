"""Compares two models that ranked the same targets, over users and seeds together."""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from hyenarec.evaluation.metrics import MISS, Ranks, ndcg

Floats = npt.NDArray[np.float64]

LARGEST = 255
"""Ranks are kept in a byte each; this one stands for itself and all beyond."""


def pack_ranks(ranks: Ranks) -> str:
    """The rank of each user's best target as text, a few bits a user."""
    return base64.b64encode(zlib.compress(np.minimum(ranks.best(), LARGEST).astype(np.uint8), 9)).decode()


def unpack_ranks(text: str) -> Ranks:
    """What `pack_ranks` wrote; ranks of `LARGEST` and beyond are misses."""
    ranks = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).astype(np.int64)
    return Ranks.of_single_targets(np.where(ranks < LARGEST, ranks, MISS))


@dataclass(frozen=True)
class Difference:
    """The mean difference of two models' figures with its 95% interval.

    Attributes:
        mean: the first model's figure minus the second's.
        low: where the interval begins.
        high: where it ends.
        p: two-sided probability of a difference at least as large if there is none.
        seeds: of each model. With one seed, the interval knows nothing of how much runs differ.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: tuple[int, int]


def ndcg_of(packed: list[str], k: int = 10) -> Floats:
    """NDCG@k by seed and user, `[seeds, users]`, from the packed ranks of runs that differ in their seed."""
    return np.stack([ndcg(unpack_ranks(text), k) for text in packed])


def paired_difference(first: Floats, second: Floats) -> Difference:
    """Welch's t test of `first - second`, paired by user, where users and seeds are both samples.

    The variance of the mean difference is that of users, whose differences are averaged over the seeds, and
    that of seeds, whose figures are averaged over the users. What seed and user have in common is in both
    terms, so that the interval is rather too wide.

    Args:
        first: figures `[seeds, users]`.
        second: figures `[other seeds, users]` of the same users.

    Raises:
        ValueError: the users are not as many.
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"second must have {first.shape[1]} users as first has, got {second.shape[1]}")
    users = first.mean(axis=0) - second.mean(axis=0)
    terms = [(users.var(ddof=1) / len(users), len(users) - 1)]
    terms += [
        (runs.mean(axis=1).var(ddof=1) / len(runs), len(runs) - 1)
        for runs in (first, second)
        if len(runs) > 1
    ]
    variance = sum(term for term, _ in terms)
    seeds = (len(first), len(second))
    if variance == 0:
        same = float(users[0])
        return Difference(same, same, same, float(same == 0), seeds)
    freedom = variance**2 / sum(term**2 / degrees for term, degrees in terms)
    mean, error = float(users.mean()), math.sqrt(variance)
    reach = float(stats.t.ppf(0.975, freedom)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - reach, mean + reach, p, seeds)
