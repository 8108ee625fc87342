"""The bias by lag against loops over the events, in scores, loss, stream and file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import needs_gpu
from torch import Tensor, nn

from hyenarec.config import GRU4RecConfig, LossConfig, ModelConfig, SASRecConfig, SequentialConfig
from hyenarec.data.times import Times
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.lag_bias import LAGS, latest_of_events, latest_of_histories
from hyenarec.models.registry import load_model, make_model
from hyenarec.models.sequential import SequentialModel
from hyenarec.models.time import AGES
from hyenarec.train.loss import NextItemLoss

V = 12
CONFIG = ModelConfig(num_items=V, dim=8, num_blocks=1, max_len=60, num_coeffs=5, lag_bias=True, dropout=0.0)
TIMED = dataclasses.replace(CONFIG, time_unit="minute")
HISTORIES = [[3], [1, 2, 1, 1, 5, 2, 1], [], [4] * 20, [7, 8, 9, 10, 7], [*range(1, 13)] * 3 + [1, 1, 2, 2]]


def packed(histories: Sequence[Sequence[int]] = HISTORIES) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([0, *map(len, histories)]).cumsum(0)
    return torch.tensor([item for history in histories for item in history], dtype=torch.int64), offsets


def model_of(config: SequentialConfig = CONFIG) -> SequentialModel:
    torch.manual_seed(0)
    model = make_model(config).double().eval()
    model.start = torch.randn(config.dim, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def moments_of(history: Sequence[int]) -> tuple[list[int], int]:
    """When events of a history happened, in minutes, and when it is asked for."""
    minutes = [place**3 - 50 for place in range(len(history))]
    return minutes, (minutes[-1] if minutes else 0) + len(history) % 4


def times_of(histories: Sequence[Sequence[int]] = HISTORIES) -> tuple[Tensor, Tensor]:
    """The moments of packed histories: of all events, and of a question after each history."""
    moments = [moments_of(history) for history in histories]
    minutes = torch.tensor([minute for row, _ in moments for minute in row], dtype=torch.int64)
    return minutes, torch.tensor([asked for _, asked in moments])


def expected_bias(model: SequentialModel, history: Sequence[int]) -> list[float]:
    """What is added at each of `expected_columns`."""
    bias = model.lag_bias.by_lag.tolist()
    if model.uses_time:
        minutes, asked = moments_of(history)
        for lag, minute in enumerate(minutes[: -LAGS - 1 : -1]):
            age = max(bin_ for bin_, first in enumerate(AGES) if first <= 60 * (asked - minute))
            bias[lag] += model.lag_bias.by_age[age].item()
    return bias


def expected_columns(history: Sequence[int]) -> list[int]:
    columns: list[int] = []
    for item in reversed(history[-LAGS:]):
        columns.append(-1 if item - 1 in columns else item - 1)
    return columns + [-1] * (LAGS - len(columns))


def test_the_latest_items_are_there_once_each() -> None:
    items, offsets = packed()
    expected = [expected_columns(history[:n]) for history in HISTORIES for n in range(1, len(history) + 1)]
    assert latest_of_events(items, offsets).columns.tolist() == expected
    assert latest_of_histories(items, offsets).columns.tolist() == [*map(expected_columns, HISTORIES)]
    nothing = latest_of_histories(items[:0], torch.zeros(3, dtype=torch.int64)).columns
    assert nothing.shape == (2, LAGS)
    assert nothing.eq(-1).all()


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        SASRecConfig(num_items=V, dim=8, max_len=60, lag_bias=True),
        GRU4RecConfig(num_items=V, dim=8, max_len=60, lag_bias=True),
        TIMED,
    ],
    ids=lambda config: f"{config.name} {config.time_unit}",
)
def test_scores_have_the_bias(config: SequentialConfig) -> None:
    model, (items, offsets) = model_of(config), packed()
    times = times_of() if model.uses_time else ()
    scores = model.score(items, offsets, *times)
    state = model.encode(items, offsets, *([Times(*times)] if times else []))
    for row, history in enumerate(HISTORIES):
        expected = (state.hidden[row] @ model.item_weight.t() + model.item_bias).tolist()
        for column, bias in zip(expected_columns(history), expected_bias(model, history), strict=True):
            if column >= 0:
                expected[column] += bias
        assert scores[row].tolist() == pytest.approx(expected)
    for first, last in ((0, 5), (5, 6), (6, V)):
        tile = model.score_tile(state, first, last)
        torch.testing.assert_close(tile, scores[:, first:last], rtol=1e-12, atol=1e-12)
        assert torch.equal(model.score_tile(state, first, last), tile)


@pytest.mark.parametrize(
    ("changes", "label_smoothing"),
    [({}, 0.0), ({}, 0.2), ({"repeat_head": True}, 0.0), ({"time_unit": "minute"}, 0.0)],
    ids=str,
)
def test_the_loss_is_that_of_the_scores_with_all_gradients(
    changes: dict[str, Any], label_smoothing: float
) -> None:
    model = model_of(dataclasses.replace(CONFIG, **changes))
    items, offsets = packed()
    beginnings = [history[:n] for history in HISTORIES for n in range(1, len(history) + 1)]
    every_event, ends = packed(beginnings)
    targets = torch.cat([items[1:], items[:1]])
    targets[offsets[1:] - 1] = torch.tensor([3, 6, 6, 4, 0, 12])  # 0: none
    loss = NextItemLoss(model, LossConfig(name="softmax", label_smoothing=label_smoothing))
    times = Times(times_of()[0], times_of(beginnings)[1]) if model.uses_time else None
    value, parameters = loss(items, offsets, targets, None, times), list(model.parameters())
    gradients = torch.autograd.grad(value, parameters)

    scores = model.score(every_event, ends, *(times_of(beginnings) if model.uses_time else ()))
    expected = nn.functional.cross_entropy(
        scores, targets - 1, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
    )
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-7, atol=1e-9)


def test_padded_batches_have_the_same_loss() -> None:
    loss = NextItemLoss(model_of())
    histories = [history for history in HISTORIES if history]
    items, offsets = packed(histories)
    targets = items.roll(-1)
    rows = [nn.utils.rnn.pad_sequence(list(x.tensor_split(offsets[1:-1])), True) for x in (items, targets)]
    torch.testing.assert_close(loss(rows[0], None, rows[1]), loss(items, offsets, targets))


@pytest.mark.parametrize("config", [CONFIG, TIMED], ids=["untimed", "timed"])
def test_the_stream_scores_like_the_batch(config: SequentialConfig, tmp_path: Path) -> None:
    model = model_of(config)
    assert isinstance(model, HyenaRec)
    empty = model.stream()
    for history in HISTORIES:
        stream = empty.copy()
        minutes, _ = moments_of(history)
        for length in range(len(history) + 1):
            timed = model.uses_time
            if length > 0:
                stream.append(history[length - 1], minutes[length - 1] if timed else None)
            _, asked = moments_of(history[:length])
            batch = packed([history[:length]])
            expected = model.score(*batch, *(times_of([history[:length]]) if timed else ()))[0]
            scores = stream.scores(asked if timed else None)
            torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
        whole = empty.copy()
        whole.extend(history, minutes if timed else None)
        torch.testing.assert_close(whole.scores(asked if timed else None), scores, rtol=1e-9, atol=1e-9)
    model.float().save_pretrained(tmp_path)
    arguments = (*packed(), *(times_of() if timed else ()))
    assert torch.equal(load_model(tmp_path).score(*arguments), model.score(*arguments))


def test_a_stream_keeps_only_the_latest_items() -> None:
    stream = model_of().stream()
    stream.extend([1, 2] * LAGS)
    before = stream.nbytes
    stream.extend([3] * 10)
    assert stream.nbytes == before
    assert len(stream._items) == LAGS


@needs_gpu
def test_on_a_gpu() -> None:
    model = model_of()
    items, offsets = packed()
    expected = model.score(items, offsets).detach()
    scores = model.cuda().score(items.cuda(), offsets.cuda())
    torch.testing.assert_close(scores.cpu(), expected, rtol=1e-9, atol=1e-9)


def test_only_the_full_softmax_has_it() -> None:
    with pytest.raises(
        ValueError, match=r"model\.lag_bias must be false unless the loss is the softmax, got true"
    ):
        NextItemLoss(model_of(), LossConfig(name="bce"))
    off = dataclasses.replace(CONFIG, lag_bias=False)
    assert "lag_bias.by_lag" not in make_model(off).state_dict()
    assert "lag_bias.by_lag" not in make_model(dataclasses.replace(CONFIG, lag_bias="auto")).state_dict()
