"""The bias by lag against loops over the events, in scores, loss, stream and file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from devices import needs_gpu
from torch import Tensor, nn

from hyenarec.config import GRU4RecConfig, LossConfig, ModelConfig, SASRecConfig, SequentialConfig
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.lag_bias import LAGS, of_events, of_histories
from hyenarec.models.registry import load_model, make_model
from hyenarec.models.sequential import SequentialModel
from hyenarec.train.loss import NextItemLoss

V = 12
CONFIG = ModelConfig(num_items=V, dim=8, num_blocks=1, max_len=60, num_coeffs=5, lag_bias=True, dropout=0.0)
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


def expected_columns(history: Sequence[int]) -> list[int]:
    columns: list[int] = []
    for item in reversed(history[-LAGS:]):
        columns.append(-1 if item - 1 in columns else item - 1)
    return columns + [-1] * (LAGS - len(columns))


def test_the_latest_items_are_there_once_each() -> None:
    items, offsets = packed()
    expected = [expected_columns(history[:n]) for history in HISTORIES for n in range(1, len(history) + 1)]
    assert of_events(items, offsets).tolist() == expected
    assert of_histories(items, offsets).tolist() == [expected_columns(history) for history in HISTORIES]
    nothing = of_histories(items[:0], torch.zeros(3, dtype=torch.int64))
    assert nothing.shape == (2, LAGS)
    assert nothing.eq(-1).all()


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        SASRecConfig(num_items=V, dim=8, max_len=60, lag_bias=True),
        GRU4RecConfig(num_items=V, dim=8, max_len=60, lag_bias=True),
    ],
    ids=lambda config: config.name,
)
def test_scores_have_the_bias(config: SequentialConfig) -> None:
    model, (items, offsets) = model_of(config), packed()
    scores, bias = model.score(items, offsets), model.lag_bias.bias.tolist()
    hidden = model(items, offsets)
    for row, history in enumerate(HISTORIES):
        last = hidden[offsets[row + 1] - 1] if history else model.start
        expected = (last @ model.item_weight.t() + model.item_bias).tolist()
        for lag, column in enumerate(expected_columns(history)):
            if column >= 0:
                expected[column] += bias[lag]
        assert scores[row].tolist() == pytest.approx(expected)
    state = model.encode(items, offsets)
    for first, last in ((0, 5), (5, 6), (6, V)):
        tile = model.score_tile(state, first, last)
        torch.testing.assert_close(tile, scores[:, first:last], rtol=1e-12, atol=1e-12)
        assert torch.equal(model.score_tile(state, first, last), tile)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("repeat_head", [False, True])
def test_the_loss_is_that_of_the_scores_with_all_gradients(repeat_head: bool, label_smoothing: float) -> None:
    if repeat_head and label_smoothing > 0:
        pytest.skip("a repeat head has no label smoothing")
    model = model_of(dataclasses.replace(CONFIG, repeat_head=repeat_head))
    items, offsets = packed()
    targets = torch.cat([items[1:], items[:1]])
    targets[offsets[1:] - 1] = torch.tensor([3, 6, 6, 4, 0, 12])  # 0: none
    loss = NextItemLoss(model, LossConfig(name="softmax", label_smoothing=label_smoothing))
    value, parameters = loss(items, offsets, targets), list(model.parameters())
    gradients = torch.autograd.grad(value, parameters)

    beginnings = [history[:n] for history in HISTORIES for n in range(1, len(history) + 1)]
    every_event, ends = packed(beginnings)
    scores = model.score(every_event, ends)
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


def test_the_stream_scores_like_the_batch(tmp_path: Path) -> None:
    model = model_of()
    assert isinstance(model, HyenaRec)
    empty = model.stream()
    for history in HISTORIES:
        stream = empty.copy()
        for length in range(len(history) + 1):
            if length > 0:
                stream.append(history[length - 1])
            expected = model.score(*packed([history[:length]]))[0]
            torch.testing.assert_close(stream.scores(), expected, rtol=1e-9, atol=1e-9)
        whole = empty.copy()
        whole.extend(history)
        torch.testing.assert_close(whole.scores(), stream.scores(), rtol=1e-9, atol=1e-9)
    long = empty.copy()
    long.extend([1, 2] * LAGS)
    before = long.nbytes
    long.extend([3] * 10)
    assert long.nbytes == before
    model.float().save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path).score(*packed()), model.score(*packed()))


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
    assert "lag_bias.bias" not in make_model(off).state_dict()
    assert "lag_bias.bias" not in make_model(dataclasses.replace(CONFIG, lag_bias="auto")).state_dict()
