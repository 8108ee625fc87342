"""torch.compile and torch.export of calls with sizes that vary: what the operators' tests have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from op_cases import CONSTANTS, Arguments, packed, padded
from op_checks import converted
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

HORIZON = 64
# No size that varies equals another one in the first call: the compiler would take them for the same symbol.
CHANNELS = 7
PADDED = [padded(2, 12), padded(3, 7), padded(5, 50)]
PACKED = [packed(4, 0, 5, 2, 1), packed(0, 3, 4), packed(20, 1, 24, 5)]
IN_PADDED = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=HORIZON)}
IN_PACKED = {0: torch.export.Dim("total")}
IN_OFFSETS = {0: torch.export.Dim("starts")}


class Call(torch.nn.Module):
    """An operator as a module whose inputs are tensors by position."""

    def __init__(self, op: Callable[..., Tensor], arguments: Arguments) -> None:
        super().__init__()
        self.op = op
        self.names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
        self.constants = {name: v for name, v in arguments.items() if not isinstance(v, Tensor)}

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.op(**dict(zip(self.names, tensors, strict=True)), **self.constants)


@dataclass(frozen=True)
class Varying:
    """Calls of an operator whose named arguments vary in size."""

    op: Callable[..., Tensor]
    calls: list[Arguments]
    dynamic: dict[str, dict[int, Any]]

    def module(self) -> Call:
        return Call(self.op, self.calls[0])

    def inputs(self) -> list[tuple[Tensor, ...]]:
        calls = [converted(arguments, torch.float32, "cpu") for arguments in self.calls]
        # Parameters stay as large as they are in the first call.
        return [
            tuple((call if name in self.dynamic else calls[0])[name].detach() for name in self.module().names)
            for call in calls
        ]


def without_lengths(arguments: Arguments) -> Arguments:
    return {name: value for name, value in arguments.items() if name not in ("horizon", "length")}


def tensors_of(arguments: Arguments) -> Arguments:
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def assert_exports(case: Varying) -> None:
    """One program for all inputs, with the eager numbers."""
    module, inputs = case.module(), case.inputs()
    dynamic_shapes = (tuple(case.dynamic.get(name) for name in module.names),)
    program = torch.export.export(module, inputs[0], dynamic_shapes=dynamic_shapes)
    for arguments in inputs:
        torch.testing.assert_close(program.module()(*arguments), module(*arguments))


def assert_compiles_once(case: Varying, backend: str) -> None:
    """One graph for all inputs, and the eager numbers, gradients included."""
    module, inputs = case.module(), case.inputs()
    counter = CompileCounterWithBackend(backend)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for arguments in inputs:
        results = []
        for function in (module, compiled):
            leaves = [
                a.detach().clone().requires_grad_(a.is_floating_point() and name not in CONSTANTS)
                for name, a in zip(module.names, arguments, strict=True)
            ]
            out = function(*leaves)
            out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape))
            results.append([out, *(leaf.grad for leaf in leaves if leaf.requires_grad)])
        for eager, other in zip(*results, strict=True):
            torch.testing.assert_close(other, eager)
    assert counter.frame_count == 1
