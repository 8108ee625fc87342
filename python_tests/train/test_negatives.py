"""Draws: the same for the same step, as often as their distribution says, and shared by the processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hyenarec.config import LossConfig
from hyenarec.data import Histories, Vocabulary
from hyenarec.train.negatives import Negatives

TRAIN = Histories(
    offsets=np.array([0, 4, 10]),
    items=np.array([1, 1, 1, 1, 2, 2, 2, 4, 4, 4], dtype=np.int32),
    timestamps=None,
    user_ids=np.arange(2),
    vocabulary=Vocabulary(np.arange(5)),
)


def negatives_of(name: str = "sampled_softmax", rank: int = 0, world_size: int = 1, **settings) -> Negatives:
    return Negatives(TRAIN, LossConfig(name=name, **settings), seed=3, rank=rank, world_size=world_size)


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_a_draw_follows_from_seed_epoch_and_step(distribution):
    settings = {"negatives": 30, "distribution": distribution}
    first, again = negatives_of(**settings), negatives_of(**settings)
    again.draw(0, 0, 8)  # nothing depends on what was drawn before
    draws = [first.draw(epoch, step, 8) for epoch in range(3) for step in range(3)]
    assert torch.equal(again.draw(1, 2, 99), draws[5])
    assert len({tuple(draw.tolist()) for draw in draws}) == 9
    other = Negatives(TRAIN, LossConfig(name="sampled_softmax", **settings), seed=4)
    assert not torch.equal(other.draw(0, 0, 8), draws[0])


@pytest.mark.parametrize(
    ("distribution", "shares"), [("uniform", [0.2] * 5), ("popularity", [0.4, 0.3, 0, 0.3, 0])]
)
def test_items_are_drawn_as_often_as_they_should_be(distribution, shares):
    drawn = negatives_of(negatives=100_000, distribution=distribution).draw(0, 0, 8)
    assert drawn.dtype == torch.int64 and drawn.shape == (100_000,)
    counts = torch.bincount(drawn, minlength=6) / len(drawn)
    assert counts.tolist() == pytest.approx([0, *shares], abs=0.01)


@pytest.mark.parametrize(
    ("name", "distribution"), [("sampled_softmax", "popularity"), ("bce", "uniform"), ("gbce", "uniform")]
)
def test_each_loss_has_a_distribution_of_its_own(name, distribution):
    expected = negatives_of(name, distribution=distribution).draw(0, 0, 8)
    other = negatives_of(name, distribution={"uniform": "popularity"}.get(distribution, "uniform"))
    assert torch.equal(negatives_of(name).draw(0, 0, 8), expected)
    assert not torch.equal(other.draw(0, 0, 8), expected)


def test_log_q_is_the_logarithm_of_the_probability():
    log_q = negatives_of(distribution="popularity").log_q(torch.tensor([1, 2, 4]))
    assert log_q is not None and log_q.dtype == torch.float32
    assert log_q.exp().tolist() == pytest.approx([0.4, 0.3, 0.3])


@pytest.mark.parametrize(
    "settings",
    [
        {"distribution": "uniform"},
        {"distribution": "popularity", "logq": False},
        {"name": "gbce", "distribution": "popularity"},
    ],
)
def test_scores_are_corrected_only_where_it_matters_and_is_asked_for(settings):
    assert negatives_of(**settings).log_q(torch.tensor([1])) is None


def test_bce_has_negatives_for_each_event_which_the_processes_deal_out():
    alone = negatives_of("bce", negatives=2)
    drawn = alone.draw(0, 1, events=7)
    assert drawn.shape == (7, 2) and torch.equal(alone.share(drawn, 7), drawn)
    ranks = [negatives_of("bce", rank, 2, negatives=2) for rank in range(2)]
    shares = [rank.share(drawn, events) for rank, events in zip(ranks, (4, 3), strict=True)]
    assert torch.equal(shares[0], drawn[0::2]) and torch.equal(shares[1], drawn[1::2])
    longer = ranks[1].share(drawn, 5)
    assert torch.equal(longer[:3], shares[1]) and longer.shape == (5, 2)


def test_shared_negatives_are_every_process_s():
    drawn = negatives_of("gbce").draw(0, 0, 8)
    assert drawn.shape == (256,) and negatives_of("gbce", 1, 2).share(drawn, 5) is drawn
