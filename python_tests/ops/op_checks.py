"""What the tests of every operator share: comparison with the oracle, odd strides, errors, compilation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from hyenarec import ops, reference

Arguments = dict[str, Any]

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]
LENGTHS = [0, 1, 2, 7, 64, 200, 1021, 4096]
HALF_TYPES = {"cpu": [torch.bfloat16], "cuda": [torch.bfloat16, torch.float16]}
# Largest error relative to the largest expected number.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# Arguments that 16-bit activations leave in float32.
PARAMETERS = {"kernel", "skip", "weight", "bias"}


def random(*sizes: int, seed: int = 0) -> Tensor:
    """Normal numbers that are exact in every dtype down to bfloat16."""
    generator = torch.Generator().manual_seed(seed + 1000 * sum(sizes))
    return (torch.randn(sizes, generator=generator, dtype=torch.float64) * 32).round() / 32


def converted(arguments: Mapping[str, Any], dtype: torch.dtype, device: str) -> Arguments:
    """The arguments in the dtypes that go beside activations of `dtype`; floating ones need gradients."""
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    result: Arguments = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.detach().to(parameters if name in PARAMETERS else dtype).to(device).requires_grad_()
        elif isinstance(value, Tensor):
            value = value.to(device)
        result[name] = value
    return result


def differentiable(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: value for name, value in arguments.items() if isinstance(value, Tensor) and value.requires_grad
    }


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
    expected_out, expected = solve(getattr(reference, name), converted(arguments, torch.float64, "cpu"))
    out, gradients = solve(getattr(ops, name), converted(arguments, dtype, device))
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert error(out, expected_out) <= tolerance, "forward"
    for argument, gradient in gradients.items():
        assert error(gradient, expected[argument]) <= tolerance, f"gradient of {argument}"


def odd_strides(tensor: Tensor) -> list[Tensor]:
    """The same numbers in memory that is spread, in another order, and a slice of something wider."""
    spread = tensor.repeat_interleave(2, dim=-1)[..., ::2]
    reordered = tensor.mT.contiguous().mT if tensor.dim() > 1 else spread
    slice_of_wider = torch.cat([tensor, tensor, tensor], dim=-1)[..., tensor.shape[-1] : 2 * tensor.shape[-1]]
    return [spread, reordered, slice_of_wider]


def assert_takes_any_strides(name: str, arguments: Arguments, device: str) -> None:
    """Each tensor argument in turn, then the incoming gradient, with odd strides: the same numbers."""
    op = getattr(ops, name)
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


def assert_second_derivative_raises(name: str, arguments: Arguments, device: str) -> None:
    arguments = converted(arguments, torch.float64, device)
    leaves = list(differentiable(arguments).values())
    out = getattr(ops, name)(**arguments)
    gradients = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=f"derivative for hyenarec::{name}_backward is not implemented"):
        torch.autograd.grad(sum(gradient.sum() for gradient in gradients), leaves)


def assert_rejects(name: str, arguments: Arguments, message: str) -> None:
    """The same sentence with and without autograd."""
    op = getattr(ops, name)
    with pytest.raises(RuntimeError, match=message):
        op(**arguments)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=message):
        op(**arguments)


def run_opcheck(name: str, arguments: Arguments, device: str) -> None:
    overload = getattr(torch.ops.hyenarec, name).default
    torch.library.opcheck(overload, (), converted(arguments, torch.float32, device))


class Op(torch.nn.Module):
    """An operator as a module whose first input is what varies in size."""

    def __init__(self, op: Callable[..., Tensor], constants: Arguments) -> None:
        super().__init__()
        self.op = op
        self.constants = constants

    def forward(self, u: Tensor, *others: Tensor) -> Tensor:
        return self.op(u, *others, **self.constants)


def assert_compiles_once(module: torch.nn.Module, inputs: list[tuple[Tensor, ...]], backend: str) -> None:
    """torch.compile(fullgraph=True) with backward: the eager numbers, one graph for all inputs."""
    counter = CompileCounterWithBackend(backend)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for arguments in inputs:
        results = []
        for function in (module, compiled):
            leaves = [a.detach().clone().requires_grad_(a.is_floating_point()) for a in arguments]
            out = function(*leaves)
            grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
            out.backward(grad)
            results.append([out, *(leaf.grad for leaf in leaves if leaf.requires_grad)])
        for eager, other in zip(*results, strict=True):
            torch.testing.assert_close(other, eager)
    assert counter.frame_count == 1


def assert_exports(module: torch.nn.Module, inputs: list[tuple[Tensor, ...]], dynamic_shapes: Any) -> None:
    """torch.export from the first input runs on all of them."""
    program = torch.export.export(module, inputs[0], dynamic_shapes=dynamic_shapes)
    for arguments in inputs:
        torch.testing.assert_close(program.module()(*arguments), module(*arguments))
