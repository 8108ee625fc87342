"""Synthetic histories with long memory: the embedded default, made from a seed, nothing to download.

The process, for each user on its own:

- The items are divided into topics, some more popular than others, and the items of a topic form a ring.
- An event either goes on a *burst*, with the item after the last one on its ring, or it is a *turn*.
- A user has favourite items. A turn visits one of them that has rested: it was not among the last `rest`
  ones visited, and each that was not is equally likely. So favourites return again and again, after long and
  varying times.
- Now and then a turn is a *fresh* draw of any item, more likely a popular one. It becomes a favourite in the
  place of one that has rested: tastes drift slowly.

The last event tells about bursts, but what is due to return lies further back than a short memory reaches:
`best_achievable` says what each memory is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyenarec.data.histories import Histories, Int64Array, offsets_of, ragged_indices
from hyenarec.data.vocabulary import Vocabulary

_TIME_OF_START = 1_600_000_000  # seconds since 1970; the users' first events are spread over a year from here
_YEAR, _DAY, _MINUTE = 365 * 86_400, 86_400, 60


@dataclass(frozen=True)
class SyntheticProcess:
    """Parameters of the process; the defaults are those of the demo.

    Attributes:
        num_users: U.
        num_topics: topics; a fresh draw is of topic ``i`` with probability proportional to 1 / sqrt(i + 1).
        topic_size: items on a topic's ring, so V = num_topics * topic_size.
        min_events: fewest events of a user.
        max_events: most; lengths are uniform between the two.
        burst_starts: probability that a burst begins after a turn.
        burst_goes_on: probability that a burst goes on after each of its steps.
        favourites: favourite items a user has at a time.
        rest: other favourites that are visited before one may return.
        fresh: probability that a turn is a fresh draw.
        seed: of everything.
    """

    num_users: int = 3000
    num_topics: int = 20
    topic_size: int = 15
    min_events: int = 100
    max_events: int = 600
    burst_starts: float = 0.12
    burst_goes_on: float = 0.6
    favourites: int = 16
    rest: int = 10
    fresh: float = 0.08
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_users", "num_topics", "topic_size", "favourites"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("burst_starts", "burst_goes_on", "fresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, got {getattr(self, name)}")
        if not 0 <= self.rest < self.favourites:
            raise ValueError(f"rest must lie in 0..favourites - 1 = {self.favourites - 1}, got {self.rest}")
        if not 3 <= self.min_events <= self.max_events:
            raise ValueError(
                f"min_events must lie from 3 to max_events = {self.max_events}, got {self.min_events}"
            )

    @property
    def num_items(self) -> int:
        """V, size of the catalogue."""
        return self.num_topics * self.topic_size

    @property
    def popularity(self) -> NDArray[np.float64]:
        """Probability of each item, from 0, in a fresh draw: float64 ``[V]``, summing to 1."""
        topics = 1 / np.sqrt(np.arange(1, self.num_topics + 1))
        return np.repeat(topics / topics.sum() / self.topic_size, self.topic_size)


@dataclass(frozen=True, eq=False)
class Rested:
    """The favourites that could return at one event of each user, R = favourites - rest of them.

    Attributes:
        items: int32 ``[R, U]``.
        visited: int64 ``[R, U]``, time of the last turn to each; -1 before the history began.
    """

    items: NDArray[np.int32]
    visited: Int64Array


@dataclass(frozen=True, eq=False)
class Simulation:
    """What happened in ``max_events`` steps, arrays of time by users; the histories show the items alone.

    Attributes:
        process: the parameters.
        lengths: events that each user's history has, int64 ``[U]``; later steps are cut off.
        items: item of every event, from 0, int32 ``[T, U]``.
        in_burst: whether the event was a burst step, else it was a turn.
        timestamps: seconds, int64 ``[T, U]``.
        rested: for some events, counted from the end of each history (-1 is the last one), what could return.
    """

    process: SyntheticProcess
    lengths: Int64Array
    items: NDArray[np.int32]
    in_burst: NDArray[np.bool_]
    timestamps: Int64Array
    rested: dict[int, Rested]

    def histories(self) -> Histories:
        """The events of every user, item ``i`` under number ``i + 1`` and external id ``i + 1``."""
        users = np.repeat(np.arange(self.process.num_users), self.lengths)
        times = ragged_indices(np.zeros_like(self.lengths), self.lengths)
        return Histories(
            offsets=offsets_of(self.lengths),
            items=self.items[times, users] + np.int32(1),
            timestamps=self.timestamps[times, users],
            user_ids=np.arange(1, self.process.num_users + 1, dtype=np.int64),
            vocabulary=Vocabulary(np.arange(1, self.process.num_items + 1, dtype=np.int64)),
        )


def synthetic_histories(num_users: int = 3000, seed: int = 0, **parameters: Any) -> Histories:
    """Histories from `SyntheticProcess`, whose other parameters may be given by name.

    With the defaults: 3000 users of 100 to 600 events, 300 items, about a million events.
    """
    return simulate(SyntheticProcess(num_users=num_users, seed=seed, **parameters)).histories()


def synthetic_bounds(num_users: int = 3000, seed: int = 0) -> dict[str, dict[str, float]]:
    """What the default histories' last events allow, by name: `best_achievable` with and without a limit."""
    simulation = simulate(SyntheticProcess(num_users=num_users, seed=seed))
    return {
        "best with the last 10 events": best_achievable(simulation, 10),
        "best achievable": best_achievable(simulation),
    }


