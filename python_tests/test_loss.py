"""The blocked cross-entropy against torch's own on the whole matrix of scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hyenarec.loss import ROWS_PER_BLOCK, cross_entropy_sum


def make_inputs(events: int, items: int = 37, dim: int = 5, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(events)
    hidden = torch.randn(events, dim, generator=generator, dtype=dtype)
    weight = torch.randn(items, dim, generator=generator, dtype=dtype)
    bias = torch.randn(items, generator=generator, dtype=dtype)
    target = torch.randint(items, (events,), generator=generator)
    return [x.requires_grad_() for x in (hidden, weight, bias)], target


@pytest.mark.parametrize("events", [0, 1, ROWS_PER_BLOCK - 1, ROWS_PER_BLOCK, 2 * ROWS_PER_BLOCK + 3])
def test_equals_torch_with_gradients(events: int) -> None:
    (hidden, weight, bias), target = make_inputs(events)
    loss = cross_entropy_sum(hidden, weight, bias, target)
    mine = torch.autograd.grad(3 * loss, (hidden, weight, bias))
    expected = F.cross_entropy(hidden @ weight.T + bias, target, reduction="sum")
    theirs = torch.autograd.grad(3 * expected, (hidden, weight, bias))
    torch.testing.assert_close(loss, expected)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_events_without_a_target_are_left_out() -> None:
    (hidden, weight, bias), target = make_inputs(ROWS_PER_BLOCK + 9)
    target[::3] = -1
    target[ROWS_PER_BLOCK:] = -1  # a whole block
    loss = cross_entropy_sum(hidden, weight, bias, target)
    mine = torch.autograd.grad(loss, (hidden, weight, bias))
    expected = F.cross_entropy(hidden @ weight.T + bias, target, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(loss, expected)
    for a, b in zip(mine, torch.autograd.grad(expected, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(a, b)
    assert mine[0][::3].eq(0).all() and mine[0][ROWS_PER_BLOCK:].eq(0).all()


def test_gradcheck() -> None:
    inputs, target = make_inputs(ROWS_PER_BLOCK + 2, items=4, dim=2)
    with torch.no_grad():
        for x in inputs:
            x *= 0.1  # the sum over many events stays comparable with the finite difference
    assert torch.autograd.gradcheck(lambda *x: cross_entropy_sum(*x, target), inputs, fast_mode=True)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_each_gradient_alone(needed: tuple[bool, ...]) -> None:
    inputs, target = make_inputs(10)
    loss = cross_entropy_sum(*inputs, target)
    everything = torch.autograd.grad(loss, inputs)
    alone = [x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
    cross_entropy_sum(*alone, target).backward()
    for x, gradient, need in zip(alone, everything, needed, strict=True):
        if need:
            assert torch.equal(x.grad, gradient)
        else:
            assert x.grad is None


def test_large_scores_do_not_overflow() -> None:
    inputs, target = make_inputs(4, dtype=torch.float32)
    hidden, weight, bias = (1e3 * x.detach() for x in inputs)
    expected = F.cross_entropy(hidden @ weight.T + bias, target, reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(hidden, weight, bias, target), expected)


def test_autocast_rounds_the_products_only() -> None:
    inputs, target = make_inputs(ROWS_PER_BLOCK + 40, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy_sum(*inputs, target)
    gradients = torch.autograd.grad(loss, inputs)
    exact = cross_entropy_sum(*inputs, target)
    assert loss.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in gradients)
    torch.testing.assert_close(loss, exact, rtol=5e-3, atol=0)
    for g, e in zip(gradients, torch.autograd.grad(exact, inputs), strict=True):
        assert (g - e).norm() < 0.02 * e.norm()


def test_second_derivatives_raise() -> None:
    inputs, target = make_inputs(3)
    (gradient,) = torch.autograd.grad(cross_entropy_sum(*inputs, target), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(7, 4)}, r"hidden must be \[M, D\].*got \[3, 5\] and \[7, 4\]"),
        ({"bias": torch.zeros(8)}, r"bias must be \[V\] with V = 37, got \[8\]"),
        ({"target": torch.zeros(2, dtype=torch.int64)}, r"target must be int64 \[M\] with M = 3"),
        ({"target": torch.zeros(3)}, r"target must be int64 \[M\] with M = 3, got torch.float32"),
    ],
)
def test_errors_name_the_argument(change: dict[str, torch.Tensor], message: str) -> None:
    (hidden, weight, bias), target = make_inputs(3)
    arguments = {"hidden": hidden, "weight": weight, "bias": bias, "target": target} | change
    with pytest.raises(ValueError, match=message):
        cross_entropy_sum(**arguments)
