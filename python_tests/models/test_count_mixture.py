"""What is counted and how it is mixed in, against sums over pairs of events, in batch, stream and file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import needs_gpu
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyenarec.config import GRU4RecConfig, ModelConfig, SASRecConfig, SequentialConfig
from hyenarec.data import Histories, Vocabulary
from hyenarec.data.times import Times
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.mixture import followers as followers_module
from hyenarec.models.mixture.count_mixture import SOURCES
from hyenarec.models.mixture.evidence import Evidence
from hyenarec.models.mixture.fading import FREQUENCY, HALF_LIVES
from hyenarec.models.mixture.followers import FADE, KEPT, LATEST, REACH, Followers, count_followers
from hyenarec.models.mixture.repeats import LAGS, Repeats
from hyenarec.models.mixture.repeats_by_time import OF_DAY, OF_WEEK
from hyenarec.models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from hyenarec.models.registry import load_model, make_model
from hyenarec.models.sequential import SequentialModel
from hyenarec.models.time import AGES

V = 12
COUNTED = {"repeats": True, "own_followers": True, "followers": True}
CONFIG = ModelConfig(num_items=V, dim=8, num_blocks=1, max_len=40, num_coeffs=5, **COUNTED)
HISTORIES = [[3], [1, 2, 1, 1, 5, 2, 1], [4] * 9, [7, 8, 9, 10, 7], list(range(1, 13)) * 3 + [1, 1, 2, 2]]
UNITS = {"repeats": 0.05, "own_followers": 0.2, "followers": 1.0}
TRAIN = [[1, 2, 3, 0, 2], [2], [], [5, 1, 2, 4, 4, 9, 9, 1, 2, 7, 12, 3, 1]]


def histories_of(users: Sequence[Sequence[int]], num_items: int = V) -> Histories:
    return Histories(
        offsets=np.cumsum([0, *map(len, users)]),
        items=np.array([item for user in users for item in user], np.int32),
        timestamps=None,
        user_ids=np.arange(len(users)),
        vocabulary=Vocabulary(np.arange(num_items)),
    )


def packed(histories: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([0, *map(len, histories)]).cumsum(0)
    return torch.tensor([item for history in histories for item in history]), offsets


def model_of(config: SequentialConfig = CONFIG) -> SequentialModel:
    """A model with a mixture whose weights are any."""
    torch.manual_seed(0)
    model = make_model(config).double().eval()
    model.mixture = model.new_mixture()
    assert model.mixture is not None
    model.mixture.count(histories_of(TRAIN))
    model.mixture.scale.fill_(0.7)
    model.mixture.offset.fill_(0.2)
    for weights in model.mixture.each_weights():
        weights.weight.copy_(torch.rand_like(weights.weight) * 30)
        weights.shrinkage.fill_(1.5)
        weights.shift.normal_()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


# --- the oracles: the formulas at the top of each module ---


def followed(first: int, second: int) -> float:
    """C of two items in `TRAIN`."""
    return sum(
        FADE ** (lag - 1)
        for user in TRAIN
        for place in range(len(user))
        for lag in range(1, REACH + 1)
        if place + lag < len(user) and (user[place], user[place + lag]) == (first, second)
    )


def moments_of(history: Sequence[int]) -> tuple[list[int], int]:
    """Some moments in seconds for the events of a history, the first before 1970, and for its question."""
    steps = [0 if item == 2 else 3000 * item + 11_000 * place**2 for place, item in enumerate(history)]
    moments = (np.cumsum(steps) - 400_000).tolist()
    return moments, moments[-1] + 5000 * (len(history) - 1)


def expected_evidence(name: str, history: Sequence[int]) -> Tensor:
    """E of every kind and item, `[K, V]`."""
    last, length = history[-1], len(history)
    amounts = torch.zeros(SOURCES[name].kinds, V, dtype=torch.float64)
    if name == "repeats_by_time":
        moments, asked = moments_of(history)
        for place, (item, moment) in enumerate(zip(history, moments, strict=True)):
            hours = abs(asked // 3600 - moment // 3600)
            of_day = min(hours % 24, 24 - hours % 24)
            of_week = min(hours % 168, 168 - hours % 168)
            weight = 0.5 ** ((length - 1 - place) / FREQUENCY)
            amounts[max(b for b, first in enumerate(OF_DAY) if first <= of_day), item - 1] += weight
            bin_ = max(b for b, first in enumerate(OF_WEEK) if first <= of_week)
            amounts[len(OF_DAY) + bin_, item - 1] += weight
        for item in set(history):
            places = [place for place, other in enumerate(history) if other == item]
            bin_ = max(b for b, first in enumerate(AGES) if first <= asked - moments[places[-1]])
            frequency = sum(0.5 ** ((places[-1] - place) / FREQUENCY) for place in places)
            amounts[len(OF_DAY) + len(OF_WEEK) + bin_, item - 1] = frequency
        return amounts
    if name == "followers":
        for kind in range(min(LATEST, length)):
            for item in range(1, V + 1):
                amounts[kind, item - 1] = followed(history[length - 1 - kind], item)
        return amounts
    if name == "repeats":
        for item in set(history):
            places = [place for place, other in enumerate(history) if other == item]
            lag = length - 1 - places[-1]
            bin_ = max(number for number, first in enumerate(LAGS) if first <= lag)
            frequency = sum(0.5 ** ((places[-1] - place) / FREQUENCY) for place in places)
            amounts[len(HALF_LIVES) + bin_, item - 1] = frequency
    for kind, half_life in enumerate(HALF_LIVES):
        for place, item in enumerate(history):
            weight = 0.5 ** ((length - 1 - place) / half_life)
            if name == "repeats":
                amounts[kind, item - 1] += weight
            elif item == last and place < length - 1:
                amounts[kind, history[place + 1] - 1] += weight
    return amounts


def dense(evidence: Evidence) -> Tensor:
    rows, kinds, num_items = evidence.shape
    place = (evidence.row, evidence.kind, evidence.item - 1)
    return torch.zeros(rows, kinds, num_items, dtype=torch.float64).index_put(place, evidence.amount, True)


@pytest.mark.parametrize("name", list(SOURCES))
def test_evidence_is_the_formula_in_batch_and_stream(name: str) -> None:
    source = SOURCES[name](V)
    source.count(histories_of(TRAIN))
    moments = [moments_of(history) for history in HISTORIES]
    of_events = torch.tensor([moment for row, _ in moments for moment in row])
    evidence = source.evidence(
        *packed(HISTORIES), Times(of_events, torch.tensor([asked for _, asked in moments]))
    )
    assert (evidence.amount > 0).all()
    expected = torch.stack([expected_evidence(name, history) for history in HISTORIES])
    torch.testing.assert_close(dense(evidence), expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(evidence.totals(), expected.sum(2), rtol=1e-6, atol=1e-12)
    each = evidence.key * source.kinds + evidence.kind
    assert len(each.unique()) == len(each)
    for row, history in enumerate(HISTORIES):
        memory = source.memory(torch.device("cpu"))
        moments, asked = moments_of(history)
        for item, moment in zip(history[:-1], moments, strict=False):
            memory.append(item, moment)
        other = memory.copy()
        other.append(history[-1], moments[-1])
        torch.testing.assert_close(dense(other.evidence(asked))[0], expected[row], rtol=1e-6, atol=1e-12)
        if len(history) > 1:  # the copy changed nothing
            before = expected_evidence(name, history[:-1])
            _, asked = moments_of(history[:-1])
            torch.testing.assert_close(dense(memory.evidence(asked))[0], before, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, repeats=False),
        SASRecConfig(num_items=V, dim=8, max_len=40, **COUNTED),
        GRU4RecConfig(num_items=V, dim=8, max_len=40, **COUNTED),
    ],
    ids=lambda config: config.name,
)
def test_scores_are_the_mixture(config: SequentialConfig) -> None:
    model = model_of(config)
    mixture = model.mixture
    items, offsets = packed(HISTORIES)
    scores, hidden = model.score(items, offsets), model(items, offsets)[offsets[1:] - 1]
    plain = 0.7 * (hidden @ model.item_weight.t() + model.item_bias) - 0.2
    for row, history in enumerate(HISTORIES):
        shifted, counts = plain[row], torch.zeros(V, dtype=torch.float64)
        own = torch.zeros(V, dtype=torch.int64)
        if "repeats" in mixture.sources:
            own[torch.tensor(history) - 1] = 1
        for name, weights in mixture.weights.items():
            amounts = expected_evidence(name, history)
            features = torch.log1p(amounts / UNITS[name])
            if name == "repeats":  # the kinds after the half-lives are bins
                features[len(HALF_LIVES) :] = (amounts[len(HALF_LIVES) :] > 0).double()
            shifted = shifted + (weights.shift[own].double() * features.t()).sum(1)
            counts += weights.weight.double() @ (amounts / (weights.shrinkage + amounts.sum(1, keepdim=True)))
        expected = torch.log(shifted.exp() + counts)
        torch.testing.assert_close(scores[row], expected, rtol=1e-6, atol=1e-6)
    state = model.encode(items, offsets)
    for first, last in ((0, 5), (5, 6), (6, V)):
        tile = model.score_tile(state, first, last)
        torch.testing.assert_close(tile, scores[:, first:last], rtol=1e-12, atol=1e-12)
        assert torch.equal(model.score_tile(state, first, last), tile)


def test_a_mixture_changes_nothing_before_it_is_fitted() -> None:
    model = make_model(CONFIG).eval()
    assert model.mixture is None
    items, offsets = packed(HISTORIES)
    before = model.score(items, offsets)
    model.mixture = model.new_mixture()
    assert torch.equal(model.score(items, offsets), before)
    assert make_model(dataclasses.replace(CONFIG, **dict.fromkeys(COUNTED, False))).new_mixture() is None


def test_scores_are_differentiable() -> None:
    model = model_of()
    items, offsets = packed(HISTORIES[:2])

    def total(bias: Tensor, rows: Tensor) -> Tensor:
        weights = {"item_bias": bias, "items.weight": rows}
        return torch.func.functional_call(
            _Scores(model), {f"model.{n}": w for n, w in weights.items()}, (items, offsets)
        )

    inputs = [x.detach().clone().requires_grad_() for x in (model.item_bias, model.items.weight)]
    assert torch.autograd.gradcheck(total, inputs)


class _Scores(torch.nn.Module):
    def __init__(self, model: SequentialModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, offsets: Tensor) -> Tensor:
        return self.model.score(items, offsets).logsumexp(1)


def test_the_stream_scores_like_the_batch() -> None:
    model = model_of()
    assert isinstance(model, HyenaRec)
    empty = model.stream()
    for history in HISTORIES:
        stream = empty.copy()
        for length, item in enumerate(history, 1):
            stream.append(item)
            items, offsets = packed([history[:length]])
            torch.testing.assert_close(stream.scores(), model.score(items, offsets)[0], rtol=1e-6, atol=1e-6)
        half = empty.copy()
        half.extend(history[: len(history) // 2])
        other = half.copy()
        other.extend(history[len(history) // 2 :])
        torch.testing.assert_close(other.scores(), stream.scores(), rtol=1e-9, atol=1e-9)
        assert len(half) == len(history) // 2


@needs_gpu
def test_on_a_gpu() -> None:
    model = model_of()
    assert isinstance(model, HyenaRec)
    items, offsets = packed(HISTORIES)
    expected = model.score(items, offsets).detach()
    model = model.cuda()
    torch.testing.assert_close(
        model.score(items.cuda(), offsets.cuda()).cpu(), expected, rtol=1e-6, atol=1e-6
    )
    for history, scores in zip(HISTORIES, expected, strict=True):
        stream = model.stream()
        stream.extend(history)
        torch.testing.assert_close(stream.scores().cpu(), scores, rtol=1e-6, atol=1e-6)


def test_memory_of_a_stream_grows_with_distinct_steps_only() -> None:
    stream = model_of().stream()
    stream.extend([1, 2, 3, 1])
    before = stream.nbytes
    stream.extend([2, 3, 1] * 10)
    assert stream.nbytes == before


def test_a_saved_model_without_counts_loads_without(tmp_path: Path) -> None:
    make_model(CONFIG).save_pretrained(tmp_path)
    assert load_model(tmp_path).mixture is None


def test_a_saved_model_has_its_counts(tmp_path: Path) -> None:
    model = model_of().float()
    model.save_pretrained(tmp_path)
    items, offsets = packed(HISTORIES)
    assert torch.equal(load_model(tmp_path).score(items, offsets), model.score(items, offsets))


@pytest.mark.parametrize("version", [3, 4, 5])
def test_counts_of_earlier_formats_are_left_out_with_a_warning(version: int, tmp_path: Path) -> None:
    model = model_of().float()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    for name in COUNTED:  # the shape of the others doesn't matter
        tensors[f"mixture.weights.{name}.strength"] = torch.zeros(8)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"format": version}))
    items, offsets = packed(HISTORIES)
    with pytest.warns(UserWarning, match="counts of a model saved by an earlier version are left out"):
        loaded = load_model(tmp_path)
    model.mixture = None
    assert torch.equal(loaded.score(items, offsets), model.score(items, offsets))


def test_what_occurred_long_ago_stays_finite() -> None:
    items = torch.tensor([1, *[2] * 200_000])
    evidence = Repeats(V).evidence(items, torch.tensor([0, len(items)]))
    assert evidence.amount.isfinite().all()


# --- counting followers ---


@pytest.mark.parametrize("pairs_at_once", [1, 40, 1 << 24])
def test_followers_are_counted_in_blocks_of_any_size(
    pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers_module, "PAIRS_AT_ONCE", pairs_at_once)
    follower, counts = count_followers(histories_of(TRAIN))
    for first in range(V + 1):
        expected = {item: followed(first, item) if first else 0 for item in range(1, V + 1)}
        order = sorted((item for item in expected if expected[item] > 0), key=lambda i: (-expected[i], i))
        assert follower[first, : len(order)].tolist() == order
        assert counts[first].tolist() == pytest.approx(
            [expected[item] for item in order] + [0] * (KEPT - len(order))
        )
        assert not follower[first, len(order) :].any()


def test_only_the_most_frequent_followers_are_kept() -> None:
    users = [[1, item] for item in range(2, KEPT + 10)] + [[1, KEPT + 9], [1, 5]]
    source = Followers(KEPT + 10)
    source.count(histories_of(users, KEPT + 10))
    assert source.follower[1].tolist() == [5, KEPT + 9, *(i for i in range(2, KEPT + 1) if i != 5)]
    assert math.isclose(source.counts[1].sum(), KEPT + 2)
