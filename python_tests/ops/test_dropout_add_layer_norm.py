from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from op_cases import Arguments, dropout_add_layer_norm_case, random
from op_checks import (
    DEVICES,
    HALF_TYPES,
    TOLERANCE,
    assert_matches_oracle,
    converted,
    differentiable,
    error,
    operator,
    solve,
)
from rejects import TYPES, TYPES_ON_CPU, VECTOR, Row, U, assert_rejects, rejected
from torch import Tensor, library
from varying import CHANNELS, IN_PADDED, PADDED, Varying, assert_compiles_once, assert_exports, tensors_of

from hyenarec import ops, reference

OP = "dropout_add_layer_norm"
on_devices = pytest.mark.parametrize("device", DEVICES)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3, 7, 8, 16, 33, 64, 130, 1000])
@pytest.mark.instruction_sets
def test_matches_oracle(channels: int, residual: bool, p: float, dtype: torch.dtype, device: str) -> None:
    """Whole vectors and every kind of tail; rows that begin within a block of random bits."""
    arguments = dropout_add_layer_norm_case((3, 11), channels, residual, p)
    tolerance = {torch.float32: 5e-6, torch.float64: 1e-13}[dtype]
    assert_matches_oracle(OP, arguments, dtype, device, tolerance)


@on_devices
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("sizes", [(0,), (1,), (2, 0, 3), (), (5000,), (7, 3, 2, 5)], ids=str)
@pytest.mark.instruction_sets
def test_shapes(sizes: tuple[int, ...], p: float, device: str) -> None:
    assert_matches_oracle(OP, dropout_add_layer_norm_case(sizes, 17, p=p), torch.float32, device, 5e-6)


@on_devices
def test_wide_rows(device: str) -> None:
    """More channels than a GPU's threads hold in registers, by vectors and one by one."""
    for channels in (5000, 4999):
        arguments = dropout_add_layer_norm_case((9,), channels, p=0.2)
        assert_matches_oracle(OP, arguments, torch.float32, device, 5e-6)


