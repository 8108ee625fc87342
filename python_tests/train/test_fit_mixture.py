"""Fitting what is mixed in: the likelihood against its formula, and what it does for data made of counts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from hyenarec.config import ModelConfig
from hyenarec.data import Histories, Targets, Vocabulary
from hyenarec.evaluation.evaluate import evaluate
from hyenarec.evaluation.scoring import scoring_mode
from hyenarec.models.registry import load_model, make_model
from hyenarec.train import mixture as mixture_module
from hyenarec.train import train
from hyenarec.train.mixture import SCALES, Parameters, fit, fit_mixture, loss_of, observe

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


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("tile", [7, 2**21])
def test_the_loss_is_that_of_the_models_scores(exclude_history, tile, monkeypatch):
    monkeypatch.setitem(mixture_module.TILE_SCORES, "cpu", tile)
    torch.manual_seed(0)
    train, targets = made()
    model = make_model(CONFIG).double().eval()
    mixture = model.new_mixture()
    mixture.count(train)
    observed = observe(model, mixture, targets, 12, exclude_history)
    parameters = [
        Parameters(torch.randn(k).double(), torch.tensor(0.3).double(), torch.randn(8).double())
        for k in (6, 6, 16)
    ]
    for weights, fitted in zip(mixture.weights.values(), parameters, strict=True):
        fitted.store(weights)
    mixture.scale.fill_(SCALES[2])
    model.mixture = mixture
    expected, n = 0.0, 0
    with scoring_mode(model):
        for row in range(len(targets)):
            history = torch.from_numpy(targets.items[targets.offsets[row] : targets.offsets[row + 1]]).long()
            window = history[-12:]
            scores = model.score(window, torch.tensor([0, len(window)]))[0]
            if exclude_history:
                scores[history - 1] = -torch.inf
            for item in targets.target_items[targets.target_offsets[row] : targets.target_offsets[row + 1]]:
                if item > 0 and scores[item - 1].isfinite():
                    expected, n = expected - float(scores.log_softmax(0)[item - 1]), n + 1
    assert len(observed.score) == n
    prior = sum(mixture_module.PRIOR / 2 * float(p.strength.square().sum()) for p in parameters)
    assert float(loss_of(parameters, observed, 2)) == pytest.approx((expected + prior) / n, rel=1e-6)


def test_fitting_raises_the_likelihood_and_is_the_same_every_time():
    train, targets = made()
    torch.manual_seed(0)
    model = make_model(CONFIG).eval()
    mixture = model.new_mixture()
    mixture.count(train)
    observed = observe(model, mixture, targets, 12, False)
    fitted = []
    for _ in range(2):
        parameters = [Parameters.first(amounts.shape[1], observed) for amounts in observed.amounts]
        first = float(loss_of(parameters, observed, 0).detach())
        fit(parameters, observed, 0)
        assert float(loss_of(parameters, observed, 0).detach()) < first - 0.3
        fitted.append(parameters[2].log_weight.detach())
    assert torch.equal(*fitted)
    assert fitted[0].argmax() == 0  # it is the last item that matters


def test_a_model_that_knows_nothing_ranks_by_what_is_counted():
    train, targets = made(400)
    torch.manual_seed(0)
    model = make_model(CONFIG).eval()

    def figures():
        return evaluate(model, targets, max_len=12, exclude_history=False)

    plain = figures().figures["NDCG@10"].mean
    mixed = fit_mixture(
        model,
        train,
        targets,
        max_len=12,
        exclude_history=False,
        plain=plain,
        evaluate=figures,
        metric="NDCG@10",
    )
    assert mixed.figures["NDCG@10"].mean == figures().figures["NDCG@10"].mean > plain + 0.3


def test_what_ranks_no_better_has_no_weight():
    train, targets = made()
    model = make_model(CONFIG).eval()
    before = model.score(*window_of(targets))
    fit_mixture(
        model,
        train,
        targets,
        max_len=12,
        exclude_history=False,
        plain=2.0,  # nothing can
        evaluate=lambda: evaluate(model, targets, max_len=12, exclude_history=False),
        metric="NDCG@10",
    )
    assert torch.equal(model.score(*window_of(targets)), before)


def window_of(targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(targets.items[:3]).long(), torch.tensor([0, 3])


def test_a_run_reports_and_saves_what_it_mixes_in(make_config, tmp_path, capsys):
    config = make_config(epochs=1)
    model = dataclasses.replace(config.model, repeats=True, followers=True)
    result = train(dataclasses.replace(config, model=model))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["mixed_validation"]["NDCG@10"] >= report["best_validation"]["NDCG@10"]
    assert f"-> {report['mixed_validation']['NDCG@10']:.4f}" in capsys.readouterr().out
    loaded = load_model(tmp_path / "run")
    items, offsets = torch.tensor([1, 2, 1]), torch.tensor([0, 3])
    assert list(loaded.mixture.sources) == ["repeats", "followers"]
    assert torch.equal(loaded.score(items, offsets), result.model.score(items, offsets))
