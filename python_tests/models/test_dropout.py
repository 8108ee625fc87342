"""Dropout: how often, how much, and that torch's seed decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyenarec.models.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_with_its_probability_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.full((400, 501), 3.0)
    y = Dropout(p)(x)
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 3 / (1 - p)), rtol=1e-4, atol=0)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1 << 18)) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):
        correlation = (kept[distance:] * kept[:-distance]).mean().item() * 4
        assert abs(correlation) < 5 / kept.numel() ** 0.5


def test_the_gradient_has_the_same_factors() -> None:
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.4)(x)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(grad, (y / x).detach())


def test_the_seed_decides() -> None:
    x, dropout = torch.ones(1000), Dropout(0.3)
    torch.manual_seed(5)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(5)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 4), (5,), (3, 2, 1)])
def test_shape_and_dtype_stay(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    y = Dropout(0.2)(torch.ones(shape, dtype=dtype))
    assert (y.shape, y.dtype) == (shape, dtype)


def test_leaves_alone_what_it_should() -> None:
    x = torch.randn(50)
    assert torch.equal(Dropout(0.9).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()


def add_norm_arguments(channels: int = 24) -> tuple[Tensor, Tensor, nn.LayerNorm]:
    torch.manual_seed(1)
    norm = nn.LayerNorm(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return torch.randn(300, channels, requires_grad=True), torch.randn(300, channels), norm


@pytest.mark.parametrize("has_residual", [True, False])
def test_add_norm_is_the_parts_when_nothing_is_dropped(has_residual: bool) -> None:
    branch, stream, norm = add_norm_arguments()
    residual = stream if has_residual else None
    for dropout in (Dropout(0.9).eval(), Dropout(0.0)):
        normed, total = dropout.add_norm(branch, residual, norm)
        expected = branch + stream if has_residual else branch
        assert torch.equal(total, expected)
        torch.testing.assert_close(normed, norm(expected))


def test_add_norm_drops_and_keeps_the_mean() -> None:
    branch, residual, norm = add_norm_arguments(501)
    torch.manual_seed(0)
    normed, total = Dropout(0.3).add_norm(branch, residual, norm)
    dropped = total == residual
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / branch.numel()) ** 0.5)
    torch.testing.assert_close(total, residual + branch.where(~dropped, 0) / 0.7, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normed, norm(total))
    (grad,) = torch.autograd.grad(total, branch, torch.ones_like(total))
    assert torch.equal(grad == 0, dropped)


def test_the_seed_decides_for_add_norm() -> None:
    arguments, dropout = add_norm_arguments(), Dropout(0.3)
    torch.manual_seed(5)
    first, second = (dropout.add_norm(*arguments)[1] for _ in range(2))
    state = torch.get_rng_state()
    third = dropout.add_norm(*arguments)[1]
    torch.manual_seed(5)
    assert torch.equal(dropout.add_norm(*arguments)[1], first)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout.add_norm(*arguments)[1], third)


def test_add_norm_compiles() -> None:
    """One graph that draws anew at each call."""
    branch, residual, norm = add_norm_arguments()
    compiled = torch.compile(Dropout(0.3).add_norm, fullgraph=True, backend="aot_eager")
    totals = [compiled(branch, residual, norm)[1] for _ in range(2)]
    dropped = [total == residual for total in totals]
    assert not torch.equal(*dropped)
    (grad,) = torch.autograd.grad(totals[1], branch, torch.ones_like(residual))
    assert torch.equal(grad == 0, dropped[1])