def expected_of(arguments: Arguments, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return solve(operator(OP, reference), converted(exact(arguments), torch.float64, "cpu"), grad)


def exact(arguments: Arguments) -> Arguments:
    return {n: v.detach().cpu() if isinstance(v, Tensor) else v for n, v in arguments.items()}


@on_devices
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("channels", [24, 17])
@pytest.mark.instruction_sets
def test_matches_oracle_in_16_bits(channels: int, p: float, device: str) -> None:
    """Of the sum as it is rounded; weight and bias in float32 or in 16 bits, too."""
    for dtype, in_16_bits in itertools.product(HALF_TYPES[device], (False, True)):
        arguments = converted(dropout_add_layer_norm_case((300,), channels, p=p), dtype, device)
        if in_16_bits:
            for name in ("weight", "bias"):
                arguments[name] = arguments[name].detach().to(dtype).requires_grad_()
        out, gradients = solve(operator(OP), arguments)
        assert out.dtype == dtype
        expected, expected_gradients = expected_of(arguments, random(*out.shape, seed=7))
        assert error(out, expected) < 2 * TOLERANCE[dtype]
        for name, gradient in gradients.items():
            assert gradient.dtype == arguments[name].dtype
            assert error(gradient, expected_gradients[name]) < 2 * TOLERANCE[dtype], name


ALL_TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@on_devices
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("residual_type", ALL_TYPES)
@pytest.mark.parametrize("branch_type", ALL_TYPES)
def test_mixed_types(branch_type: torch.dtype, residual_type: torch.dtype, p: float, device: str) -> None:
    """A branch in 16 bits beside a float32 residual stream, above all: nothing else is rounded to 16 bits."""
    if device == "cpu" and torch.float16 in (branch_type, residual_type):
        return
    result_type = torch.promote_types(branch_type, residual_type)
    arguments = converted(dropout_add_layer_norm_case((40,), 24, p=p), result_type, device)
    for name, dtype in (("branch", branch_type), ("residual", residual_type)):
        arguments[name] = arguments[name].detach().to(dtype).requires_grad_()
    out, gradients = solve(operator(OP), arguments)
    assert out.dtype == result_type
    expected, expected_gradients = expected_of(arguments, random(*out.shape, seed=7))
    tolerance = {dtype: 2 * TOLERANCE[dtype] for dtype in ALL_TYPES} | {torch.float32: 5e-6}
    assert error(out, expected) < tolerance[result_type]
    for name, gradient in gradients.items():
        dtype = arguments[name].dtype
        assert gradient.dtype == dtype
        assert error(gradient, expected_gradients[name]) < max(tolerance[dtype], tolerance[result_type]), name


def mask(
    shape: tuple[int, ...], p: float, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Which elements the operator keeps."""
    vector = torch.ones(shape[-1], device=device, dtype=torch.promote_types(dtype, torch.float32))
    branch = torch.ones(shape, device=device, dtype=dtype)
    total = ops.dropout_add_layer_norm(
        branch, None, vector, vector, p, seed=torch.tensor(seed, device=device)
    )[1]
    return (total != 0).cpu()


@on_devices
@pytest.mark.parametrize("channels", [1, 3, 8, 12, 50, 64, 700])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345678901])
@pytest.mark.instruction_sets
def test_mask_is_the_oracles(seed: int, channels: int, device: str) -> None:
    """To the bit, in every dtype."""
    shape = (5, 40, channels)
    expected = reference.dropout_keep(torch.tensor(seed), 0.3, shape)
    for dtype in (torch.float32, torch.float64, *HALF_TYPES[device]):
        assert torch.equal(mask(shape, 0.3, seed, device, dtype), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_with_its_probability_and_independently(p: float) -> None:
    kept = mask((400, 501), p, 3).flatten().double()
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert kept.mean().item() == pytest.approx(1 - p, abs=5 * deviation)
    centred = (kept - (1 - p)) / (p * (1 - p)) ** 0.5
    for distance in (1, 2, 3, 4, 8, 501):
        assert abs((centred[distance:] * centred[:-distance]).mean().item()) < 5 / kept.numel() ** 0.5
    other = mask((400, 501), p, 4).flatten().double()
    assert abs((centred * (other - (1 - p))).mean().item()) < 5 / kept.numel() ** 0.5


@on_devices
def test_explicit_mask(device: str) -> None:
    """The same as torch's parts with that mask, gradients included."""
    arguments = converted(dropout_add_layer_norm_case((4, 50), 24, p=0.3), torch.float64, device)
    keep = reference.dropout_keep(arguments["seed"].cpu(), 0.3, (4, 50, 24)).to(device)

    def parts(
        branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, p: float, seed: Tensor
    ) -> Tensor:
        total = residual + branch * keep / (1 - round(p * 2**16) / 2**16)
        return torch.stack([F.layer_norm(total, (24,), weight, bias), total])

    out, gradients = solve(operator(OP), arguments)
    expected, expected_gradients = solve(parts, arguments)
    assert error(out, expected) < 1e-14
    assert all(error(gradients[name], expected_gradients[name]) < 1e-13 for name in gradients)


@on_devices
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_an_output_that_nobody_uses(p: float, device: str) -> None:
    """Its gradient is absent, not zeros that are read."""
    arguments = converted(dropout_add_layer_norm_case((4, 50), 24, p=p), torch.float64, device)
    leaves = list(differentiable(arguments).values())
    for index in (0, 1):
        grad = random(4, 50, 24, seed=7).to(device)
        out = ops.dropout_add_layer_norm(**arguments)[index]
        gradients = torch.autograd.grad(out, leaves, grad, materialize_grads=True)
        outs = reference.dropout_add_layer_norm(**arguments)
        expected = torch.autograd.grad(outs[index], leaves, grad, materialize_grads=True)
        for gradient, wanted in zip(gradients, expected, strict=True):
            assert error(gradient, wanted) < 1e-13 or not (wanted.any() or gradient.any())


@on_devices
def test_all_dropped_and_none(device: str) -> None:
    """Also NaN and infinity: a dropped element is zero, whatever it was."""
    arguments = converted(dropout_add_layer_norm_case((4, 5), 24, p=0.3), torch.float32, device)
    bad = arguments["branch"].detach().clone()
    bad[0], bad[1] = torch.nan, torch.inf
    arguments["branch"] = bad.requires_grad_()
    normed, total = ops.dropout_add_layer_norm(**arguments | {"p": 1.0})
    assert torch.equal(total, arguments["residual"])
    (grad,) = torch.autograd.grad(normed.sum(), arguments["branch"])
    assert not grad.any()
    _, total = ops.dropout_add_layer_norm(**arguments | {"p": 1e-9})  # rounded to 0
    assert torch.equal(total[2:], (arguments["residual"] + bad)[2:])


@on_devices
def test_outputs_are_contiguous(device: str) -> None:
    arguments = converted(dropout_add_layer_norm_case((4, 50), 24), torch.float32, device)
    for name in ("branch", "residual"):
        arguments[name] = arguments[name].detach().transpose(0, 1).contiguous().transpose(0, 1)
    assert all(out.is_contiguous() for out in ops.dropout_add_layer_norm(**arguments))


@on_devices
def test_autocast_leaves_types_as_they_are(device: str) -> None:
    arguments = converted(dropout_add_layer_norm_case((4, 50), 24), torch.float32, device)
    arguments["branch"] = arguments["branch"].detach().bfloat16().requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        outs = ops.dropout_add_layer_norm(**arguments)
    expected = ops.dropout_add_layer_norm(**arguments)
    assert all(out.dtype == torch.float32 for out in outs)
    assert all(torch.equal(*pair) for pair in zip(outs, expected, strict=True))


BACKWARD = torch.ops.hyenarec.dropout_add_layer_norm_backward.default


def backward_arguments(device: str = "cpu") -> Arguments:
    """A good call of the backward operator, whose outputs are all needed."""
    case = dropout_add_layer_norm_case((4, 5), 24, p=0.3)
    arguments = {
        n: v.detach() if isinstance(v, Tensor) else v
        for n, v in converted(case, torch.float32, device).items()
    }
    forward = torch.ops.hyenarec.dropout_add_layer_norm_with_statistics.default
    _, total, mean, rstd = forward(**arguments, eps=1e-5)
    return {
        "grad_normed": random(4, 5, 24, seed=7).to(total),
        "grad_sum": random(4, 5, 24, seed=8).to(total),
        "sum": total,
        "mean": mean,
        "rstd": rstd,
        "weight": arguments["weight"],
        "p": 0.3,
        "seed": arguments["seed"],
        "branch_dtype": torch.float32,
        "needs_grad": [True] * 4,
    }


@on_devices
def test_backward_op_leaves_out_what_is_not_needed(device: str) -> None:
    arguments = backward_arguments(device)
    every = BACKWARD(**arguments)
    for needed in itertools.product([False, True], repeat=4):
        gradients = BACKWARD(**arguments | {"needs_grad": list(needed)})
        for gradient, wanted, expected in zip(gradients, needed, every, strict=True):
            assert torch.equal(gradient, expected) if wanted else gradient.shape == (0,)
    library.opcheck(BACKWARD, (), arguments, test_utils=("test_schema", "test_faketensor"))
    absent = BACKWARD(**arguments | {"grad_normed": None, "grad_sum": None})
    assert not any(gradient.any() for gradient in absent)


ROW = torch.ones(4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"grad_normed": torch.ones(4, 5)},
            r"grad_normed must have the shape of sum, \[4, 5, 24\], got \[4, 5\]",
        ),
        ({"grad_sum": torch.ones(4, 5, 24).double()}, "grad_sum must be Float like sum, got Double"),
        ({"sum": torch.tensor(1.0)}, r"sum must be \[.., D\], got \[\]"),
        ({"mean": ROW[1:]}, r"mean must have the shape of sum\[.., 0\], \[4, 5\], got \[3, 5\]"),
        ({"rstd": ROW.double()}, "rstd must be Float beside this sum, got Double"),
        ({"rstd": ROW.to("meta")}, "rstd must be on cpu like sum, got meta"),
        ({"weight": torch.ones(23)}, r"weight must be \[D\] with D = 24, got \[23\]"),
        ({"seed": None}, "seed must be an int64 scalar for p = 0.3, got none"),
    ],
)
def test_backward_rejects(change: Arguments, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"dropout_add_layer_norm_backward: {message}"):
        BACKWARD(**backward_arguments() | change)


