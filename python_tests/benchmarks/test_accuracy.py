"""The runner of accuracy grids, and the statistics of its tables."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from hyenarec.evaluation.metrics import MISS, Ranks

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = {"model.dim": 8, "model.num_blocks": 1, "epochs": 2, "device": "cpu"}


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("accuracy")


@pytest.fixture
def paired(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("paired")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [f"{user} {(user + step) % 20}\n" for user in range(40) for step in range(6 + user % 3)]
    (tmp_path / "steps.txt").write_text("".join(lines))
    return tmp_path


def grid_of(**more: object) -> dict[str, object]:
    models = {"ours": {}, "sasrec": {"model.name": "sasrec"}}
    return {
        "sets": {"steps": {"data.path": "steps.txt", **SMALL}},
        "models": models,
        "seeds": [0, 1],
        "reference": "ours",
        **more,
    }


def test_ranks_survive_packing(paired: ModuleType) -> None:
    values = [1, 2, 10, 11, 254, 255, 256, 9999, MISS]
    unpacked = paired.unpack_ranks(paired.pack_ranks(Ranks.of_single_targets(values)))
    assert unpacked.values.tolist() == [1, 2, 10, 11, 254, MISS, MISS, MISS, MISS]
    best = paired.unpack_ranks(paired.pack_ranks(Ranks(np.array([7, 3, 5]), np.array([0, 2, 3]))))
    assert best.values.tolist() == [3, 5]


def test_one_seed_each_is_the_paired_t_test(paired: ModuleType) -> None:
    first, second = np.random.default_rng(0).random((2, 1, 50))
    difference = paired.paired_difference(first, second)
    expected = stats.ttest_rel(first[0], second[0])
    interval = expected.confidence_interval()
    assert difference.p == pytest.approx(expected.pvalue)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


def test_seeds_that_differ_widen_the_interval(paired: ModuleType) -> None:
    generator = np.random.default_rng(1)
    users = generator.random(400)
    calm = users + 0.01 * generator.random((3, 400))
    wild = calm + np.array([[-0.3], [0.0], [0.3]])
    alike, apart = (paired.paired_difference(runs, calm[:2]) for runs in (calm, wild))
    assert apart.high - apart.low > 10 * (alike.high - alike.low)
    assert apart.p > 0.5
    # With many users, the seeds alone are Welch's test on the runs' figures.
    many = np.repeat(wild, 50, axis=1), np.repeat(calm + 0.4, 50, axis=1)
    welch = stats.ttest_ind(*(runs.mean(axis=1) for runs in many), equal_var=False)
    assert paired.paired_difference(*many).p == pytest.approx(welch.pvalue, rel=0.02)


def test_intervals_hold_the_truth_as_often_as_they_say(paired: ModuleType) -> None:
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        users = generator.normal(size=(1, 300))
        runs = [users + generator.normal(0, 0.05, (3, 1)) + generator.normal(0, 0.5, (3, 300)) for _ in "ab"]
        difference = paired.paired_difference(*runs)
        held += difference.low <= 0 <= difference.high
    assert 0.93 < held / 400 <= 1


def test_equal_models_do_not_differ(paired: ModuleType) -> None:
    same = np.ones((2, 5))
    assert paired.paired_difference(same, same) == paired.Difference(0.0, 0.0, 0.0, 1.0, (2, 2))
    assert paired.paired_difference(2 * same, same).p == 0
    with pytest.raises(ValueError, match="second must have 5 users as first has, got 4"):
        paired.paired_difference(same, np.ones((1, 4)))


def test_models_with_and_without_time_are_compared(accuracy: ModuleType, data: Path) -> None:
    lines = (data / "steps.txt").read_text().splitlines()
    (data / "steps.txt").write_text("".join(f"{line} {3600 * place}\n" for place, line in enumerate(lines)))
    timed = {"model.time_unit": {"steps": "second"}, "model.followers": True}
    grid = grid_of(models={"ours": {}, "timed": timed}, seeds=[0])
    runs = accuracy.runs_of(grid)
    assert [run.options.get("model.time_unit") for run in runs] == [None, "second"]
    assert accuracy.run_all(runs, data, data / "out") == 0
    assert {"ours", "timed"} <= {row["model"] for row in accuracy.comparison(grid, data / "out")}


def test_a_grid_trains_once_and_compares(accuracy: ModuleType, data: Path, capsys) -> None:
    output = data / "out"
    runs = accuracy.runs_of(grid_of())
    assert [run.name for run in runs[:3]] == ["steps/ours/seed-0", "steps/sasrec/seed-0", "steps/ours/seed-1"]
    assert accuracy.run_all(runs, data, output) == 0
    contents = [json.loads((output / f"{run.name}.json").read_text()) for run in runs]
    assert {content["settings"]["data"]["path"] for content in contents} == {"steps.txt"}
    assert all(len(content["curve"]) == 2 for content in contents)
    assert str(data) not in json.dumps(contents)
    assert not any((output / run.name).exists() for run in runs)  # only the figures stay

    capsys.readouterr()
    assert accuracy.run_all(runs, data, output) == 0
    assert capsys.readouterr().out == ""  # nothing was left to do
    ours, ours_alone, sasrec, sasrec_alone = accuracy.comparison(grid_of(), output)
    assert (ours_alone["model"], sasrec_alone["model"]) == ("ours, without counts", "sasrec, without counts")
    assert ours_alone["validation"]["NDCG@10"] <= ours["validation"]["NDCG@10"]
    assert ours["seeds"] == sasrec["seeds"] == [0, 1]
    for part in ("validation", "test"):
        assert ours[part]["difference"] is None
        expected = sasrec[part]["NDCG@10"] - ours[part]["NDCG@10"]
        assert sasrec[part]["difference"]["mean"] == pytest.approx(expected, abs=1e-4)
    for test in (False, True):
        header, rule, *rows = accuracy.markdown([ours, sasrec], "ours", test=test).splitlines()
        assert {line.count("|") for line in (header, rule, *rows)} == {14 if test else 9}
        assert rows[1].startswith("| steps | sasrec | 2 |")
        assert ("test NDCG@10" in header) is test


def test_a_run_with_other_options_is_not_taken_for_this_one(accuracy: ModuleType, data: Path) -> None:
    grid = grid_of(seeds=[0], models={"ours": {}})
    assert accuracy.run_all(accuracy.runs_of(grid), data, data / "out") == 0
    other = accuracy.runs_of(grid_of(seeds=[0], models={"ours": {"model.dim": 4}}))
    with pytest.raises(ValueError, match="remove or rename it"):
        accuracy.run_all(other, data, data / "out")


def test_a_run_in_other_hands_is_left_alone(accuracy: ModuleType, data: Path, capsys) -> None:
    runs = accuracy.runs_of(grid_of(seeds=[0], models={"ours": {}}))
    with accuracy.only_here(data / "out" / "steps/ours/seed-0.lock") as ours:
        assert ours
        assert accuracy.run_all(runs, data, data / "out") == 0
    assert list((data / "out").rglob("*.json")) == []


def test_a_failed_run_is_named_and_the_others_go_on(accuracy: ModuleType, data: Path, capsys) -> None:
    models = {"bad": {"model.dim": 3, "model.name": "sasrec"}, "odd": {"model.foo": 3}, "ours": {}}
    runs = accuracy.runs_of(grid_of(seeds=[0], models=models))
    assert accuracy.run_all(runs, data, data / "out") == 2
    printed = capsys.readouterr().err
    assert "steps/bad/seed-0: " in printed and "model.foo" in printed and "steps/odd/seed-0: " in printed
    assert (data / "out/steps/ours/seed-0.json").is_file()


def test_a_model_may_be_limited_to_some_sets(accuracy: ModuleType) -> None:
    sets = {name: {"data.path": f"{name}.txt"} for name in ("steps", "other")}
    grid = grid_of(sets={"steps": sets["steps"]}, models={"ours": {}, "large": {"only": []}})
    assert {run.model for run in accuracy.runs_of(grid)} == {"ours"}


@pytest.mark.parametrize("only", ["steps", ["step"]])
def test_only_names_sets_of_the_grid(accuracy: ModuleType, only: object) -> None:
    with pytest.raises(ValueError, match=r"only of ours must be a list of the grid's sets, got"):
        accuracy.runs_of(grid_of(models={"ours": {"only": only}}))
