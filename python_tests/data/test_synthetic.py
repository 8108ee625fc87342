"""Synthetic histories: what the generator promises, and that its best achievable score is right."""

import numpy as np
import pytest

from hyenarec.config import DataConfig
from hyenarec.data import (
    SyntheticProcess,
    best_achievable,
    leave_one_out,
    load_histories,
    split_histories,
    synthetic_histories,
)
from hyenarec.data.synthetic import next_event_distribution, simulate

PROCESS = SyntheticProcess(num_users=800)
TARGETS = (-1, -2, -20, -40, -60, -80)


@pytest.fixture(scope="module")
def simulation():
    return simulate(PROCESS, TARGETS)


def test_histories_follow_from_the_seed():
    one, again, other = (synthetic_histories(num_users=20, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.items, again.items) and np.array_equal(one.timestamps, again.timestamps)
    assert not np.array_equal(one.items[:100], other.items[:100])


def test_histories_have_the_promised_shape(simulation):
    histories = simulation.histories()
    assert (histories.num_users, histories.num_items) == (800, 300)
    assert 100 <= histories.lengths.min() < 110 and 590 < histories.lengths.max() <= 600
    assert histories.items.min() >= 1 and np.unique(histories.items).size == 300
    assert histories[3].tolist() == (simulation.items[: simulation.lengths[3], 3] + 1).tolist()


def test_bursts_walk_the_ring_of_their_topic(simulation):
    before, after = simulation.items[:-1], simulation.items[1:]
    burst = simulation.in_burst[1:]
    same_topic = before // PROCESS.topic_size == after // PROCESS.topic_size
    step = (after - before) % PROCESS.topic_size
    assert np.all(same_topic[burst]) and np.all(step[burst] == 1)
    # share of bursts: starts / (starts + 1 - goes_on) = 3 / 13
    assert abs(burst.mean() - 3 / 13) < 0.01


def turns_of(simulation, user):
    """The items of one user's turns, in order."""
    return simulation.items[~simulation.in_burst[:, user], user]


def test_favourites_return_after_a_rest_and_not_before(simulation):
    """But for fresh draws of an item that is a favourite already."""
    gaps = []
    for user in range(100):
        last = {}
        for number, item in enumerate(turns_of(simulation, user)):
            if item in last:
                gaps.append(number - last[item])
            last[item] = number
    gaps = np.array(gaps)
    assert (gaps <= PROCESS.rest).mean() < 0.08
    assert (
        abs(np.median(gaps) - (PROCESS.rest + 5)) <= 1
    )  # then 1/6 at every turn: half of them after 4 or 5 more
    assert (gaps > 2 * PROCESS.rest).mean() > 0.1


def test_tastes_drift_slowly(simulation):
    """Of the favourites of one time, most are still visited 40 turns later, few 300 later."""
    shares = {distance: [] for distance in (40, 300)}
    for user in range(200):
        turns = turns_of(simulation, user)
        early = set(turns[:40])
        for distance, share in shares.items():
            late = turns[distance : distance + 40]
            if len(late) == 40:
                share.append(np.isin(late, list(early)).mean())
    assert 0.75 < np.mean(shares[40]) < 0.95
    assert 0.2 < np.mean(shares[300]) < 0.5


def test_chances_are_a_distribution(simulation):
    for last_events in (None, 10):
        chances = next_event_distribution(simulation, np.arange(100), last_events)
        assert chances.shape == (100, 300)
        assert chances.min() >= 0
        np.testing.assert_allclose(chances.sum(axis=1), 1)


@pytest.mark.parametrize("last_events", [None, 1, 10, 30, 60])
def test_the_true_targets_come_as_often_as_their_chances_say(simulation, last_events):
    """The chance of what came is, on average, the chance that it had: E[p(target)] = E[sum of p squared]."""
    users = np.arange(PROCESS.num_users)
    surprise = []
    for target in TARGETS:
        chances = next_event_distribution(simulation, users, last_events, target)
        came = chances[users, simulation.items[simulation.lengths + target, users]]
        surprise.append(came - (chances**2).sum(axis=1))
    surprise = np.concatenate(surprise)
    assert abs(surprise.mean()) < 3.5 * surprise.std() / np.sqrt(len(surprise))
    assert surprise.std() > 0.1  # the test has something to see


def test_the_best_score_is_what_the_best_ranking_gets(simulation):
    users = np.arange(PROCESS.num_users)
    chances = next_event_distribution(simulation, users)
    rng = np.random.default_rng(0)
    ranking = np.argsort(-(chances + 1e-9 * rng.random(chances.shape)), axis=1)[:, :10]
    hits = ranking == simulation.items[simulation.lengths - 1, users][:, None]
    best = best_achievable(simulation)
    assert abs(hits.any(axis=1).mean() - best["HR@10"]) < 3.5 * np.sqrt(0.25 / len(users))
    gains = hits / np.log2(np.arange(2, 12))
    assert abs(gains.sum(axis=1).mean() - best["NDCG@10"]) < 0.05
    reciprocal = hits / np.arange(1, 11)
    assert abs(reciprocal.sum(axis=1).mean() - best["MRR@10"]) < 0.05


def test_long_memory_is_worth_twice_the_last_ten_events(simulation):
    whole, *limited = (best_achievable(simulation, last_events) for last_events in (None, 1, 10, 20, 40, 80))
    assert whole["HR@10"] > 0.9 and whole["NDCG@10"] > 0.55
    last_10 = limited[1]
    assert last_10["HR@10"] < 0.43 and last_10["NDCG@10"] < 0.38
    for name in whole:
        scores = [score[name] for score in (*limited, whole)]
        assert scores == sorted(scores)
    assert limited[2]["HR@10"] < 0.72 and limited[3]["HR@10"] < 0.93  # nor do the last 20 or 40 tell all


def test_popularity_alone_gets_nowhere():
    split = leave_one_out(synthetic_histories(num_users=800))
    most_popular = np.argsort(-np.bincount(split.train.items))[:10]
    assert np.isin(split.test.target_items, most_popular).mean() < 0.15


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"num_users": 0}, "num_users must be at least 1, got 0"),
        ({"favourites": 0}, "favourites must be at least 1"),
        ({"rest": 16}, r"rest must lie in 0..favourites - 1 = 15, got 16"),
        ({"fresh": 1.5}, "fresh must be a probability, got 1.5"),
        ({"min_events": 2}, "min_events must lie from 3 to max_events = 600, got 2"),
        ({"min_events": 700}, "min_events must lie from 3"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        SyntheticProcess(**parameters)


def test_bad_arguments():
    few = simulate(SyntheticProcess(num_users=5))
    for arguments, message in (
        ({"k": 0}, r"k must lie in 1\.\.300"),
        ({"last_events": 0}, "last_events must be at least 1"),
        ({"target": 0}, r"target must be one of those simulated, \[-2, -1\], got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            best_achievable(few, **arguments)
    with pytest.raises(ValueError, match=r"targets must lie in -99\.\.-1, got -100"):
        simulate(SyntheticProcess(num_users=5), targets=(-100,))


def test_the_smallest_processes_run():
    process = SyntheticProcess(
        num_users=1, num_topics=1, topic_size=1, min_events=3, max_events=3, favourites=1, rest=0
    )
    simulation = simulate(process)
    assert simulation.histories()[0].tolist() == [1, 1, 1]
    assert best_achievable(simulation, k=1) == pytest.approx({"HR@1": 1, "NDCG@1": 1, "MRR@1": 1})


def test_the_default_configuration_loads_and_splits():
    config = DataConfig(synthetic_users=30)
    histories = load_histories(config, seed=5)
    assert np.array_equal(histories.items[:50], load_histories(config, seed=5).items[:50])
    assert not np.array_equal(histories.items[:50], load_histories(config, seed=6).items[:50])
    split = split_histories(histories, config)
    assert (split.name, len(split.test)) == ("leave-one-out", 30)


def test_a_configured_file_is_read_filtered_and_split(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(
        "who,what,when\n" + "".join(f"u{n % 3},i{n % 7},{n}\n" for n in range(42)) + "u0,rare,99\n"
    )
    names = {"user_column": "who", "item_column": "what", "timestamp_column": "when"}
    config = DataConfig(path=str(path), min_item_events=2, **names)
    histories = load_histories(config)
    assert (histories.num_events, histories.num_items) == (42, 7)
    assert split_histories(histories, config).train.num_events == 36

    temporal = DataConfig(path=str(path), min_item_events=2, split="temporal", **names)
    histories = load_histories(temporal)
    assert histories.num_events == 43  # the filter waits for the split: it may see training events alone
    split = split_histories(histories, temporal)
    assert (split.name, split.train.num_items) == ("temporal", 7)
    assert split.train.timestamps.max() < 36

    everything = DataConfig(path=str(path), min_item_events=2, split="temporal", targets="all", **names)
    split = split_histories(histories, everything)
    assert len(split.test.target_items) > len(split.test)

    with pytest.raises(ValueError, match="needs timestamps"):
        without = DataConfig(path=str(path), split="temporal", **{**names, "timestamp_column": None})
        split_histories(load_histories(without), without)
