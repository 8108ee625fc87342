"""The row of an empty history: fitted after training, and scored in batch, stream, file and command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from devices import needs_gpu

from hyenarec.config import GRU4RecConfig, HyenaConfig, ModelConfig, SASRecConfig, SequentialConfig
from hyenarec.data import Histories, Vocabulary
from hyenarec.data.times import in_seconds
from hyenarec.evaluation import scoring
from hyenarec.evaluation.recommend import SavedModel, load, recommend
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.registry import COUNT_BASED, load_model, make_model
from hyenarec.models.sequential import SequentialModel
from hyenarec.train import train
from hyenarec.train.beginning import fit_start

V = 12
SHAPE = {"num_items": V, "dim": 8, "max_len": 10}
COUNTED = {"repeats": True, "own_followers": True, "followers": True, "repeats_by_time": True}
CONFIG = ModelConfig(num_blocks=1, num_coeffs=5, time_unit="minute", **SHAPE, **COUNTED)
MODELS = [
    CONFIG,
    dataclasses.replace(CONFIG, norm="pre", time_unit=None, repeats_by_time=False),
    ModelConfig(repeat_head=True, **SHAPE),
    SASRecConfig(time_unit="hour", **SHAPE),
    GRU4RecConfig(**SHAPE),
    HyenaConfig(**SHAPE),
]
every_model = pytest.mark.parametrize("config", MODELS, ids=lambda config: config.name)
ROWS = [[], [3, 1, 3], [], [7], [2] * 10, []]


def histories_of(rows: list[list[int]], moments: list[int] | None = None) -> Histories:
    total = sum(map(len, rows))
    return Histories(
        offsets=np.cumsum([0, *map(len, rows)]),
        items=np.array([item for row in rows for item in row], np.int32),
        timestamps=np.zeros(total, np.int64) if moments is None else np.array(moments),
        user_ids=np.arange(len(rows)),
        vocabulary=Vocabulary(np.arange(V)),
    )


def model_of(config: SequentialConfig) -> SequentialModel:
    """A model with any weights, a row for empty histories, and a mixture of any weights if it counts."""
    torch.manual_seed(0)
    model = make_model(config).double().eval()
    model.start = torch.randn(config.dim, dtype=torch.float64)
    model.mixture = model.new_mixture()
    for weights in model.mixture.weights.values() if model.mixture is not None else ():
        weights.weight.copy_(torch.rand_like(weights.weight) * 30)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def arguments_of(model: SequentialModel, rows: list[list[int]]) -> list[torch.Tensor]:
    """What `score` takes for these histories, whose events are an hour apart and asked for after two."""
    items = torch.tensor([item for row in rows for item in row], dtype=torch.int64)
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    if not model.uses_time:
        return [items, offsets]
    moments = [100 * place for row in rows for place in range(len(row))]
    return [items, offsets, torch.tensor(moments, dtype=torch.int64), torch.full((len(rows),), 2000)]


@pytest.mark.parametrize("unit", [None, "hour"])
@pytest.mark.parametrize("tile", [1, 2**21])
def test_no_other_row_is_more_probable(unit: str | None, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the cross-entropy of each first event by itself, and the prior."""
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", tile)
    config = dataclasses.replace(CONFIG, time_unit=unit, repeats_by_time=False, followers=False)
    model = model_of(config)
    choose = np.random.default_rng(0)
    rows = [[int(item), 1] for item in choose.integers(1, V // 2, 60)] + [[], [5]]
    moments = [int(m) for start in choose.integers(-500, 500, 61) for m in (start, start + 3)][:-1]
    fit_start(model, histories_of(rows, moments))
    assert model.start is not None
    first = torch.tensor([row[0] for row in rows if row])
    started = torch.tensor(moments[::2])
    start = model.start.clone().requires_grad_()
    answers = start.expand(len(first), -1)
    if unit is not None:
        answers = model.answer(answers, in_seconds(started, "hour"), torch.full((len(first),), -1))
    scores = F.linear(answers, model.item_weight.detach(), model.item_bias.detach())
    loss = F.cross_entropy(scores, first - 1, reduction="sum") + start.square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, start)
    assert gradient.abs().max() < 1e-3 * len(first)
    if unit is None:  # then the posterior has one maximum
        other = start.detach() + 0.01 * torch.randn_like(start)
        scores = F.linear(other, model.item_weight, model.item_bias).expand(len(first), -1)
        worse = F.cross_entropy(scores, first - 1, reduction="sum") + other.square().sum() / 2
        assert worse > loss
    assert all(parameter.grad is None for parameter in model.parameters())


@every_model
def test_empty_histories_have_scores_beside_others(config: SequentialConfig) -> None:
    model = model_of(config)
    scores = model.score(*arguments_of(model, ROWS))
    for row, expected in zip(ROWS, scores, strict=True):
        alone = model.score(*arguments_of(model, [row]))[0]
        torch.testing.assert_close(alone, expected, rtol=1e-9, atol=1e-9)
    assert scores.isfinite().all() and torch.equal(scores[0], scores[2])
    assert model.score(*arguments_of(model, [[], []])).shape == (2, V)
    assert model.score(*arguments_of(model, [])).shape == (0, V)
    if not model.uses_time and model.mixture is None:
        torch.testing.assert_close(scores[0], model.item_weight @ model.start + model.item_bias)


@pytest.mark.parametrize("config", MODELS[:3], ids=lambda config: str(config.time_unit))
def test_an_empty_stream_scores_like_the_batch(config: ModelConfig, tmp_path: Path) -> None:
    model = model_of(config)
    model.save_pretrained(tmp_path)
    for each in (model, load_model(tmp_path)):
        assert isinstance(each, HyenaRec)
        stream = each.stream()
        at = 2000 if each.uses_time else None
        expected = each.score(*arguments_of(each, [[]]))[0]
        torch.testing.assert_close(stream.scores(at), expected, rtol=1e-6, atol=1e-6)
        stream.copy().extend([1, 2], [1, 2] if each.uses_time else None)
        torch.testing.assert_close(stream.scores(at), expected, rtol=1e-6, atol=1e-6)


def test_a_model_without_the_row_says_so() -> None:
    model = make_model(ModelConfig(**SHAPE)).eval()
    assert isinstance(model, HyenaRec) and model.start is None
    with pytest.raises(ValueError, match="got an empty one, for which this model has no row"):
        model.score(torch.tensor([3]), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="got none: its model has no row for an empty history"):
        model.stream().scores()
    saved = SavedModel(model, Vocabulary(np.arange(V)))
    with pytest.raises(ValueError, match="histories must hold at least one item, got none in row 1"):
        saved.recommend_many([[3], [99]])


def test_a_state_has_what_is_fitted_after_training() -> None:
    model, other = model_of(CONFIG), make_model(CONFIG).double().eval()
    other.load_state_dict(model.state_dict())
    arguments = arguments_of(model, ROWS)
    assert torch.equal(other.score(*arguments), model.score(*arguments))


@pytest.mark.parametrize("name", list(COUNT_BASED))
def test_counts_rank_by_popularity(name: str) -> None:
    train_rows = [[3, 1, 3], [2, 3, 1], [3, 5]]
    model = COUNT_BASED[name].of(histories_of(train_rows)).eval()
    best = recommend(model, histories_of([[], [2], []]), k=2, max_len=5)
    assert best.items[0].tolist() == best.items[2].tolist() == [3, 1]


def test_a_run_ends_with_a_row_for_new_users(make_config, events, tmp_path):
    """Every user of the data begins with item 100."""
    lines = [f"{user} {item}\n" for user in range(80) for item in (100, 101, 102 + user % 28, 129)]
    events.write_text("".join(lines))
    result = train(make_config(epochs=2))
    saved = load(tmp_path / "run")
    assert torch.equal(saved.model.start, result.model.start)
    assert saved.recommend([], k=1)[0].item == 100
    assert saved.recommend([7777], k=1) == saved.recommend([], k=1)
    many = saved.recommend_many([[], [101], []], k=3)
    assert many[0] == many[2]
    assert [item for item, _ in many[0]] == [item for item, _ in saved.recommend([], k=3)]


def test_a_run_with_time_tells_new_users_apart_by_the_moment(make_config, timed_events, tmp_path):
    train(make_config(timed=True, epochs=25))
    saved = load(tmp_path / "run")
    hits = sum(
        saved.recommend([], k=1, timestamps=[], at=60 * hour + 30)[0].item == 100 + hour // 2
        for hour in range(24)
    )
    assert hits >= 22


def test_nothing_is_excluded_from_an_empty_history() -> None:
    model = model_of(MODELS[4])
    best = recommend(model, histories_of(ROWS), k=V, max_len=5, exclude_history=True)
    assert (best.items[0] > 0).all() and (best.items[1] > 0).sum() == V - 2


@needs_gpu
@every_model
def test_on_a_gpu(config: SequentialConfig) -> None:
    model = model_of(config)
    arguments = arguments_of(model, ROWS)
    expected = model.score(*arguments).detach()
    fit_start(model.cuda(), histories_of([[1, 2], [3]]))
    start = model.start
    model.start = model_of(config).start.cuda()
    scores = model.score(*(tensor.cuda() for tensor in arguments))
    torch.testing.assert_close(scores.cpu(), expected, rtol=1e-6, atol=1e-6)
    on_cpu = model_of(config)
    fit_start(on_cpu, histories_of([[1, 2], [3]]))
    torch.testing.assert_close(start.cpu(), on_cpu.start, rtol=1e-3, atol=1e-3)
