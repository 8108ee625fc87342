"""What the tests of every operator share: dtypes, gradients, comparison with the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from devices import DEVICES as DEVICES
from op_cases import CONSTANTS, PARAMETERS, Arguments, random
from torch import Tensor

from hyenarec import ops, reference

LENGTHS = [0, 1, 2, 7, 64, 200, 1021, 4096]
HALF_TYPES = {"cpu": [torch.bfloat16], "cuda": [torch.bfloat16, torch.float16]}
# Largest error relative to the largest expected number.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def converted(arguments: Mapping[str, Any], dtype: torch.dtype, device: str) -> Arguments:
    """The arguments in the dtypes that go beside activations of `dtype`; floating ones need gradients."""
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    result: Arguments = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.detach().to(parameters if name in PARAMETERS else dtype).to(device)
            value.requires_grad_(name not in CONSTANTS)
        elif isinstance(value, Tensor):
            value = value.to(device)
        result[name] = value
    return result


def detached(arguments: Mapping[str, Any]) -> Arguments:
    """For the operators behind those of `ops`: they have no default of `offsets`."""
    values = {"offsets": None} | dict(arguments)
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}


def differentiable(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: value for name, value in arguments.items() if isinstance(value, Tensor) and value.requires_grad
    }


def operator(name: str, module: ModuleType = ops) -> Callable[..., Tensor]:
    """`ops.<name>`; several outputs are stacked into one."""
    op = getattr(module, name)

    def call(**arguments: Any) -> Tensor:
        out = op(**arguments)
        return torch.stack(out) if isinstance(out, tuple) else out

    return call


def solve(
    op: Callable[..., Tensor], arguments: Arguments, grad: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and the gradient of every differentiable argument, for the gradient `grad` at the output."""
    out = op(**arguments)
    leaves = differentiable(arguments)
    grad = random(*out.shape, seed=7) if grad is None else grad
    grad = grad.to(out) if grad.dtype != out.dtype or grad.device != out.device else grad
    gradients = torch.autograd.grad(out, list(leaves.values()), grad, materialize_grads=True)
    return out.detach(), dict(zip(leaves, gradients, strict=True))


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected number."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    expected = expected.detach().double().cpu()
    return float(
        (actual.detach().double().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    )


def assert_matches_oracle(
    name: str, arguments: Arguments, dtype: torch.dtype, device: str, tolerance: float | None = None
) -> None:
    """Forward and every gradient of `ops.<name>` against `reference.<name>` in float64."""
    expected_out, expected = solve(operator(name, reference), converted(arguments, torch.float64, "cpu"))
    out, gradients = solve(operator(name), converted(arguments, dtype, device))
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert error(out, expected_out) <= tolerance, "forward"
    for argument, gradient in gradients.items():
        assert error(gradient, expected[argument]) <= tolerance, f"gradient of {argument}"


def assert_each_sequence_is_the_same_alone(name: str, arguments: Arguments, activations: set[str]) -> None:
    """The bits of outputs and gradients of [B, L, ...] `activations`, for some of the B."""
    out, gradients = solve(
        operator(name), arguments, grad := random(*operator(name)(**arguments).shape, seed=7)
    )
    for i in range(0, len(out), 3):
        alone = arguments | {activation: arguments[activation][i : i + 1] for activation in activations}
        out_alone, gradients_alone = solve(operator(name), alone, grad[i : i + 1])
        assert torch.equal(out_alone, out[i : i + 1])
        for activation in activations:
            assert torch.equal(gradients_alone[activation], gradients[activation][i : i + 1]), activation


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
