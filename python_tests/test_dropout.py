"""Dropout: how often, how much, and that torch's seed decides."""

from __future__ import annotations

import pytest
import torch

from hyenarec.dropout import Dropout


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
