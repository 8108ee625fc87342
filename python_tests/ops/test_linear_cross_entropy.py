from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from op_cases import CONSTANTS, Arguments, linear_cross_entropy_case, random
from op_checks import DEVICES, HALF_TYPES, assert_matches_oracle, converted, differentiable, error, solve
from torch import Tensor

from hyenarec import ops, reference

on_devices = pytest.mark.parametrize("device", DEVICES)
REDUCTIONS = ["none", "sum", "mean"]
SAMPLES = [None, 0, 1, 40, 300]  # candidates


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("candidates", SAMPLES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_matches_oracle(reduction: str, candidates: int | None, dtype: torch.dtype, device: str) -> None:
    """Several tiles, the last one not whole, and every tail of a vector."""
    for label_smoothing in (0.0, 0.25):
        for rows, items in ((1500, 77), (130, 601)):
            arguments = linear_cross_entropy_case(
                rows,
                items,
                20,
                candidates,
                log_q=candidates is not None,
                label_smoothing=label_smoothing,
                reduction=reduction,
            )
            tolerance = {torch.float32: 5e-6, torch.float64: 1e-13}[dtype]
            assert_matches_oracle("linear_cross_entropy", arguments, dtype, device, tolerance)


@on_devices
@pytest.mark.parametrize("candidates", [None, 40])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias_in_16_bits", [False, True])
@pytest.mark.instruction_sets
def test_matches_oracle_in_16_bits(
    bias_in_16_bits: bool, reduction: str, candidates: int | None, device: str
) -> None:
    """hidden and weight have 16 bits, sums and the loss have 32."""
    arguments = linear_cross_entropy_case(
        1500, 77, 20, candidates, candidates is not None, reduction=reduction
    )
    expected_loss, expected = solve(
        reference.linear_cross_entropy, converted(arguments, torch.float64, "cpu")
    )
    for dtype in HALF_TYPES[device]:
        rounded = converted(arguments, torch.float32, device)
        for name in ("hidden", "weight", *(["bias"] if bias_in_16_bits else [])):
            rounded[name] = rounded[name].detach().to(dtype).requires_grad_()
        loss, gradients = solve(ops.linear_cross_entropy, rounded)
        assert loss.dtype == torch.float32
        assert error(loss, expected_loss) < 5e-3
        for name, gradient in gradients.items():
            assert gradient.dtype == rounded[name].dtype
            assert error(gradient, expected[name]) < 2e-2, name


@on_devices
@pytest.mark.parametrize(
    ("rows", "items", "channels"),
    [(0, 5, 3), (1, 1, 1), (5, 1, 3), (5, 4, 0), (1, 3000, 2), (9, 16, 1), (17, 15, 64), (3000, 2, 1)],
)
@pytest.mark.instruction_sets
def test_shapes(rows: int, items: int, channels: int, device: str) -> None:
    for candidates in (None, 3):
        for reduction in REDUCTIONS:
            arguments = linear_cross_entropy_case(rows, items, channels, candidates, reduction=reduction)
            assert_matches_oracle("linear_cross_entropy", arguments, torch.float64, device, 1e-12)


@on_devices
@pytest.mark.parametrize("candidates", [None, 5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_without_a_target_leave_no_trace(reduction: str, candidates: int | None, device: str) -> None:
    """Whatever they hold; the mean is over the others, and 0 if there are none."""
    arguments = converted(
        linear_cross_entropy_case(40, 12, 3, candidates, reduction=reduction), torch.float64, device
    )
    arguments["target"][::2] = -1
    loss, gradients = solve(ops.linear_cross_entropy, arguments)
    left_out = arguments["target"] < 0
    assert gradients["hidden"][left_out].eq(0).all()
    changed = arguments | {"hidden": arguments["hidden"].detach().clone()}
    changed["hidden"][left_out] *= -100
    changed["hidden"].requires_grad_()
    other_loss, other_gradients = solve(ops.linear_cross_entropy, changed)
    assert torch.equal(other_loss, loss)
    assert all(torch.equal(other_gradients[name], gradients[name]) for name in gradients)
    arguments["target"].fill_(-1)
    loss, gradients = solve(ops.linear_cross_entropy, arguments)
    assert loss.eq(0).all()
    assert all(gradient.eq(0).all() for gradient in gradients.values())


@on_devices
def test_one_call_equals_torch(device: str) -> None:
    """The loss that it is measured against."""
    leaves = [random(300, 16, seed=1), random(500, 16, seed=2), random(500, seed=3)]
    hidden, weight, bias = (leaf.float().to(device).requires_grad_() for leaf in leaves)
    target = torch.arange(300, device=device) % 500
    for label_smoothing in (0.0, 0.1):
        loss = ops.linear_cross_entropy(hidden, weight, bias, target, label_smoothing=label_smoothing)
        expected = F.cross_entropy(F.linear(hidden, weight, bias), target, label_smoothing=label_smoothing)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        gradients = (torch.autograd.grad(x, (hidden, weight, bias)) for x in (loss, expected))
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@on_devices
@pytest.mark.parametrize("candidates", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_any_size(dtype: torch.dtype, candidates: int | None, device: str) -> None:
    """No overflow, and no probability that is lost where the target is far behind."""
    arguments = converted(linear_cross_entropy_case(40, 12, 3, candidates), dtype, device)
    for scale in (1e-3, 1e3):
        scaled = arguments | {"weight": (scale * arguments["weight"].detach()).requires_grad_()}
        exact = {
            name: value.detach().double().requires_grad_(value.requires_grad)
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for name, value in scaled.items()
        }
        (loss, gradients), (expected_loss, expected) = (
            solve(op, a)
            for op, a in (
                (ops.linear_cross_entropy, scaled),
                (reference.linear_cross_entropy, exact),
            )
        )
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        assert error(loss, expected_loss) < tolerance
        for name, gradient in gradients.items():
            assert error(gradient, expected[name]) < tolerance * max(1.0, scale), name


@on_devices
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(value: float, device: str) -> None:
    for candidates in (None, 5):
        arguments = converted(linear_cross_entropy_case(40, 12, 3, candidates), torch.float32, device)
        arguments["hidden"] = arguments["hidden"].detach().clone()
        arguments["hidden"][2] = value
        losses = ops.linear_cross_entropy(**arguments)
        assert not losses[2].isfinite()
        assert losses[:2].isfinite().all()
        assert losses[3:].isfinite().all()


@on_devices
def test_exponentials_are_exact_to_rounding(device: str) -> None:
    """Two classes: the gradient of the first score is one exponential over the sum of two."""
    gaps = torch.cat([torch.linspace(0, 100, 20001), torch.tensor([700.0, 1e4])])
    for dtype, tolerance in ((torch.float32, 4e-7), (torch.float64, 1e-15)):
        weight = torch.tensor([[-1.0], [0.0]], dtype=dtype, device=device)
        hidden = gaps.to(device, dtype)[:, None].requires_grad_()
        target = torch.ones(len(hidden), dtype=torch.int64, device=device)
        losses = ops.linear_cross_entropy(hidden, weight, None, target, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), hidden)
        expected = -torch.sigmoid(-hidden.detach().double())
        seen = expected.abs() > torch.finfo(dtype).tiny
        ratio = gradient.double()[seen] / expected[seen]
        assert (ratio - 1).abs().max() < tolerance
        assert gradient[~seen].abs().max() <= torch.finfo(dtype).tiny


@on_devices
def test_rows_of_the_items_in_a_step_are_enough(device: str) -> None:
    """The composition that the docstring gives: the same loss, and a sparse gradient of the same numbers."""
    arguments = converted(
        linear_cross_entropy_case(50, 200, 8, 30, log_q=True, reduction="mean"), torch.float64, device
    )
    arguments["target"].clamp_(min=0)
    loss, expected = solve(ops.linear_cross_entropy, arguments)
    target, candidates = arguments["target"], arguments["candidates"]
    item_weight, item_bias = (
        arguments[name].detach().clone().requires_grad_() for name in ("weight", "bias")
    )
    items, place = torch.cat([target, candidates]).unique(return_inverse=True)
    place_of_target, place_of_candidate = place.split([len(target), len(candidates)])
    of_rows = ops.linear_cross_entropy(
        arguments["hidden"].detach(),
        F.embedding(items, item_weight, sparse=True),
        item_bias[items],
        place_of_target,
        candidates=place_of_candidate,
        log_q=arguments["log_q"][items],
    )
    torch.testing.assert_close(of_rows, loss)
    of_rows.backward(random(seed=7).to(of_rows))
    assert item_weight.grad.is_sparse
    assert len(item_weight.grad.coalesce().indices()[0]) <= len(items)
    torch.testing.assert_close(item_weight.grad.to_dense(), expected["weight"])
    torch.testing.assert_close(item_bias.grad, expected["bias"])


def test_uniform_log_q_changes_nothing() -> None:
    arguments = converted(linear_cross_entropy_case(50, 200, 8, 30), torch.float64, "cpu")
    uniform = torch.full((200,), -3.0, dtype=torch.float64)
    torch.testing.assert_close(
        ops.linear_cross_entropy(**arguments | {"log_q": uniform}), ops.linear_cross_entropy(**arguments)
    )


def test_log_q_has_no_gradient() -> None:
    arguments = converted(linear_cross_entropy_case(5, 20, 8, 3, log_q=True), torch.float64, "cpu")
    arguments["log_q"].requires_grad_()
    with pytest.raises(RuntimeError, match="log_q must not require a gradient"):
        ops.linear_cross_entropy(**arguments)
    with torch.no_grad():
        ops.linear_cross_entropy(**arguments)


@on_devices
def test_backward_runs_twice(device: str) -> None:
    arguments = converted(linear_cross_entropy_case(reduction="mean"), torch.float64, device)
    loss, leaves = ops.linear_cross_entropy(**arguments), list(differentiable(arguments).values())
    once, twice = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


@on_devices
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_value_is_looked_at(reduction: str, device: str) -> None:
    """On the meta device and through autograd: shapes are all that is needed."""
    arguments: Arguments = {
        name: value.detach().to("meta").requires_grad_(name not in CONSTANTS and value.is_floating_point())
        if isinstance(value, Tensor)
        else value
        for name, value in linear_cross_entropy_case(40, 12, 3, 5, log_q=True, reduction=reduction).items()
    }
    loss, gradients = solve(
        ops.linear_cross_entropy, arguments, torch.ones(40 if reduction == "none" else ())
    )
    assert loss.shape == ((40,) if reduction == "none" else ())
    assert all(gradient.shape == arguments[name].shape for name, gradient in gradients.items())