def simulate(process: SyntheticProcess, targets: tuple[int, ...] = (-1, -2)) -> Simulation:
    """Run the process, all users at once, one event after another.

    Args:
        process: the parameters.
        targets: events, counted from the end of each history, whose `Rested` favourites are kept.
    """
    for target in targets:
        if not -process.min_events < target < 0:
            raise ValueError(f"targets must lie in {1 - process.min_events}..-1, got {target}")
    rng = np.random.Generator(np.random.Philox(process.seed))
    users = process.num_users
    lengths = rng.integers(process.min_events, process.max_events, users, endpoint=True)
    items = np.zeros((process.max_events, users), dtype=np.int32)
    in_burst = np.zeros((process.max_events, users), dtype=np.bool_)
    memory = _Favourites(process, rng)
    rested = {target: memory.rested() for target in targets}
    for t in range(process.max_events):
        for target in targets:
            memory.copy_rested(rested[target], np.flatnonzero(lengths + target == t))
        if t > 0:
            chance = np.where(in_burst[t - 1], process.burst_goes_on, process.burst_starts)
            in_burst[t] = rng.random(users) < chance
            items[t] = _next_on_ring(process, items[t - 1])
        turns = ~in_burst[t]
        items[t] = np.where(turns, memory.visit(turns, t), items[t])
    # A burst is a matter of minutes, all else one of days.
    gaps = 1 + rng.exponential(np.where(in_burst, _MINUTE, _DAY)).astype(np.int64)
    timestamps = _TIME_OF_START + rng.integers(_YEAR, size=users) + np.cumsum(gaps, axis=0)
    return Simulation(process, lengths, items, in_burst, timestamps, rested)


class _Favourites:
    """The favourites of all users, ``[favourites, U]``: the longer one has rested, the further in front."""

    def __init__(self, process: SyntheticProcess, rng: np.random.Generator) -> None:
        self.process, self.rng = process, rng
        self.items = _draw_items(process, rng, process.favourites)
        self.visited = np.full(self.items.shape, -1, dtype=np.int64)
        self.ready = process.favourites - process.rest

    def visit(self, turns: NDArray[np.bool_], time: int) -> NDArray[np.int32]:
        """Let users whose turn it is visit a rested favourite or a fresh item; return the items ``[U]``."""
        process, users = self.process, self.process.num_users
        chosen = self.rng.integers(self.ready, size=users)
        old = self.items[chosen, np.arange(users)]
        fresh = self.rng.random(users) < process.fresh
        item = np.where(fresh, _draw_items(process, self.rng, 1)[0], old)
        # The chosen row leaves, those behind it move up, and the item becomes the last row.
        behind = (np.arange(process.favourites)[:, None] >= chosen) & turns
        self.items = np.where(behind, np.roll(self.items, -1, axis=0), self.items)
        self.visited = np.where(behind, np.roll(self.visited, -1, axis=0), self.visited)
        self.items[-1] = np.where(turns, item, self.items[-1])
        self.visited[-1] = np.where(turns, time, self.visited[-1])
        return item

    def rested(self) -> Rested:
        """A copy of the favourites that may return now."""
        return Rested(self.items[: self.ready].copy(), self.visited[: self.ready].copy())

    def copy_rested(self, to: Rested, users: Int64Array) -> None:
        """The same into the columns of some users."""
        to.items[:, users] = self.items[: self.ready, users]
        to.visited[:, users] = self.visited[: self.ready, users]