GOOD: Arguments = {
    "branch": U,
    "residual": U,
    "weight": VECTOR,
    "bias": VECTOR,
    "p": 0.1,
    "eps": 1e-5,
    "seed": torch.tensor(5),
}


def wrong_arguments() -> Iterator[Row]:
    for name in ("branch", "residual"):
        yield {name: U.int()}, f"{name} must be {TYPES}, got Int"
        yield {name: U.half()}, f"{name} must be {TYPES_ON_CPU}, got Half"
    for name in ("weight", "bias"):
        for wrong, message in [
            (VECTOR[None], "must be [D], got [1, 4]"),
            (VECTOR[1:], "must be [D] with D = 4, got [3]"),
            (VECTOR.double(), "must be Float like the sum, got Double"),
            (VECTOR.bfloat16(), "must be Float like the sum, got BFloat16"),
            (VECTOR.to("meta"), "must be on cpu like branch, got meta"),
        ]:
            yield {name: wrong}, f"{name} {message}"
    rounded = {"branch": U.bfloat16(), "residual": U.bfloat16()}
    for change, message in [
        ({"branch": torch.tensor(1.0)}, "branch must be [.., D], got []"),
        ({"branch": U[..., :0]}, "branch must be [.., D] with D >= 1, got [2, 5, 0]"),
        ({"residual": U[:1]}, "residual must have the shape of branch, [2, 5, 4], got [1, 5, 4]"),
        ({"residual": U[0]}, "residual must have the shape of branch, [2, 5, 4], got [5, 4]"),
        ({"residual": U.to("meta")}, "residual must be on cpu like branch, got meta"),
        (rounded | {"weight": VECTOR.half()}, "weight must be Float or like the sum, got Half"),
        ({"p": -0.1}, "p must be in [0, 1], got -0.1"),
        ({"p": torch.nan}, "p must be in [0, 1], got nan"),
        ({"eps": -1e-5}, "eps must be at least 0, got -1e-05"),
        ({"seed": None}, "seed must be an int64 scalar for p = 0.1, got none"),
        ({"seed": torch.tensor([5])}, "seed must be a scalar, [], got [1]"),
        ({"seed": torch.tensor(5.0)}, "seed must be Long, got Float"),
        ({"seed": torch.tensor(5, device="meta")}, "seed must be on cpu like branch, got meta"),
    ]:
        yield change, message


@rejected(
    "dropout_add_layer_norm",
    wrong_arguments(),
)
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects("dropout_add_layer_norm", GOOD | change, message)


def test_accepts_what_the_rows_start_from() -> None:
    ops.dropout_add_layer_norm(**GOOD)


def both_outputs(branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor) -> Tensor:
    return torch.stack(
        ops.dropout_add_layer_norm(branch, residual, weight, bias, p=0.25, eps=1e-5, seed=seed)
    )


VARYING = {
    "dropout_add_layer_norm": Varying(
        both_outputs,
        [
            tensors_of(dropout_add_layer_norm_case(layout.sizes, CHANNELS, p=0.25, seed=seed))
            for seed, layout in enumerate(PADDED)
        ],
        {"branch": IN_PADDED, "residual": IN_PADDED, "seed": {}},
    )
}
varying = pytest.mark.parametrize("case", VARYING.values(), ids=VARYING)


@varying
def test_exports_with_dynamic_sizes(case: Varying) -> None:
    assert_exports(case)


@varying
@pytest.mark.slow
def test_compiles_once_with_backward(case: Varying) -> None:
    assert_compiles_once(case, "aot_eager")
