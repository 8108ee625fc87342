"""Training on the items after the next one: the loss against one cross-entropy for each of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICES

from hyenarec.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig
from hyenarec.models.registry import make_model
from hyenarec.train import train
from hyenarec.train.lookahead import FADING, targets_ahead
from hyenarec.train.loss import NextItemLoss

V = 23
CONFIG = ModelConfig(num_items=V, dim=8, num_blocks=1, max_len=16, dropout=0.0)


def brute_force(scores, targets, lengths, lookahead, smoothing):
    """Σ over the events of the weighted mean of the cross-entropies of the items to come."""
    total, first = scores.new_zeros(()), 0
    for length in lengths:
        for event in range(first, first + length):
            if targets[event] == 0:
                continue
            ahead = [k for k in range(lookahead) if event + k < first + length and targets[event + k] > 0]
            weights = [FADING**k for k in ahead]
            for k, weight in zip(ahead, weights, strict=True):
                each = F.cross_entropy(scores[event], targets[event + k] - 1, label_smoothing=smoothing)
                total = total + weight / sum(weights) * each
        first += length
    return total


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("lookahead", "smoothing"), [(1, 0.0), (2, 0.0), (3, 0.2), (20, 0.0)])
@pytest.mark.parametrize("packed", [True, False])
def test_the_loss_is_a_mean_over_the_items_to_come(packed, lookahead, smoothing, device):
    torch.manual_seed(0)
    model = make_model(CONFIG).double().to(device)
    config = LossConfig(name="softmax", lookahead=lookahead, label_smoothing=smoothing)
    loss = NextItemLoss(model, config)
    lengths = [7, 1, 2, 12, 3] if packed else [6, 6, 6, 6]
    items, targets = (torch.randint(1, V + 1, (sum(lengths),), device=device) for _ in range(2))
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device=device)
    if packed:
        value, hidden = loss(items, offsets, targets), model(items, offsets)
    else:
        targets[[3, 4, 5, 11, 13]] = 0  # padding at the end, and one event without a target within
        items, targets = items.view(4, 6), targets.view(4, 6)
        value, hidden = loss(items, None, targets), model(items).flatten(0, 1)
    scores = F.linear(hidden, model.item_weight, model.item_bias)
    expected = brute_force(scores, targets.flatten(), lengths, lookahead, smoothing)
    torch.testing.assert_close(value, expected)
    parameters = list(model.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_weights_fade_and_sum_up_to_one():
    items, weights = targets_ahead(torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 4, 5]), 3)
    assert items.tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 0], [4, 0, 0], [5, 0, 0]]
    expected = [[4 / 7, 2 / 7, 1 / 7], [4 / 7, 2 / 7, 1 / 7], [2 / 3, 1 / 3, 0], [1, 0, 0], [1, 0, 0]]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_events_without_any_are_none():
    items, weights = targets_ahead(torch.zeros(0, dtype=torch.int64), torch.tensor([0]), 3)
    assert items.shape == weights.shape == (0, 3)


def test_autocast_changes_little():
    torch.manual_seed(0)
    loss = NextItemLoss(make_model(CONFIG), LossConfig(name="softmax", lookahead=3))
    items, targets = torch.randint(1, V + 1, (2, 40))
    offsets = torch.tensor([0, 15, 30, 40])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(items, offsets, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(items, offsets, targets), rtol=1e-2, atol=0)


@pytest.mark.parametrize("setting", ["lag_bias", "repeat_head"])
def test_what_tells_the_next_item_from_later_ones_is_refused(setting):
    model = make_model(dataclasses.replace(CONFIG, **{setting: True}))
    message = r"loss\.lookahead must be 1 with model\.lag_bias or model\.repeat_head, .* got 3"
    with pytest.raises(ValueError, match=message):
        NextItemLoss(model, LossConfig(name="softmax", lookahead=3))


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_are_the_same_every_time(threads):
    torch.manual_seed(0)
    model = make_model(CONFIG)
    loss = NextItemLoss(model, LossConfig(name="softmax", lookahead=3))
    items, targets = torch.randint(1, V + 1, (2, 16 * 1000))  # so many that several threads share the work
    offsets = torch.arange(0, 16 * 1000 + 1, 16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (
            torch.autograd.grad(loss(items, offsets, targets), list(model.parameters())) for _ in range(2)
        )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))


def test_a_run_goes_on_with_it_whatever_is_counted_afterwards(make_config, events):
    data = DataConfig(path=str(events), exclude_history=True)
    config = make_config(epochs=1, recipe="data", data=data, optimizer=OptimizerConfig())
    train(config)
    model = dataclasses.replace(config.model, followers=False)
    resumed = train(dataclasses.replace(config, epochs=2, model=model, resume=True))
    assert resumed.config.loss.lookahead == 3
    assert len(resumed.log) == 2


def test_a_run_chooses_it_for_sparse_data_and_says_so(make_config, events, capsys):
    config = make_config(epochs=1, recipe="data", data=DataConfig(path=str(events), exclude_history=True))
    result = train(config)
    assert "loss.lookahead           3 " in capsys.readouterr().out
    assert result.config.loss.lookahead == 3
