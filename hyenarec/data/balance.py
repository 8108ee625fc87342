"""Sequences dealt to shares alike in events: an epoch's windows to its steps, a step's to the processes."""

from __future__ import annotations

import numpy as np

from hyenarec.data.histories import Int64Array, offsets_of


def deal(lengths: Int64Array, shares: int) -> Int64Array:
    """Deal sequences one after the other, each to the share with the fewest events so far.

    In any order, two shares differ by at most the longest sequence. With the longest first they differ by
    about the shortest. (Dealing back and forth needs no loop, but leaves heavy-tailed lengths far apart.)

    Args:
        lengths: events of each sequence, int64 ``[n]``.
        shares: how many shares; each gets a sequence if there are as many.

    Returns:
        int64 ``[n]``, the share of each sequence.

    Source: list scheduling and its LPT rule, Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J.
    Appl. Math. 17, 1969.
    """
    if shares == 1:
        return np.zeros(len(lengths), dtype=np.int64)
    share_of = np.empty(len(lengths), dtype=np.int64)
    loads = np.zeros(shares, dtype=np.int64)
    dealt = 0
    while dealt < len(lengths):
        # A round goes from the emptiest share on, until one that it has dealt to is the emptiest again.
        emptiest = np.argsort(loads, kind="stable")[: len(lengths) - dealt]
        before = loads[emptiest]
        least = np.minimum.accumulate(before + lengths[dealt : dealt + len(emptiest)])
        size = 1 + int(np.count_nonzero(before[1:] <= least[:-1]))
        loads[emptiest[:size]] += lengths[dealt : dealt + size]
        share_of[dealt : dealt + size] = emptiest[:size]
        dealt += size
    return share_of


def count_steps(lengths: Int64Array, budget: int) -> int:
    """A number of steps with which `deal_epoch` keeps to ``budget`` events a step.

    As many as the events would fill, were they one by one, and 0, 1, 2, 4, 8... more: the first such number
    that held the budget in five trials.
    """
    generator = np.random.default_rng(0)
    orders = [_by_length(lengths, generator)] + [_mixed(lengths, generator) for _ in range(4)]
    fewest = -(-int(np.minimum(lengths, budget).sum()) // budget)
    more = 0
    while True:
        steps = min(fewest + more, len(lengths))
        if all(_keeps_to(budget, lengths[order], deal(lengths[order], steps)) for order in orders):
            return steps
        more = 2 * more or 1


def deal_epoch(
    lengths: Int64Array, steps: int, budget: int, generator: np.random.Generator
) -> tuple[Int64Array, Int64Array]:
    """Deal an epoch's sequences to its steps at random, short and long ones together.

    Args:
        lengths: events of each sequence, int64 ``[n]``.
        steps: ``count_steps(lengths, budget)``.
        budget: most events a step; a sequence above it is alone in its step.
        generator: decides which sequences meet, and in which step.

    Returns:
        The sequences in the order of the steps, int64 ``[n]``, and each step's offsets in it ``[steps + 1]``.
    """
    order = _mixed(lengths, generator)
    step_of = deal(lengths[order], steps)
    if not _keeps_to(budget, lengths[order], step_of):
        # A rare draw. This order keeps to the budget for certain: `count_steps` has dealt the same lengths.
        order = _by_length(lengths, generator)
        step_of = deal(lengths[order], steps)
    step_of = generator.permutation(steps)[step_of]
    counts = np.bincount(step_of, minlength=steps)
    return order[np.argsort(step_of, kind="stable")], offsets_of(counts)


def _by_length(lengths: Int64Array, generator: np.random.Generator) -> Int64Array:
    """The longest first, those of one length at random."""
    return np.lexsort((generator.random(len(lengths)), -lengths))


def _mixed(lengths: Int64Array, generator: np.random.Generator) -> Int64Array:
    """Roughly the longest first, so that dealing comes out even, but never the same ones side by side."""
    return np.argsort(-lengths * (1 + generator.random(len(lengths))), kind="stable")


def _keeps_to(budget: int, lengths: Int64Array, step_of: Int64Array) -> bool:
    """Whether every step of more than one sequence has at most ``budget`` events."""
    events = np.bincount(step_of, weights=lengths)  # sums in float64, exact up to 2**53
    return not bool(((events > budget) & (np.bincount(step_of) > 1)).any())
