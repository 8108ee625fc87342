from __future__ import annotations

import math

import pytest
import torch

from hyenarec.config import GRU4RecConfig, ModelConfig, OptimizerConfig, SASRecConfig
from hyenarec.model import HyenaRec
from hyenarec.optimizer import learning_rate, make_optimizer, parameter_groups
from hyenarec.registry import make_model


@pytest.mark.parametrize("kernel", ["legendre", "mlp", "free"])
def test_only_matrices_of_linear_layers_decay(kernel):
    model = HyenaRec(ModelConfig(num_items=5, dim=4, num_blocks=1, max_len=6, kernel=kernel))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = parameter_groups(model)
    assert sorted(names[id(p)] for p in decayed) == [
        "blocks.0.ffn.0.weight",
        "blocks.0.ffn.2.weight",
        "blocks.0.mixer.in_proj.weight",
        "blocks.0.mixer.out_proj.weight",
    ]
    assert len(decayed) + len(others) == len(names)
    assert {id(p) for p in decayed + others} == set(names)


def test_matrices_of_recurrent_layers_decay_and_positions_do_not():
    recurrent = make_model(GRU4RecConfig(num_items=5, dim=4, num_layers=2))
    assert len(parameter_groups(recurrent)[0]) == 2 * 2 + 1
    attention = make_model(SASRecConfig(num_items=5, dim=4, num_blocks=1))
    assert len(parameter_groups(attention)[0]) == 4
    assert any(p is attention.positions.weight for p in parameter_groups(attention)[1])


def test_weight_decay_shrinks_the_matrices_alone():
    model = HyenaRec(ModelConfig(num_items=5, dim=4, num_blocks=1, max_len=6))
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {id(p) for p in parameter_groups(model)[0]}
    for name, parameter in model.named_parameters():
        share = 1 - 0.1 * 0.5 if id(parameter) in decayed else 1
        torch.testing.assert_close(parameter.detach(), before[name] * share)


def test_warm_up_is_linear_and_ends_at_the_peak():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule="constant")
    assert [learning_rate(step, 8, config) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert learning_rate(0, 8, OptimizerConfig(learning_rate=2.0, warmup_steps=0, schedule="constant")) == 2


def test_cosine_begins_at_the_peak_and_ends_at_the_final_rate():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=2, schedule="cosine", final_rate=0.1)
    rates = [learning_rate(step, 11, config) for step in range(2, 11)]
    expected = [2 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 8)) / 2) for step in range(9)]
    assert rates == pytest.approx(expected)
    assert rates[0] == 2 and rates[-1] == pytest.approx(0.2)
    assert learning_rate(30, 11, config) == pytest.approx(0.2)


def test_a_run_shorter_than_the_warm_up_has_rates():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule="cosine")
    assert learning_rate(2, 3, config) == pytest.approx(3 / 11)
