"""Fitting what is mixed in: the likelihood against its formula, and what it does for data made of counts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from devices import needs_gpu

from hyenarec.config import ModelConfig
from hyenarec.data import Histories, Targets, Vocabulary
from hyenarec.evaluation import scoring
from hyenarec.evaluation.evaluate import evaluate
from hyenarec.evaluation.scoring import scoring_mode
from hyenarec.models.registry import load_model, make_model
from hyenarec.models.sequential import SequentialModel
from hyenarec.train import mixture as mixture_module
from hyenarec.train import observed as observed_module
from hyenarec.train import train
from hyenarec.train.mixture import FIRST_STEPS, Parameters, fit, fit_mixture, loss_of, store
from hyenarec.train.observed import observe

V = 30
CONFIG = ModelConfig(
    num_items=V, dim=8, num_blocks=1, max_len=12, repeats=True, own_followers=True, followers=True
)


def made(users: int = 40, length: int = 15, seed: int = 0) -> tuple[Histories, Targets]:
    """Histories in which an item is mostly followed by the one after it, and targets after them."""
    random = np.random.default_rng(seed)
    steps = np.where(random.random((users, length)) < 0.7, 1, random.integers(0, V, (users, length)))
    items = (random.integers(0, V, (users, 1)) + steps.cumsum(1)) % V + 1
    rows = np.arange(users + 1)
    train = Histories(
        rows * (length - 1),
        items[:, :-1].flatten().astype(np.int32),
        None,
        rows[:-1],
        Vocabulary(np.arange(V)),
    )
    lengths = random.integers(1, length, users)
    offsets = np.concatenate([[0], lengths.cumsum()])
    known = np.concatenate([items[user, :n] for user, n in enumerate(lengths)]).astype(np.int32)
    wanted = np.concatenate([np.unique(items[user, n : n + 2]) for user, n in enumerate(lengths)])
    counts = [len(np.unique(items[user, n : n + 2])) for user, n in enumerate(lengths)]
    wanted[3] = 0  # an unknown item
    targets = Targets(offsets, known, np.cumsum([0, *counts]), wanted.astype(np.int32), rows[:-1])
    return train, targets


def with_moments(targets: Targets) -> Targets:
    """The targets with an event an hour, and questions up to a day later."""
    hours = np.concatenate([np.arange(n) for n in np.diff(targets.offsets)])
    asked = hours[targets.offsets[1:] - 1] + np.arange(len(targets)) % 25
    return dataclasses.replace(targets, timestamps=hours * 3600, asked=asked * 3600)


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("tile", [7, 2**21])
@pytest.mark.parametrize("timed", [False, True])
def test_the_loss_is_that_of_the_models_scores(timed, exclude_history, tile, monkeypatch):
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", tile)
    torch.manual_seed(0)
    train, targets = made()
    targets = with_moments(targets)
    with_time = {"time_unit": "second", "repeats_by_time": True} if timed else {}
    model = make_model(dataclasses.replace(CONFIG, **with_time)).double().eval()
    mixture = model.new_mixture()
    mixture.count(train)
    observed = observe(model, mixture, targets, 12, exclude_history)
    parameters = [
        Parameters(*(torch.randn(n).double() for n in (source.kinds, (), 8, len(source.bins))))
        for source in mixture.each_source()
    ]
    store(parameters, observed.scaled(2), mixture)
    model.mixture = mixture
    expected, n = 0.0, 0
    with scoring_mode(model):
        for row in range(len(targets)):
            known = slice(*targets.offsets[row : row + 2])
            history = torch.from_numpy(targets.items[known]).long()
            window = history[-12:]
            moments = [torch.from_numpy(targets.timestamps[known])[-12:], torch.tensor([targets.asked[row]])]
            scores = model.score(window, torch.tensor([0, len(window)]), *(moments if timed else []))[0]
            if exclude_history:
                scores[history - 1] = -torch.inf
            for item in targets.target_items[targets.target_offsets[row] : targets.target_offsets[row + 1]]:
                if item > 0 and scores[item - 1].isfinite():
                    expected, n = expected - float(scores.log_softmax(0)[item - 1]), n + 1
    assert len(observed.score) == n
    for source in parameters:
        expected += mixture_module.PRIOR / 2 * float(source.strength.square().sum())
        expected += mixture_module.SHIFT_PRIOR / 2 * float(source.shift.square().sum())
    assert float(loss_of(parameters, observed, observed.scaled(2))) == pytest.approx(expected / n, rel=1e-6)


def test_fitting_raises_the_likelihood_and_is_the_same_every_time():
    train, targets = made()
    torch.manual_seed(0)
    model = make_model(CONFIG).eval()
    mixture = model.new_mixture()
    mixture.count(train)
    observed = observe(model, mixture, targets, 12, False)
    fitted, network = [], observed.scaled(0)
    for _ in range(2):
        parameters = Parameters.first(observed)
        first = float(loss_of(parameters, observed, network).detach())
        fit(parameters, observed, network, FIRST_STEPS)
        assert float(loss_of(parameters, observed, network).detach()) < first - 0.3
        fitted.append(parameters[2].log_weight.detach())
    assert torch.equal(*fitted)
    assert fitted[0].argmax() == 0  # it is the last item that matters


def mixed_into(model: SequentialModel, train: Histories, targets: Targets, **settings: Any) -> float | None:
    arguments = {"exclude_history": False, "plain": 0.0} | settings
    exclude_history = arguments["exclude_history"]
    return fit_mixture(
        model,
        train,
        targets,
        max_len=12,
        evaluate=lambda some: evaluate(model, some, max_len=12, exclude_history=exclude_history),
        metric="NDCG@10",
        **arguments,
    )


def ndcg(model: SequentialModel, targets: Targets) -> float:
    return evaluate(model, targets, max_len=12, exclude_history=False).figures["NDCG@10"].mean


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("shift", [0.0, 200.0, -200.0])
def test_a_model_that_knows_nothing_ranks_by_what_is_counted(shift, device):
    train, targets = made(400)
    torch.manual_seed(0)
    model = make_model(CONFIG).eval().to(device)
    with torch.no_grad():
        model.item_bias += shift
    plain = ndcg(model, targets)
    mixed = mixed_into(model, train, targets, plain=plain)
    assert mixed > plain + 0.3
    assert ndcg(model, targets) > plain + 0.3  # of weights that were fitted to all targets
    _, others = made(400, seed=1)
    assert ndcg(model, others) == pytest.approx(mixed, abs=0.05)


def test_what_ranks_no_better_is_left_out():
    train, targets = made()
    model = make_model(CONFIG).eval()
    assert mixed_into(model, train, targets, plain=2.0) is None  # nothing can rank better
    assert model.mixture is None


def test_targets_that_tell_nothing_leave_the_model_as_it_is():
    train, targets = made()
    model = make_model(CONFIG).eval()
    assert mixed_into(model, train, targets.select(np.arange(1))) is None
    unknown = dataclasses.replace(targets, target_items=np.zeros_like(targets.target_items))
    assert mixed_into(model, train, unknown) is None
    seen = np.concatenate([[targets.items[begin]] * n for begin, n in zip(
        targets.offsets[:-1], np.diff(targets.target_offsets), strict=True
    )]).astype(np.int32)  # fmt: skip
    assert (
        mixed_into(model, train, dataclasses.replace(targets, target_items=seen), exclude_history=True)
        is None
    )
    assert model.mixture is None


def test_batches_without_a_possible_target_are_passed_over(monkeypatch):
    train, targets = made()
    torch.manual_seed(0)
    model = make_model(CONFIG).eval()
    mixture = model.new_mixture()
    mixture.count(train)
    whole = observe(model, mixture, targets, 12, True)
    monkeypatch.setattr(observed_module, "BATCH_SIZE", 1)
    single = observe(model, mixture, targets, 12, True)
    assert len(whole) == len(single) < len(targets.target_items)
    assert whole.score.sort().values == pytest.approx(single.score.sort().values, abs=1e-5)


def test_what_cannot_be_recommended_has_no_weight():
    train, targets = made(200)
    model = make_model(CONFIG).eval()
    assert mixed_into(model, train, targets, exclude_history=True) is not None
    weights = model.mixture.weights
    assert not weights["repeats"].weight.any() and not weights["own_followers"].weight.any()
    assert weights["followers"].weight.any()


def test_items_that_the_network_wants_back_too_early_are_taken_out_of_the_way():
    train, targets = made(400)  # an item is hardly ever followed by itself
    torch.manual_seed(0)
    model = make_model(dataclasses.replace(CONFIG, max_len=15, dim=64)).eval()
    with torch.no_grad():
        model.items.weight *= 20  # so a row is the last item's own, and so is the highest score
    items, offsets = torch.from_numpy(targets.items).long(), torch.from_numpy(targets.offsets)

    def first_is_the_last_item() -> float:
        first = model.score(items, offsets).argmax(1) + 1
        return (first == items[offsets[1:] - 1]).double().mean().item()

    assert first_is_the_last_item() > 0.9
    mixed_into(model, train, targets)
    assert first_is_the_last_item() < 0.1
    shift = model.mixture.weights["repeats"].shift
    assert shift[model.mixture.sources["repeats"].bins.start] < -1
    assert not model.mixture.weights["followers"].shift.any()


def test_a_run_reports_and_saves_what_it_mixes_in(make_config, tmp_path, capsys):
    config = make_config(epochs=1)
    model = dataclasses.replace(config.model, repeats=True, followers=True)
    result = train(dataclasses.replace(config, model=model))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["mixed_validation"]["NDCG@10"] == result.mixed_score > result.best_score
    assert f"-> {report['mixed_validation']['NDCG@10']:.4f}" in capsys.readouterr().out
    loaded = load_model(tmp_path / "run")
    items, offsets = torch.tensor([1, 2, 1]), torch.tensor([0, 3])
    assert list(loaded.mixture.sources) == ["repeats", "followers"]
    assert torch.equal(loaded.score(items, offsets), result.model.score(items, offsets))
