"""Fitting what is mixed in: the likelihood against its formula, and what it does for data made of counts."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from devices import needs_gpu

from hyenarec.config import ModelConfig
from hyenarec.data import Histories, Targets, Vocabulary
from hyenarec.data.times import Times
from hyenarec.evaluation import scoring
from hyenarec.evaluation.evaluate import evaluate
from hyenarec.evaluation.scoring import scoring_mode
from hyenarec.models.mixture.count_mixture import CountMixture
from hyenarec.models.registry import load_model, make_model
from hyenarec.models.sequential import SequentialModel
from hyenarec.train import candidates as candidates_module
from hyenarec.train import train
from hyenarec.train.candidates import candidates_of
from hyenarec.train.mixture import fit_mixture
from hyenarec.train.mixture_weights import FIRST_SHARE, LOOSE_PRIOR, PRIOR, OfSource, Parameters, fit, loss_of

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


def any_parameters(mixture: CountMixture) -> Parameters:
    sources = [
        OfSource(torch.randn(source.kinds) - 2, torch.randn(()), torch.randn(2, source.kinds))
        for source in mixture.each_source()
    ]
    return Parameters(torch.tensor(-0.4), torch.tensor(0.3), sources, torch.tensor(3.0))


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize(("tile", "batch_size", "nearest"), [(7, 256, 50), (2**21, 1, 4), (100, 5, 2)])
@pytest.mark.parametrize("timed", [False, True])
def test_the_loss_is_that_of_the_models_scores(
    timed, exclude_history, tile, batch_size, nearest, monkeypatch
):
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", tile)
    monkeypatch.setattr(candidates_module, "BATCH_SIZE", batch_size)
    monkeypatch.setattr(candidates_module, "NEAREST", nearest)
    torch.manual_seed(0)
    train, targets = made()
    targets = with_moments(targets)
    with_time = {"time_unit": "second", "repeats_by_time": True} if timed else {}
    model = make_model(dataclasses.replace(CONFIG, **with_time)).double().eval()
    mixture = model.new_mixture()
    mixture.count(train)
    candidates = candidates_of(model, mixture, targets, 12, exclude_history)
    parameters = any_parameters(mixture)
    log_probabilities = []
    with scoring_mode(model):
        for row in range(len(targets)):
            known = slice(*targets.offsets[row : row + 2])
            history = torch.from_numpy(targets.items[known]).long()
            window = history[-12:]
            moments = [torch.from_numpy(targets.timestamps[known])[-12:], torch.tensor([targets.asked[row]])]
            arguments = (window, torch.tensor([0, len(window)]), *(moments if timed else []))
            model.mixture = None
            out = history - 1 if exclude_history else []
            scores = model.score(*arguments)[0]
            scores[out] = -torch.inf
            chosen = torch.zeros(V, dtype=torch.bool)
            chosen[scores.topk(min(nearest, V)).indices] = True
            times = Times(*moments) if timed else None
            for evidence in model.evidence(mixture, *arguments[:2], times):
                sums = torch.zeros(V, dtype=torch.float64).index_add(0, evidence.item - 1, evidence.amount)
                sums[out] = 0
                most = sums.topk(min(nearest, V)).indices
                chosen[most[sums[most] > 0]] = True
            chosen[out] = False
            parameters.store(mixture)
            model.mixture = mixture
            log_probability = model.score(*arguments)[0].masked_fill(~chosen, -torch.inf).log_softmax(0)
            for item in targets.target_items[targets.target_offsets[row] : targets.target_offsets[row + 1]]:
                if item > 0 and chosen[item - 1]:
                    log_probabilities.append(log_probability[item - 1])
    assert len(candidates) == len(log_probabilities)
    prior = LOOSE_PRIOR / 2 * (0.4**2 + 0.3**2)
    for source in parameters.sources:
        first = math.log(FIRST_SHARE / len(source.log_weight))
        loose = float((source.log_weight - first).square().sum() + source.log_shrinkage.square())
        prior += LOOSE_PRIOR / 2 * loose + PRIOR / 2 * float(source.shift.square().sum())
    expected = (prior - float(sum(log_probabilities))) / len(candidates)
    assert float(loss_of(parameters, candidates)) == pytest.approx(expected, rel=1e-5)


def test_fitting_raises_the_likelihood_and_is_the_same_every_time():
    train, targets = made()
    torch.manual_seed(0)
    model = make_model(CONFIG).eval()
    mixture = model.new_mixture()
    mixture.count(train)
    candidates = candidates_of(model, mixture, targets, 12, False)
    first = loss_of(Parameters.first(mixture, candidates), candidates)
    fitted = [fit(mixture, candidates) for _ in range(2)]
    assert loss_of(fitted[0], candidates) < first - 0.3
    for one, other in zip(*(parameters.tensors() for parameters in fitted), strict=True):
        assert torch.equal(one, other)


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


def test_a_history_that_leaves_nothing_to_recommend_is_passed_over():
    train, targets = made(100)
    whole = np.concatenate([np.arange(1, V + 1, dtype=np.int32), targets.items])
    offsets = np.concatenate([[0], targets.offsets + V])
    target_offsets = np.concatenate([[0], targets.target_offsets + 1])
    wanted = np.concatenate([np.array([7], np.int32), targets.target_items])
    targets = Targets(offsets, whole, target_offsets, wanted, np.arange(101))
    torch.manual_seed(0)
    model = make_model(dataclasses.replace(CONFIG, max_len=40)).eval()
    mixture = model.new_mixture()
    mixture.count(train)
    candidates = candidates_of(model, mixture, targets, 40, True)
    assert 0 not in candidates.row and candidates.rows == 101
    fitted = fit(mixture, candidates)
    assert loss_of(fitted, candidates).isfinite()
    assert not any(tensor.isnan().any() for tensor in fitted.tensors())


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
