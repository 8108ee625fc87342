"""Properties that all operators share, over the tables of op_cases."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from op_cases import (
    CONSTANTS,
    GATES,
    LARGE_CASES,
    SMALL_CASES,
    Arguments,
    Case,
    fft_conv_case,
    hyena_mixer_case,
    legendre_conv_case,
    packed,
    padded,
    random,
    short_conv_case,
)
from op_checks import DEVICES, converted, differentiable, error, operator, solve, threads
from torch import Tensor, library

from hyenarec import ops

on_devices = pytest.mark.parametrize("device", DEVICES)
small_cases = pytest.mark.parametrize("case", SMALL_CASES.values(), ids=SMALL_CASES)
large_cases = pytest.mark.parametrize("case", LARGE_CASES.values(), ids=LARGE_CASES)


def differentiable_ops() -> list[str]:
    names = [name.removeprefix("hyenarec::") for name in torch._C._dispatch_get_all_op_names()]
    found = {name.removesuffix("_backward") for name in names if name.endswith("_backward")}
    return sorted(name for name in found if hasattr(ops, name))


def test_no_operator_is_left_out() -> None:
    assert {"short_conv", "hyena_mixer"} <= set(differentiable_ops())
    for cases in (SMALL_CASES, LARGE_CASES):
        missing = set(differentiable_ops()) - {name for name, _ in cases.values()}
        assert not missing, f"op_cases has no case of {sorted(missing)}"


@pytest.mark.parametrize("name", differentiable_ops())
def test_every_operator_has_these_tests_of_its_own(name: str) -> None:
    tests = vars(importlib.import_module(f"test_{name}"))
    expected = {"test_rejects", "test_exports_with_dynamic_sizes", "test_compiles_once_with_backward"}
    missing = expected - tests.keys()
    assert not missing, f"test_{name}.py lacks {', '.join(sorted(missing))}"


@on_devices
@small_cases
def test_gradcheck(case: Case, device: str) -> None:
    name, arguments = case
    arguments = converted(arguments, torch.float64, device)
    names = list(differentiable(arguments))

    def op(*leaves: Tensor) -> Tensor:
        return operator(name)(**arguments | dict(zip(names, leaves, strict=True)))

    torch.autograd.gradcheck(op, tuple(differentiable(arguments).values()))


@on_devices
@small_cases
def test_opcheck(case: Case, device: str) -> None:
    name, arguments = case
    overload = getattr(torch.ops.hyenarec, name).default
    library.opcheck(overload, (), converted(arguments, torch.float32, device))


@on_devices
@small_cases
def test_second_derivative_raises(case: Case, device: str) -> None:
    name, arguments = case
    arguments = converted(arguments, torch.float64, device)
    leaves = list(differentiable(arguments).values())
    out = operator(name)(**arguments)
    gradients = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=f"derivative for hyenarec::{name}_backward is not implemented"):
        torch.autograd.grad(sum(gradient.sum() for gradient in gradients), leaves)


def odd_strides(tensor: Tensor) -> list[Tensor]:
    """The same numbers in memory that is spread, in another order, and a slice of something wider."""
    if tensor.dim() == 0:
        return []
    spread = tensor.repeat_interleave(2, dim=-1)[..., ::2]
    reordered = tensor.mT.contiguous().mT if tensor.dim() > 1 else spread
    slice_of_wider = torch.cat([tensor, tensor, tensor], dim=-1)[..., tensor.shape[-1] : 2 * tensor.shape[-1]]
    return [spread, reordered, slice_of_wider]


@on_devices
@small_cases
def test_takes_any_strides(case: Case, device: str) -> None:
    """Each tensor argument in turn, then the incoming gradient, with odd strides: the same numbers."""
    name, arguments = case
    op = operator(name)
    arguments = converted(arguments, torch.float64, device)
    out, gradients = solve(op, arguments)
    grad = random(*out.shape, seed=7).to(device)
    for argument, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        for odd in odd_strides(value.detach()):
            leaf = odd.requires_grad_(value.requires_grad)
            odd_out, odd_gradients = solve(op, arguments | {argument: leaf}, grad)
            assert odd_out.is_contiguous()
            assert error(odd_out, out) < 1e-14, argument
            for other in gradients:
                assert error(odd_gradients[other], gradients[other]) < 1e-14, (argument, other)
    for odd in odd_strides(grad):
        _, odd_gradients = solve(op, arguments, odd)
        for other in gradients:
            assert error(odd_gradients[other], gradients[other]) < 1e-14, ("incoming gradient", other)


@on_devices
@pytest.mark.parametrize(
    ("name", "arguments", "activation"),
    [
        ("fft_conv", fft_conv_case(4, 1, 8), "u"),
        ("short_conv", short_conv_case(padded(4, 1), 8), "u"),
        ("legendre_conv", legendre_conv_case(padded(4, 1), 8), "u"),
        ("hyena_mixer", hyena_mixer_case(padded(4, 1), 8), "x"),
    ],
)
def test_one_event_with_a_stride_that_means_nothing(
    name: str, arguments: Arguments, activation: str, device: str
) -> None:
    """[B, 1, D] from [1, B, D] keeps B * D as the stride between events, and still counts as contiguous."""
    op = operator(name)
    arguments = converted(arguments, torch.float64, device)
    out, gradients = solve(op, arguments)

    def odd(tensor: Tensor) -> Tensor:
        channels = tensor.shape[-1]
        result = torch.empty(1, 4, channels).to(tensor).transpose(0, 1).copy_(tensor.detach())
        assert result.stride() == (channels, 4 * channels, 1)
        assert result.is_contiguous()
        return result

    leaf = odd(arguments[activation]).requires_grad_()
    odd_out, odd_gradients = solve(
        op, arguments | {activation: leaf}, odd(random(*out.shape, seed=7).to(device))
    )
    assert torch.equal(odd_out, out)
    assert all(torch.equal(odd_gradients[name], gradients[name]) for name in gradients)


@on_devices
@small_cases
def test_only_the_gradients_asked_for(case: Case, device: str) -> None:
    """One or two at a time: of the others either the argument needs no gradient, or nobody asks for it."""
    name, arguments = case
    op = operator(name)
    arguments = converted(arguments, torch.float64, device)
    out, expected = solve(op, arguments)
    grad = random(*out.shape, seed=7).to(out)
    for count in (1, 2):
        for names in itertools.combinations(expected, count):
            some = {n: v.detach() if n in expected and n not in names else v for n, v in arguments.items()}
            _, gradients = solve(op, some)
            assert tuple(gradients) == names
            asked = torch.autograd.grad(op(**arguments), [arguments[n] for n in names], grad)
            for n, of_all in zip(names, asked, strict=True):
                assert error(gradients[n], expected[n]) < 1e-13, (n, names)
                assert error(of_all, expected[n]) < 1e-13, (n, names)


CASES_WITH_A_CHOICE = {
    id: (name, arguments)
    for id, (name, arguments) in SMALL_CASES.items()
    if name not in ("legendre_kernel", "dropout_add_layer_norm")
    and arguments.get("reduction", "none") == "none"
}


@on_devices
@pytest.mark.parametrize("case", CASES_WITH_A_CHOICE.values(), ids=CASES_WITH_A_CHOICE)
def test_backward_op_leaves_out_what_is_not_needed(case: Case, device: str) -> None:
    name, arguments = case
    overload = getattr(torch.ops.hyenarec, f"{name}_backward").default
    names = [argument.name for argument in overload._schema.arguments]
    arguments = converted(arguments, torch.float32, device)
    out, expected = solve(operator(name), arguments)
    given = {n: arguments.get(n) for n in names if n not in ("grad", "needs_grad")}
    given = {n: v.detach() if isinstance(v, Tensor) else v for n, v in given.items()}
    every = [
        argument.name
        for argument in getattr(torch.ops.hyenarec, name).default._schema.arguments
        if "Tensor" in str(argument.type) and argument.name not in CONSTANTS
    ]
    grad = random(*out.shape, seed=7).to(out)
    for needed in itertools.product([False, True], repeat=len(every)):
        gradients = overload(grad=grad, **given, needs_grad=list(needed))
        for argument, wanted, gradient in zip(every, needed, gradients, strict=True):
            if wanted and argument in expected:
                assert error(gradient, expected[argument]) < 1e-6, (argument, needed)
            elif not wanted:
                assert gradient.shape == (0,), (argument, needed)


@on_devices
@large_cases
def test_gradients_are_deterministic(case: Case, device: str) -> None:
    name, arguments = case
    arguments = converted(arguments, torch.float32, device)
    first_out, first = solve(operator(name), arguments)
    second_out, second = solve(operator(name), arguments)
    assert torch.equal(first_out, second_out)
    assert all(torch.equal(first[argument], second[argument]) for argument in first)


# The matrix products of a BLAS may split their sums otherwise.
OWN_SUMS = {id: case for id, case in LARGE_CASES.items() if case[0] != "linear_cross_entropy"}


@pytest.mark.parametrize("case", OWN_SUMS.values(), ids=OWN_SUMS)
def test_same_numbers_on_any_number_of_threads(case: Case) -> None:
    name, arguments = case
    arguments = converted(arguments, torch.float32, "cpu")
    results = []
    for count in (1, 2, 3):
        with threads(count):
            out, gradients = solve(operator(name), arguments)
        results.append({"out": out} | gradients)
    for result in results[1:]:
        assert all(torch.equal(result[argument], results[0][argument]) for argument in result)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "arguments", "activations"),
    [
        ("fft_conv", fft_conv_case(2, 200, 5), ("u", *GATES)),
        ("short_conv", short_conv_case(padded(2, 200), 37, 4), ("u",)),
        ("legendre_conv", legendre_conv_case(padded(2, 200), 37, 9), ("u", *GATES)),
        ("hyena_mixer", hyena_mixer_case(padded(2, 200), 37, 9), ("x",)),
    ],
)
def test_causality(
    name: str, arguments: Arguments, activations: tuple[str, ...], dtype: torch.dtype, device: str
) -> None:
    """Later inputs leave earlier outputs alone: to the last bit, or to the rounding of the FFT."""
    rounding = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3}[dtype]
    arguments = converted(arguments, dtype, device)
    out = operator(name)(**arguments)
    for start in (1, 15, 64, 120, 199):
        changed = dict(arguments)
        for activation in activations:
            changed[activation] = arguments[activation].detach().clone()
            changed[activation][:, start:] *= -3
        other = operator(name)(**changed)
        change = (other - out)[:, :start].abs().max() / out.abs().max()
        assert change <= (rounding if name == "fft_conv" else 0), start
        assert error(other[:, start:], out[:, start:]) > 0.1, start


@on_devices
@pytest.mark.parametrize(
    ("name", "arguments", "activation"),
    [
        ("short_conv", short_conv_case(packed(9, 1, 70, 0, 3, 40), 33), "u"),
        ("legendre_conv", legendre_conv_case(packed(9, 1, 70, 0, 3, 40), 33, 9), "u"),
        ("hyena_mixer", hyena_mixer_case(packed(9, 1, 70, 0, 3, 40), 33, 9), "x"),
    ],
)
def test_a_sequence_leaves_no_trace_in_others(
    name: str, arguments: Arguments, activation: str, device: str
) -> None:
    """Not even NaN does, forward or in the gradient of the activation."""
    arguments = converted(arguments, torch.float32, device)
    changed = arguments | {activation: arguments[activation].detach().clone()}
    first, last = arguments["offsets"][2:4].tolist()
    changed[activation][first:last] = torch.nan
    changed[activation].requires_grad_()
    (out, gradients), (other, other_gradients) = (solve(operator(name), a) for a in (arguments, changed))
    for one, two in ((out, other), (gradients[activation], other_gradients[activation])):
        assert torch.equal(one[:first], two[:first])
        assert torch.equal(one[last:], two[last:])
    assert other[first:last].isnan().all()


@small_cases
def test_needs_no_autograd(case: Case) -> None:
    name, arguments = case
    arguments = converted(arguments, torch.float32, "cpu")
    expected = operator(name)(**arguments)
    assert expected.requires_grad
    with torch.inference_mode():
        out = operator(name)(**arguments)
    assert out.is_inference()
    assert torch.equal(out, expected)
