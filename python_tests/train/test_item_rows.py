"""A model over the rows of a step is the model over the whole table, for those items."""

from __future__ import annotations

import pytest
import torch
from largest_tensor import LargestTensor

from hyenarec.config import MODEL_CONFIGS, LossConfig, OptimizerConfig
from hyenarec.models.registry import LEARNED, make_model
from hyenarec.models.sequential import SequentialModel
from hyenarec.train.item_rows import ItemRows
from hyenarec.train.loss import NextItemLoss, Sample
from hyenarec.train.optimizer import make_optimizer


def fresh(name: str = "hyenarec", num_items: int = 40) -> SequentialModel:
    torch.manual_seed(0)
    model = make_model(MODEL_CONFIGS[name](num_items=num_items, dim=8, max_len=6, dropout=0.0))
    torch.nn.init.normal_(model.items.weight[1:])
    torch.nn.init.normal_(model.item_bias)
    return model


ITEMS = torch.tensor([7, 30, 7, 2, 9])
OFFSETS = torch.tensor([0, 3, 5])
TARGETS = torch.tensor([30, 7, 39, 9, 0])
NEGATIVES = torch.tensor([2, 5, 39, 40, 5, 30])


def sample_of(model: SequentialModel, negatives: torch.Tensor = NEGATIVES) -> Sample:
    ids = torch.cat([ITEMS, TARGETS, negatives.flatten()]).unique()
    return Sample(ItemRows(model, ids[ids > 0]), negatives)


def test_rows_are_renumbered():
    model = fresh()
    rows = ItemRows(model, torch.tensor([2, 7, 40]))
    assert rows.renumber(torch.tensor([[40, 0], [2, 7]])).tolist() == [[3, 0], [1, 2]]
    assert torch.equal(rows.weight, model.items.weight[[0, 2, 7, 40]])
    assert torch.equal(rows.bias, model.item_bias[[1, 6, 39]])


LOSSES = [LossConfig("sampled_softmax", 6), LossConfig("gbce", 6), LossConfig("bce", 2)]
NEGATIVES_OF = {
    "sampled_softmax": NEGATIVES,
    "gbce": NEGATIVES,
    "bce": torch.tensor([[2, 30], [39, 40], [39, 39], [5, 9], [3, 3]]),
}


@pytest.mark.parametrize("config", LOSSES, ids=lambda config: config.name)
@pytest.mark.parametrize("name", LEARNED)
def test_loss_and_gradients_are_those_of_the_whole_table(name, config):
    negatives = NEGATIVES_OF[config.name]
    small, whole = fresh(name), fresh(name)
    sample = sample_of(small, negatives)
    loss = NextItemLoss(small, config)(ITEMS, OFFSETS, TARGETS, sample)
    loss.backward()
    assert small.items.weight.grad is None
    sample.rows.give_gradients(small)

    everything = Sample(ItemRows(whole, torch.arange(1, 41)), negatives)
    expected = NextItemLoss(whole, config)(ITEMS, OFFSETS, TARGETS, everything)
    expected.backward()
    everything.rows.give_gradients(whole)
    torch.testing.assert_close(loss, expected)
    for (place, parameter), other in zip(small.named_parameters(), whole.parameters(), strict=True):
        gradients = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in (parameter, other)]
        torch.testing.assert_close(*gradients, msg=place)
    assert small.items.weight.grad.indices()[0].tolist() == sample.rows.ids[1:].tolist()
    assert small.items.weight.grad.values().data_ptr() == sample.rows.weight.grad[1:].data_ptr()


def plain_losses(config: LossConfig, model: SequentialModel, negatives: torch.Tensor) -> torch.Tensor:
    """One event after the other, all of the catalogue's scores for each."""
    scores = model(ITEMS, OFFSETS) @ model.item_weight.T + model.item_bias
    losses = []
    for event, target in enumerate(TARGETS.tolist()):
        if target == 0:
            continue
        drawn = negatives[event].tolist() if negatives.dim() == 2 else negatives.tolist()
        others = scores[event, [item - 1 for item in drawn if item != target]]
        own = scores[event, target - 1]
        if config.name == "sampled_softmax":
            losses.append(torch.logsumexp(torch.cat([own[None], others]), 0) - own)
            continue
        share, scale = (1.0, 1) if config.name == "bce" else (1 - 0.75 * (1 - 6 / 39), 7)
        losses.append((-share * own.sigmoid().log() - (1 - others.sigmoid()).log().sum()) / scale)
    return torch.stack(losses).sum()


@pytest.mark.parametrize("config", LOSSES, ids=lambda config: config.name)
def test_losses_equal_plain_ones_and_no_target_is_a_negative(config):
    model = fresh()
    negatives = NEGATIVES_OF[config.name]
    loss = NextItemLoss(model, config)(ITEMS, OFFSETS, TARGETS, sample_of(model, negatives))
    torch.testing.assert_close(loss, plain_losses(config, model, negatives))


def test_logq_and_smoothing_reach_the_softmax():
    model = fresh()
    plain = sample_of(model)
    log_q = torch.linspace(-3, -1, len(plain.rows.bias))
    corrected = Sample(plain.rows, plain.negatives, log_q)
    moved = fresh()
    with torch.no_grad():
        moved.item_bias[plain.rows.ids[1:] - 1] -= log_q
    config = LossConfig("sampled_softmax", label_smoothing=0.1)
    loss = NextItemLoss(model, config)(ITEMS, OFFSETS, TARGETS, corrected)
    torch.testing.assert_close(loss, NextItemLoss(moved, config)(ITEMS, OFFSETS, TARGETS, sample_of(moved)))
    sharp = NextItemLoss(model, LossConfig("sampled_softmax"))(ITEMS, OFFSETS, TARGETS, corrected)
    assert (loss - sharp).abs() > 1e-3


@pytest.mark.parametrize("name", ["softmax", "gbce"])
def test_a_sample_is_given_exactly_where_it_is_needed(name):
    model = fresh()
    sample = sample_of(model) if name == "softmax" else None
    with pytest.raises(
        ValueError, match=r"sample must be given for every loss but softmax, got \w+ for " + name
    ):
        NextItemLoss(model, LossConfig(name))(ITEMS, OFFSETS, TARGETS, sample)


@pytest.mark.parametrize("name", LEARNED)
def test_nothing_in_a_step_is_as_large_as_the_catalogue(name):
    model = fresh(name, num_items=50_000)
    loss_of = NextItemLoss(model, LossConfig("sampled_softmax"))
    optimizer = make_optimizer(model, OptimizerConfig())

    def step() -> None:
        sample = sample_of(model)
        loss_of(ITEMS, OFFSETS, TARGETS, sample).backward()
        sample.rows.give_gradients(model)
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the moments
    before = model.items.weight.detach().clone()
    with LargestTensor() as largest:
        step()
    assert 0 < largest.nbytes < 4 * 50_000
    used = sample_of(model).rows.ids[1:]
    changed = (model.items.weight != before).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == used.tolist()
