"""Synthetic histories with long memory: the embedded default, made from a seed, nothing to download.

The process, for each user on its own:

- The items are divided into topics, and the items of a topic form a ring.
- A user holds one taste, a topic, at a time; now and then it takes up another, popular ones more often.
- An event either goes on a *burst*, with the item after the last one on its ring, or it is a *turn*. A burst
  that has begun tends to go on.
- A turn mostly is a *return*: it repeats the item of ``period`` events ago, if that was a turn too. Else it
  is a *fresh* draw of any item of the taste's topic, which may return in its turn. So tastes drift into what
  returns.

The last event tells about bursts and the last twenty or so about the taste, but what returns lies ``period``
events back, further than a short memory reaches. `best_achievable` says what each memory is worth.
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
        num_topics: topics; topic ``i`` is drawn with probability proportional to 1 / (i + 1).
        topic_size: items on a topic's ring, so V = num_topics * topic_size.
        min_events: fewest events of a user.
        max_events: most; lengths are uniform between the two.
        burst_starts: probability that a burst begins after a turn.
        burst_goes_on: probability that a burst goes on after each of its steps.
        period: events until an item returns.
        returns: probability that a turn is a return where it can be one.
        new_taste: probability, at every event, that the taste is drawn anew.
        seed: of everything.
    """

    num_users: int = 3000
    num_topics: int = 20
    topic_size: int = 50
    min_events: int = 100
    max_events: int = 600
    burst_starts: float = 0.1
    burst_goes_on: float = 0.6
    period: int = 64
    returns: float = 0.9
    new_taste: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_users", "num_topics", "topic_size", "period"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("burst_starts", "burst_goes_on", "returns", "new_taste"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, got {getattr(self, name)}")
        if not 3 <= self.min_events <= self.max_events:
            raise ValueError(
                f"min_events must lie from 3 to max_events = {self.max_events}, got {self.min_events}"
            )

    @property
    def num_items(self) -> int:
        """V, size of the catalogue."""
        return self.num_topics * self.topic_size


@dataclass(frozen=True, eq=False)
class Simulation:
    """What happened in ``max_events`` steps, arrays of time by users; the histories show the items alone.

    Attributes:
        process: the parameters.
        lengths: events that each user's history has, int64 ``[U]``; later steps are cut off.
        items: item of every event, from 0, int32 ``[T, U]``.
        in_burst: whether the event was a burst step, else it was a turn.
        tastes: topic held at the event, int32 ``[T, U]``.
        draws: time of the fresh draw that the event's item goes back to, int64 ``[T, U]``.
        timestamps: seconds, int64 ``[T, U]``.
    """

    process: SyntheticProcess
    lengths: Int64Array
    items: NDArray[np.int32]
    in_burst: NDArray[np.bool_]
    tastes: NDArray[np.int32]
    draws: Int64Array
    timestamps: Int64Array

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

    With the defaults: 3000 users of 100 to 600 events, 1000 items, about a million events.
    """
    return simulate(SyntheticProcess(num_users=num_users, seed=seed, **parameters)).histories()


def simulate(process: SyntheticProcess) -> Simulation:
    """Run the process, all users at once, one event after another."""
    rng = np.random.Generator(np.random.Philox(process.seed))
    users, period = process.num_users, process.period
    shape = (process.max_events, users)
    lengths = rng.integers(process.min_events, process.max_events, users, endpoint=True)
    items, tastes = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    draws, in_burst = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    taste = _draw_topics(process, rng)
    for t in range(process.max_events):
        taste = np.where(rng.random(users) < process.new_taste, _draw_topics(process, rng), taste)
        tastes[t], draws[t] = taste, t
        items[t] = taste * process.topic_size + rng.integers(process.topic_size, size=users)
        if t >= period:
            returns = (rng.random(users) < process.returns) & ~in_burst[t - period]
            items[t] = np.where(returns, items[t - period], items[t])
            draws[t] = np.where(returns, draws[t - period], t)
        if t > 0:
            chance = np.where(in_burst[t - 1], process.burst_goes_on, process.burst_starts)
            in_burst[t] = rng.random(users) < chance
            items[t] = np.where(in_burst[t], _next_on_ring(process, items[t - 1]), items[t])
            draws[t] = np.where(in_burst[t], draws[t - 1], draws[t])
    # A burst is a matter of minutes, all else one of days.
    gaps = 1 + rng.exponential(np.where(in_burst, _MINUTE, _DAY)).astype(np.int64)
    timestamps = _TIME_OF_START + rng.integers(_YEAR, size=users) + np.cumsum(gaps, axis=0)
    return Simulation(process, lengths, items, in_burst, tastes, draws, timestamps)


def best_achievable(
    simulation: Simulation, last_events: int | None = None, k: int = 10, target: int = -1
) -> dict[str, float]:
    """Expected HR@k, NDCG@k and MRR@k of the best possible ranking that may repeat items of the history.

    It orders the items by their true probability to come next, given the items of the history and all that is
    hidden: the tastes, and which events were turns, returns and bursts. Nobody who sees the items alone can
    expect more. With ``last_events`` it is still told all that is hidden, but sees no more than the items of
    the last so many events, so no model with that short a memory can expect more: an item due to return that
    is out of sight is, for it, any item of the taste that it was once drawn from.

    Args:
        simulation: the histories and what is hidden behind them, from `simulate`.
        last_events: how many events before the target it sees; None means all.
        k: length of the ranking.
        target: the event to be found: -1 a user's last, as in leave-one-out's test, -2 as in its validation.

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
    if not -process.min_events < target < 0:
        raise ValueError(f"target must lie in {1 - process.min_events}..-1, got {target}")
    if last_events is not None and last_events < 1:
        raise ValueError(f"last_events must be at least 1, got {last_events}")
    time = simulation.lengths[users] + target
    rows = np.arange(len(users))
    chances = np.zeros((len(users), process.num_items))
    by_topic = chances.reshape(len(users), process.num_topics, process.topic_size)

    burst = np.where(simulation.in_burst[time - 1, users], process.burst_goes_on, process.burst_starts)
    chances[rows, _next_on_ring(process, simulation.items[time - 1, users])] += burst

    source = np.maximum(time - process.period, 0)
    can_return = (time >= process.period) & ~simulation.in_burst[source, users]
    returns = np.where(can_return, (1 - burst) * process.returns, 0.0)
    seen = source >= _first_seen(simulation, users, time, last_events)
    chances[rows, simulation.items[source, users]] += np.where(seen, returns, 0.0)
    drawn_from = simulation.tastes[simulation.draws[source, users], users]
    by_topic[rows, drawn_from] += np.where(seen, 0.0, returns)[:, None] / process.topic_size

    by_topic[rows, simulation.tastes[time, users]] += (1 - burst - returns)[:, None] / process.topic_size
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


def _draw_topics(process: SyntheticProcess, rng: np.random.Generator) -> NDArray[np.int32]:
    shares = np.cumsum(1 / np.arange(1, process.num_topics + 1))
    topics: NDArray[np.int32] = np.searchsorted(
        shares, shares[-1] * rng.random(process.num_users), side="right"
    ).astype(np.int32)
    return topics


def _next_on_ring(process: SyntheticProcess, items: NDArray[np.int32]) -> NDArray[np.int32]:
    position = items % process.topic_size
    following: NDArray[np.int32] = items - position + (position + 1) % process.topic_size
    return following
