from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from op_cases import CONSTANTS, Arguments, linear_cross_entropy_case, random
from op_checks import DEVICES, HALF_TYPES, assert_matches_oracle, converted, differentiable, error, solve
from rejects import (
    TYPES,
    TYPES_ON_CPU,
    Row,
    assert_backward_rejects_a_wrong_gradient,
    assert_rejects,
    rejected,
    shape,
)
from torch import Tensor
from varying import CHANNELS, Varying, assert_compiles_once, assert_exports, tensors_of

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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("adjusted", [0, 1, 16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_matches_oracle_with_adjusted_scores(
    reduction: str, adjusted: int, dtype: torch.dtype, device: str
) -> None:
    for label_smoothing in (0.0, 0.25):
        for rows, items, bias in ((1500, 77, True), (130, 601, False), (0, 5, True), (3, 1, True)):
            arguments = linear_cross_entropy_case(
                rows, items, 20, None, False, bias, label_smoothing, reduction, adjusted
            )
            tolerance = {torch.float32: 5e-6, torch.float64: 1e-13}[dtype]
            assert_matches_oracle("linear_cross_entropy", arguments, dtype, device, tolerance)


@on_devices
def test_only_the_adjustment_may_need_a_gradient(device: str) -> None:
    arguments = converted(linear_cross_entropy_case(adjusted=4, reduction="sum"), torch.float64, device)
    _, expected = solve(ops.linear_cross_entropy, arguments)
    for name in ("hidden", "weight", "bias"):
        arguments[name] = arguments[name].detach()
    _, gradients = solve(ops.linear_cross_entropy, arguments)
    assert gradients.keys() == {"adjustment"}
    torch.testing.assert_close(gradients["adjustment"], expected["adjustment"])
    assert gradients["adjustment"][arguments["adjusted"] < 0].eq(0).all()


@on_devices
@pytest.mark.parametrize(("candidates", "adjusted"), [(None, None), (40, None), (None, 7)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias_in_16_bits", [False, True])
@pytest.mark.instruction_sets
def test_matches_oracle_in_16_bits(
    bias_in_16_bits: bool, reduction: str, candidates: int | None, adjusted: int | None, device: str
) -> None:
    """hidden and weight have 16 bits, sums and the loss have 32."""
    arguments = linear_cross_entropy_case(
        1500, 77, 20, candidates, candidates is not None, reduction=reduction, adjusted=adjusted
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


GOOD: Arguments = {
    "hidden": torch.ones(3, 4),
    "weight": torch.ones(6, 4),
    "bias": torch.ones(6),
    "target": torch.tensor([0, -1, 5]),
    "candidates": torch.tensor([5, 1]),
    "log_q": torch.ones(6),
    "label_smoothing": 0.1,
    "reduction": "none",
}
ADJUSTED: Arguments = {
    **GOOD,
    "candidates": None,
    "log_q": None,
    "adjusted": torch.tensor([[0, 5], [-1, 1], [2, -1]]),
    "adjustment": torch.ones(3, 2),
}


def wrong_arguments() -> Iterator[Row]:
    layouts = [("hidden", "[M, D]"), ("weight", "[V, D]"), ("bias", "[V]"), ("target", "[M]")]
    for name, layout in [*layouts, ("candidates", "[K]"), ("log_q", "[V]")]:
        message = f"{name} must be {layout}, got {shape(GOOD[name][..., None])}"
        yield {name: GOOD[name][..., None]}, message
        if name != "hidden":
            yield {name: GOOD[name].to("meta")}, f"{name} must be on cpu like hidden, got meta"
    for name, layout, size in [
        ("target", "[M]", "M = 3"),
        ("bias", "[V]", "V = 6"),
        ("log_q", "[V]", "V = 6"),
    ]:
        yield {name: GOOD[name][1:]}, f"{name} must be {layout} with {size}, got {shape(GOOD[name][1:])}"
    for change, message in [
        ({"hidden": GOOD["hidden"].int()}, f"hidden must be {TYPES}, got Int"),
        ({"weight": GOOD["weight"][:, 1:]}, "weight must be [V, D] with D = 4, got [6, 3]"),
        ({"weight": GOOD["weight"][:0]}, "weight must be [V, D] with V >= 1, got [0, 4]"),
        ({"weight": GOOD["weight"].bfloat16()}, "weight must be Float like hidden, got BFloat16"),
        ({"bias": GOOD["bias"].double()}, "bias must be Float like hidden, got Double"),
        ({"target": GOOD["target"].int()}, "target must be Long, got Int"),
        ({"candidates": GOOD["candidates"].int()}, "candidates must be Long, got Int"),
        ({"log_q": GOOD["log_q"].double()}, "log_q must be Float beside this hidden, got Double"),
        ({"candidates": None}, "log_q must be absent without candidates, got [6]"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in [0, 1], got -0.1"),
        ({"label_smoothing": torch.nan}, "label_smoothing must be in [0, 1], got nan"),
        ({"reduction": "avg"}, "reduction must be 'none', 'sum' or 'mean', got 'avg'"),
        (
            {"target": torch.tensor([0, 6, 1])},
            "target must be in [0, V) with V = 6, or -1 for none, got 6 at 1",
        ),
        (
            {"target": torch.tensor([0, 1, -2])},
            "target must be in [0, V) with V = 6, or -1 for none, got -2 at 2",
        ),
        ({"candidates": torch.tensor([0, -1])}, "candidates must be in [0, V) with V = 6, got -1 at 1"),
    ]:
        yield change, message
    rounded = {name: GOOD[name].bfloat16() for name in ("hidden", "weight")}
    yield rounded | {"bias": GOOD["bias"].half()}, "bias must be Float or like hidden, got Half"
    half = {name: GOOD[name].half() for name in ("hidden", "weight")}
    yield half, f"hidden must be {TYPES_ON_CPU}, got Half"


def wrongly_adjusted() -> Iterator[Row]:
    for name in ("adjusted", "adjustment"):
        value = ADJUSTED[name]
        yield {name: value[0]}, f"{name} must be [M, K], got [2]"
        yield {name: value[1:]}, f"{name} must be [M, K] with M = 3, got [2, 2]"
        yield {name: value.to("meta")}, f"{name} must be on cpu like hidden, got meta"
    yield from [
        ({"adjustment": None}, "adjusted and adjustment must be given together, got adjusted alone"),
        ({"adjusted": None}, "adjusted and adjustment must be given together, got adjustment alone"),
        ({"candidates": GOOD["candidates"]}, "adjusted must be absent beside candidates, got [3, 2]"),
        ({"adjustment": torch.ones(3, 1)}, "adjustment must be [M, K] with K = 2, got [3, 1]"),
        ({"adjusted": ADJUSTED["adjusted"].int()}, "adjusted must be Long, got Int"),
        (
            {"adjustment": torch.ones(3, 2).double()},
            "adjustment must be Float beside this hidden, got Double",
        ),
        (
            {"adjusted": torch.tensor([[0, 5], [-1, 6], [2, -1]])},
            "adjusted must be in [0, V) with V = 6, or -1 for none, got 6 at 1, 1",
        ),
    ]


@rejected("linear_cross_entropy", [*wrong_arguments(), *((ADJUSTED | c, m) for c, m in wrongly_adjusted())])
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects("linear_cross_entropy", GOOD | change, message)


def test_accepts_what_the_rows_start_from() -> None:
    ops.linear_cross_entropy(**GOOD)
    ops.linear_cross_entropy(**ADJUSTED)


def test_backward_rejects_a_wrong_gradient() -> None:
    assert_backward_rejects_a_wrong_gradient("linear_cross_entropy", GOOD, "[M]")


# With a literal number: one that the compiler finds in an attribute or a default makes it begin twice.
def mean_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    return ops.linear_cross_entropy(hidden, weight, bias, target, label_smoothing=0.1)


def sampled_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, candidates: Tensor, log_q: Tensor
) -> Tensor:
    return ops.linear_cross_entropy(
        hidden,
        weight,
        bias,
        target,
        candidates=candidates,
        log_q=log_q,
        label_smoothing=0.1,
        reduction="none",
    )


def adjusted_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, adjusted: Tensor, adjustment: Tensor
) -> Tensor:
    return ops.linear_cross_entropy(
        hidden, weight, bias, target, label_smoothing=0.1, adjusted=adjusted, adjustment=adjustment
    )


IN_ROWS, IN_ITEMS = ({0: torch.export.Dim(name)} for name in ("rows", "items"))
VARYING = {
    "linear_cross_entropy adjusted": Varying(
        adjusted_cross_entropy,
        [tensors_of(linear_cross_entropy_case(rows, 31, CHANNELS, adjusted=4)) for rows in (12, 3, 50)],
        {"hidden": IN_ROWS, "target": IN_ROWS, "adjusted": IN_ROWS, "adjustment": IN_ROWS},
    ),
    "linear_cross_entropy": Varying(
        mean_cross_entropy,
        [tensors_of(linear_cross_entropy_case(rows, 31, CHANNELS)) for rows in (12, 3, 50)],
        {"hidden": IN_ROWS, "target": IN_ROWS},
    ),
    "linear_cross_entropy sampled": Varying(
        sampled_cross_entropy,
        [
            tensors_of(linear_cross_entropy_case(rows, items, CHANNELS, count, log_q=True))
            for rows, items, count in ((12, 31, 5), (3, 40, 17), (50, 20, 8))
        ],
        {
            "hidden": IN_ROWS,
            "target": IN_ROWS,
            "weight": IN_ITEMS,
            "bias": IN_ITEMS,
            "log_q": IN_ITEMS,
            "candidates": {0: torch.export.Dim("candidates")},
        },
    ),
}
varying = pytest.mark.parametrize("case", VARYING.values(), ids=VARYING)


@varying
def test_exports_with_dynamic_sizes(case: Varying) -> None:
    assert_exports(case)


@varying
@pytest.mark.slow
def test_compiles_once_with_backward(case: Varying) -> None:
    assert_compiles_once(case, "aot_eager")
