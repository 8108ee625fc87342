"""The tables to the letter, and a report file that is whole and says how its figures were made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import hyenarec
from hyenarec.data import Histories, Vocabulary, leave_one_out
from hyenarec.evaluation import report as report_module
from hyenarec.evaluation.evaluate import Evaluation, evaluate
from hyenarec.evaluation.metrics import Figure, Ranks
from hyenarec.evaluation.report import (
    evaluate_reference_baselines,
    git_commit,
    make_report,
    markdown_table,
    text_table,
    write_report,
)
from hyenarec.models.counting import Markov, Popularity


def evaluation(hit_rate: float, ndcg: float, exclude_history: bool = True) -> Evaluation:
    return Evaluation(
        figures={
            "HR@10": Figure(hit_rate, hit_rate - 0.01, hit_rate + 0.01),
            "NDCG@10": Figure(ndcg, ndcg - 0.01, ndcg + 0.01),
        },
        split="leave-one-out test",
        exclude_history=exclude_history,
        max_len=200,
        num_items=3416,
        num_users=6040,
        without_history=0,
        unknown_targets=0,
        excluded_targets=0,
        ranks=Ranks.of_single_targets([1]),
    )


RESULTS = {"HyenaRec": evaluation(0.32519, 0.18996), "Markov": evaluation(0.2, 0.1)}
PROTOCOL = "leave-one-out test, 6,040 users, all 3,416 items ranked, history excluded, max_len 200"


def test_text_table() -> None:
    assert text_table(RESULTS).splitlines() == [
        PROTOCOL,
        "          HR@10                    NDCG@10",
        "HyenaRec  0.3252 [0.3152, 0.3352]  0.1900 [0.1800, 0.2000]",
        "Markov    0.2000 [0.1900, 0.2100]  0.1000 [0.0900, 0.1100]",
    ]


def test_bounds_stand_below_the_figures() -> None:
    bounds = {"best": {"HR@10": 0.9, "NDCG@10": 0.60001, "MRR@10": 0.5}}
    assert text_table(RESULTS, bounds).splitlines()[-1] == "best      0.9000                   0.6000"


def test_markdown_table() -> None:
    assert markdown_table(RESULTS).splitlines() == [
        "|  | HR@10 | NDCG@10 |",
        "|---|---|---|",
        "| HyenaRec | 0.3252 [0.3152, 0.3352] | 0.1900 [0.1800, 0.2000] |",
        "| Markov | 0.2000 [0.1900, 0.2100] | 0.1000 [0.0900, 0.1100] |",
        "",
        f"95% bootstrap intervals over users; {PROTOCOL}.",
    ]


def test_figures_of_two_protocols_do_not_share_a_table() -> None:
    mixed = {**RESULTS, "other": evaluation(0.3, 0.2, exclude_history=False)}
    with pytest.raises(ValueError, match=r"results must share one protocol, got .*history not excluded"):
        text_table(mixed)
    with pytest.raises(ValueError, match="at least one evaluation"):
        markdown_table({})


def test_report_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    made = make_report(RESULTS, leaks="It leaks.", config={"model": {"dim": 64}}, best_epoch=7)
    write_report(path, made)
    read = json.loads(path.read_text())
    assert read == made
    assert read["protocol"] == PROTOCOL
    assert (read["leaks"], read["best_epoch"], read["config"]) == ("It leaks.", 7, {"model": {"dim": 64}})
    assert read["results"]["HyenaRec"]["figures"]["HR@10"]["mean"] == 0.32519
    assert read["results"]["Markov"]["num_items"] == 3416
    assert read["versions"]["torch"] == torch.__version__
    assert read["versions"]["hyenarec"] == hyenarec.__version__
    assert "commit" in read


def test_a_failed_write_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(path, {"score": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(path, {"score": float("nan")})
    assert json.loads(path.read_text()) == {"score": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_commit_is_of_the_tree_that_holds_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "report.py"
    source.write_text("")
    monkeypatch.setattr(report_module, "__file__", str(source))
    assert git_commit() is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody else's")
    assert git_commit() is None  # installed below a repository that does not know it
    git("add", "report.py")
    git("commit", "-q", "-m", "ours")
    commit = git("rev-parse", "HEAD")
    assert git_commit() == commit
    source.write_text("changed")
    assert git_commit() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None  # no git


def test_baselines_count_what_is_known_before_the_targets() -> None:
    rows = [[1, 2, 3, 4], [2, 3, 1], [5, 2, 3], [4, 5]]
    histories = Histories(
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        timestamps=None,
        user_ids=np.arange(len(rows), dtype=np.int64),
        vocabulary=Vocabulary(np.arange(5)),
    )
    split = leave_one_out(histories)
    known = [[1, 2, 3], [2, 3], [5, 2], [4, 5]]  # the last user is too short to be evaluated
    expected = Histories(
        offsets=np.cumsum([0, *map(len, known)], dtype=np.int64),
        items=np.array([item for row in known for item in row], dtype=np.int32),
        timestamps=None,
        user_ids=np.arange(len(known), dtype=np.int64),
        vocabulary=histories.vocabulary,
    )
    options = {"max_len": 10, "exclude_history": False, "split": "test"}
    baselines = evaluate_reference_baselines(split.train, split.test, **options)
    assert list(baselines) == ["Markov", "Popularity", "Personal", "Personal + Markov"]
    # Where the history is excluded, those of the user's own items have nothing to recommend.
    excluded = evaluate_reference_baselines(split.train, split.test, **options | {"exclude_history": True})
    assert list(excluded) == ["Markov", "Popularity"]
    by_hand = {"Markov": Markov.of(expected), "Popularity": Popularity.of(expected)}
    for name, recommender in by_hand.items():
        assert (
            baselines[name].ranks.values.tolist()
            == evaluate(recommender, split.test, **options).ranks.values.tolist()
        )
    # Nothing follows 3: items 1 and 4 tie for the last rank. 3 follows 2 in validation events only.
    assert baselines["Markov"].ranks.values.tolist() == [5, 5, 1]