def best_achievable(
    simulation: Simulation, last_events: int | None = None, k: int = 10, target: int = -1
) -> dict[str, float]:
    """Expected HR@k, NDCG@k and MRR@k of the best possible ranking that may repeat items of the history.

    It orders the items by their true probability to come next, given the items of the history and all that is
    hidden: which events were turns, and which earlier turns led to a favourite that may return. Nobody who
    sees the items alone can expect more. With ``last_events`` it is still told all that is hidden, but sees
    only the items of the last so many events, so no model with that short a memory can expect more: a
    favourite that is out of sight is, for it, any item, the popular ones more likely.

    Args:
        simulation: the histories and what is hidden behind them, from `simulate`.
        last_events: how many events before the target it sees; None means all.
        k: length of the ranking.
        target: the event to be found, one of those that `simulate` was told: -1 is a user's last, as in
            leave-one-out's test, -2 the one of its validation.

    Returns:
        {"HR@k": ..., "NDCG@k": ..., "MRR@k": ...}, averaged over the users. They are expectations: a
        ranking's score on the one target that each user happens to have differs by chance.
    """
    process = simulation.process
    if not 1 <= k <= process.num_items:
        raise ValueError(f"k must lie in 1..{process.num_items}, got {k}")
    discounts = {
        f"HR@{k}": np.ones(k),
        f"NDCG@{k}": 1 / np.log2(np.arange(2, k + 2)),
        f"MRR@{k}": 1 / np.arange(1, k + 1),
    }
    totals = dict.fromkeys(discounts, 0.0)
    for first in range(0, process.num_users, 256):
        users = np.arange(first, min(first + 256, process.num_users))
        chances = next_event_distribution(simulation, users, last_events, target)
        best = -np.sort(np.partition(-chances, k - 1, axis=1)[:, :k], axis=1)
        for name, discount in discounts.items():
            totals[name] += float((best @ discount).sum())
    return {name: total / process.num_users for name, total in totals.items()}


def next_event_distribution(
    simulation: Simulation, users: Int64Array, last_events: int | None = None, target: int = -1
) -> NDArray[np.float64]:
    """Probability of each item to be the target event, float64 ``[len(users), V]``; see `best_achievable`."""
    process = simulation.process
    if target not in simulation.rested:
        raise ValueError(f"target must be one of those simulated, {sorted(simulation.rested)}, got {target}")
    if last_events is not None and last_events < 1:
        raise ValueError(f"last_events must be at least 1, got {last_events}")
    time = simulation.lengths[users] + target
    rows = np.arange(len(users))
    chances = np.zeros((len(users), process.num_items))

    burst = np.where(simulation.in_burst[time - 1, users], process.burst_goes_on, process.burst_starts)
    chances[rows, _next_on_ring(process, simulation.items[time - 1, users])] += burst

    rested = simulation.rested[target]
    items, visited = rested.items[:, users], rested.visited[:, users]
    each = (1 - burst) * (1 - process.fresh) / len(items)
    seen = visited >= _first_seen(simulation, users, time, last_events)
    np.add.at(chances, (np.broadcast_to(rows, items.shape), items), np.where(seen, each, 0.0))
    unknown = (1 - burst) * process.fresh + (~seen * each).sum(axis=0)
    chances += unknown[:, None] * process.popularity
    return chances


def _first_seen(
    simulation: Simulation, users: Int64Array, time: Int64Array, last_events: int | None
) -> Int64Array:
    """First event whose item follows from those of the ``last_events`` before ``time``.

    A burst that the edge of sight cuts gives away all its steps and the turn before it.
    """
    if last_events is None:
        return np.zeros_like(time)
    edge = np.maximum(time - last_events, 0)
    while (cut_burst := simulation.in_burst[edge, users]).any():
        edge = edge - cut_burst
    return edge


def _draw_items(process: SyntheticProcess, rng: np.random.Generator, number: int) -> NDArray[np.int32]:
    """Fresh draws, int32 ``[number, U]``."""
    shares = np.cumsum(process.popularity)
    drawn = np.searchsorted(shares, shares[-1] * rng.random((number, process.num_users)), side="right")
    items: NDArray[np.int32] = drawn.astype(np.int32)
    return items


def _next_on_ring(process: SyntheticProcess, items: NDArray[np.int32]) -> NDArray[np.int32]:
    position = items % process.topic_size
    following: NDArray[np.int32] = items - position + (position + 1) % process.topic_size
    return following
