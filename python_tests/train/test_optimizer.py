from __future__ import annotations

import math

import pytest
import torch
from host_reads import HostReads

from hyenarec.config import GRU4RecConfig, ModelConfig, OptimizerConfig, SASRecConfig
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.registry import make_model
from hyenarec.train.checkpoint import pack_optimizer, unpack_optimizer
from hyenarec.train.optimizer import LazyAdamW, learning_rate, make_optimizer, parameter_groups


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


ROWS, STEPS = 6, 12
SETTINGS = {"lr": 0.05, "betas": (0.9, 0.98)}


def parameter_of(shape: tuple[int, ...]) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).reshape(shape).clone())


def gradients_of(shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(STEPS)]


def sparse(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(rows[None], gradient[rows], gradient.shape, check_invariants=True)


@pytest.mark.parametrize("shape", [(ROWS, 3), (ROWS,)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_gradients_that_hold_every_row_give_adamw(shape, decay):
    lazy, dense = parameter_of(shape), parameter_of(shape)
    optimizers = [
        LazyAdamW([{"params": [lazy], "weight_decay": decay}], **SETTINGS),
        torch.optim.AdamW([dense], weight_decay=decay, **SETTINGS),
    ]
    for gradient in gradients_of(shape):
        lazy.grad, dense.grad = sparse(gradient, torch.arange(ROWS)), gradient
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(lazy, dense, rtol=1e-6, atol=1e-7)


def test_dense_gradients_give_adamw_bit_for_bit():
    lazy, dense = parameter_of((ROWS, 3)), parameter_of((ROWS, 3))
    optimizers = [
        LazyAdamW([{"params": [lazy], "weight_decay": 0.1}], **SETTINGS),
        torch.optim.AdamW([dense], weight_decay=0.1, fused=True, **SETTINGS),
    ]
    for gradient in gradients_of((ROWS, 3)):
        lazy.grad, dense.grad = gradient, gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(lazy, dense)


def test_a_row_moves_as_under_adamw_in_the_steps_of_its_own():
    lazy = parameter_of((ROWS, 3))
    optimizer = LazyAdamW([{"params": [lazy], "weight_decay": 0.1}], **SETTINGS)
    alone = [torch.nn.Parameter(row.detach().clone()) for row in lazy]
    adamw = [torch.optim.AdamW([row], weight_decay=0.1, **SETTINGS) for row in alone]
    for step, gradient in enumerate(gradients_of((ROWS, 3))):
        rows = torch.arange(ROWS)[(step + torch.arange(ROWS)) % (1 + torch.arange(ROWS)) == 0]
        if step < 5:
            rows = rows[rows != 4]  # one that comes late
        before = [tensor.clone() for tensor in (lazy, *optimizer.state[lazy].values())]
        lazy.grad = sparse(gradient, rows)
        optimizer.step()
        others = torch.tensor([row not in rows for row in range(ROWS)])
        for tensor, old in zip((lazy, *optimizer.state[lazy].values()), before, strict=False):
            assert torch.equal(tensor[others], old[others])
        for row in rows.tolist():
            alone[row].grad = gradient[row]
            adamw[row].step()
        torch.testing.assert_close(lazy.detach(), torch.stack([row.detach() for row in alone]))


def test_a_row_that_a_gradient_holds_twice_is_stepped_once():
    once, twice = parameter_of((ROWS, 3)), parameter_of((ROWS, 3))
    values = torch.randn(2, 3)
    for parameter, rows, gradient in ((once, [[4]], values.sum(0, keepdim=True)), (twice, [[4, 4]], values)):
        parameter.grad = torch.sparse_coo_tensor(rows, gradient, (ROWS, 3), check_invariants=True)
    for parameter in (once, twice):
        LazyAdamW([parameter], **SETTINGS).step()
    assert torch.equal(once, twice)


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_gradient_scaler_changes_nothing_and_its_step_looks_at_no_value(unscaled):
    parameters = [[parameter_of((ROWS, 3)), parameter_of((ROWS,))] for _ in range(2)]
    with_scaler, plain = (LazyAdamW(pair, **SETTINGS) for pair in parameters)
    # A scale that changes: AdamW hardly sees a constant one.
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    scaler.scale(torch.zeros(()))  # makes its scale
    rows = torch.tensor([1, 3])
    for gradient, vector in zip(gradients_of((ROWS, 3)), gradients_of((ROWS,)), strict=True):
        for (table, dense), scale in zip(parameters, (scaler.get_scale(), 1), strict=True):
            table.grad, dense.grad = sparse(scale * gradient, rows), scale * vector
        plain.step()
        if unscaled:
            scaler.unscale_(with_scaler)
        with HostReads() as reads:
            scaler.step(with_scaler)
        assert reads.names == []
        scaler.update()
        for mine, expected in zip(*parameters, strict=True):
            torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("place", ["rows", "dense"])
def test_a_step_with_an_overflow_leaves_all_as_it_was(unscaled, place):
    table, dense = parameter_of((ROWS, 3)), parameter_of((ROWS,))
    optimizer = LazyAdamW([{"params": [table, dense], "weight_decay": 0.1}], **SETTINGS)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    rows = torch.tensor([1, 3])
    for overflows in (False, True, True):
        before = [tensor.clone() for tensor in tensors_of(optimizer)]
        table.grad, dense.grad = sparse(torch.ones(ROWS, 3), rows).coalesce(), torch.ones(ROWS)
        if overflows:
            (table.grad.values() if place == "rows" else dense.grad)[0] = math.inf
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if overflows:
            assert all(map(torch.equal, tensors_of(optimizer), before))
    assert scaler.get_scale() == 1


def tensors_of(optimizer: LazyAdamW) -> list[torch.Tensor]:
    """The parameters and their state."""
    return [
        tensor
        for parameter in optimizer.param_groups[0]["params"]
        for tensor in (parameter, *optimizer.state[parameter].values())
    ]


def test_sparse_state_is_saved_and_goes_on_exactly():
    gradients = gradients_of((ROWS, 3))
    rows = [torch.tensor([0, 2]), torch.tensor([2, 5]), torch.tensor([0, 5])]
    weight = parameter_of((ROWS, 3))
    optimizer = LazyAdamW([weight], **SETTINGS)
    for step in range(2):
        weight.grad = sparse(gradients[step], rows[step])
        optimizer.step()
    copy = torch.nn.Parameter(weight.detach().clone())
    resumed = LazyAdamW([copy], **SETTINGS)
    unpack_optimizer(resumed, {name: tensor.clone() for name, tensor in pack_optimizer(optimizer).items()})
    for parameter, each in ((weight, optimizer), (copy, resumed)):
        parameter.grad = sparse(gradients[2], rows[2])
        each.step()
    assert torch.equal(weight, copy)
    assert resumed.state[copy]["step"].tolist() == [2, 0, 2, 0, 0, 2]
