"""torch.compile and torch.export of every operator: one graph for all sizes, with the eager numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from op_cases import (
    CONSTANTS,
    Arguments,
    dropout_add_layer_norm_case,
    fft_conv_case,
    hyena_mixer_case,
    legendre_conv_case,
    legendre_kernel_case,
    linear_cross_entropy_case,
    packed,
    padded,
    random,
    short_conv_case,
)
from op_checks import converted
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from hyenarec import ops

HORIZON = 64
# No size that varies equals another one in the first call: the compiler would take them for the same symbol.
CHANNELS = 7
PADDED = [padded(2, 12), padded(3, 7), padded(5, 50)]
PACKED = [packed(4, 0, 5, 2, 1), packed(0, 3, 4), packed(20, 1, 24, 5)]
BATCH = torch.export.Dim("batch")
LENGTH = torch.export.Dim("length", min=2, max=HORIZON)
IN_PADDED = {0: BATCH, 1: LENGTH}
IN_PACKED = {0: torch.export.Dim("total")}
ROWS, ITEMS = torch.export.Dim("rows"), torch.export.Dim("items")


def kernel_and_fft_conv(
    u: Tensor, coeffs: Tensor, decay: Tensor, skip: Tensor, pre_gate: Tensor, post_gate: Tensor
) -> Tensor:
    """The kernel is as long as the batch, as in the model."""
    kernel = ops.legendre_kernel(coeffs, decay, HORIZON, u.shape[1])
    return ops.fft_conv(u, kernel, skip, pre_gate, post_gate)


def legendre_conv_over_the_batch(u: Tensor, coeffs: Tensor, decay: Tensor) -> Tensor:
    """The horizon varies, too."""
    return ops.legendre_conv(u, coeffs, decay, u.shape[1])


# With a literal number: one that the compiler finds in an attribute or a default makes it begin twice.
def mean_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    return ops.linear_cross_entropy(hidden, weight, bias, target, label_smoothing=0.1)


def dropout_add_layer_norm(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, seed: Tensor
) -> Tensor:
    """Both outputs."""
    return torch.stack(
        ops.dropout_add_layer_norm(branch, residual, weight, bias, p=0.25, eps=1e-5, seed=seed)
    )


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


CASES = {
    "legendre_kernel and fft_conv": Varying(
        kernel_and_fft_conv,
        [without_lengths(legendre_conv_case(layout, CHANNELS)) for layout in PADDED],
        {"u": IN_PADDED, "pre_gate": IN_PADDED, "post_gate": IN_PADDED},
    ),
    "legendre_kernel": Varying(
        lambda u, coeffs, decay: ops.legendre_kernel(coeffs, decay, HORIZON, u.shape[1]) + u.sum(),
        [
            {"u": fft_conv_case(*layout.sizes)["u"]} | without_lengths(legendre_kernel_case(CHANNELS))
            for layout in PADDED
        ],
        {"u": IN_PADDED},
    ),
    "short_conv": Varying(
        ops.short_conv, [short_conv_case(layout, CHANNELS) for layout in PADDED], {"u": {0: BATCH, 1: LENGTH}}
    ),
    "short_conv packed": Varying(
        ops.short_conv,
        [short_conv_case(layout, CHANNELS) for layout in PACKED],
        {"u": IN_PACKED, "offsets": {0: torch.export.Dim("starts")}},
    ),
    "legendre_conv": Varying(
        ops.legendre_conv,
        [legendre_conv_case(layout, CHANNELS, horizon=HORIZON) for layout in PADDED],
        {"u": IN_PADDED, "pre_gate": IN_PADDED, "post_gate": IN_PADDED},
    ),
    "legendre_conv packed": Varying(
        ops.legendre_conv,
        [legendre_conv_case(layout, CHANNELS, horizon=HORIZON) for layout in PACKED],
        {
            "u": IN_PACKED,
            "pre_gate": IN_PACKED,
            "post_gate": IN_PACKED,
            "offsets": {0: torch.export.Dim("starts")},
        },
    ),
    "legendre_conv over the batch": Varying(
        legendre_conv_over_the_batch,
        [without_lengths(legendre_conv_case(layout, CHANNELS, optional=())) for layout in PADDED],
        {"u": IN_PADDED},
    ),
    "hyena_mixer": Varying(
        ops.hyena_mixer,
        [hyena_mixer_case(layout, CHANNELS, horizon=HORIZON) for layout in PADDED],
        {"x": IN_PADDED},
    ),
    "hyena_mixer packed": Varying(
        ops.hyena_mixer,
        [hyena_mixer_case(layout, CHANNELS, horizon=HORIZON) for layout in PACKED],
        {"x": IN_PACKED, "offsets": {0: torch.export.Dim("starts")}},
    ),
    "dropout_add_layer_norm": Varying(
        dropout_add_layer_norm,
        [
            tensors_of(dropout_add_layer_norm_case(layout.sizes, CHANNELS, p=0.25, seed=seed))
            for seed, layout in enumerate(PADDED)
        ],
        {"branch": IN_PADDED, "residual": IN_PADDED, "seed": {}},
    ),
    "linear_cross_entropy": Varying(
        mean_cross_entropy,
        [tensors_of(linear_cross_entropy_case(rows, 31, CHANNELS)) for rows in (12, 3, 50)],
        {"hidden": {0: ROWS}, "target": {0: ROWS}},
    ),
    "linear_cross_entropy sampled": Varying(
        sampled_cross_entropy,
        [
            tensors_of(linear_cross_entropy_case(rows, items, CHANNELS, count, log_q=True))
            for rows, items, count in ((12, 31, 5), (3, 40, 17), (50, 20, 8))
        ],
        {
            "hidden": {0: ROWS},
            "target": {0: ROWS},
            "weight": {0: ITEMS},
            "bias": {0: ITEMS},
            "log_q": {0: ITEMS},
            "candidates": {0: torch.export.Dim("candidates")},
        },
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_exports_with_dynamic_sizes(case: Varying) -> None:
    module, inputs = case.module(), case.inputs()
    dynamic_shapes = (tuple(case.dynamic.get(name) for name in module.names),)
    program = torch.export.export(module, inputs[0], dynamic_shapes=dynamic_shapes)
    for arguments in inputs:
        torch.testing.assert_close(program.module()(*arguments), module(*arguments))


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "aot_eager") for name in CASES), ("hyena_mixer packed", "inductor")],
)
@pytest.mark.slow
def test_compiles_once_with_backward(name: str, backend: str) -> None:
    """One graph for all inputs, and the eager numbers, gradients included."""
    module, inputs = CASES[name].module(), CASES[name].inputs()
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


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_compiles_once_for_one_segment_and_for_several(layout: str) -> None:
    """How many states a forward pass saves, none or many, is a size like others."""
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def compiled(u: Tensor, coeffs: Tensor, decay: Tensor, offsets: Tensor | None) -> Tensor:
        return ops.legendre_conv(u, coeffs, decay, 2000, offsets=offsets)

    for batch, length in ((3, 40), (2, 300), (4, 900)):
        u = random(batch, length, 7, seed=1).requires_grad_()
        offsets = None
        if layout == "packed":
            u = u.detach().flatten(0, 1).requires_grad_()
            offsets = torch.arange(batch + 1) * length
        parameters = random(7, 9, seed=2).requires_grad_(), torch.full((7,), 0.01, dtype=torch.float64)
        gradients = [
            torch.autograd.grad(op(u, *parameters, offsets).square().sum(), (u, parameters[0]))
            for op in (compiled, lambda *a: ops.legendre_conv(*a[:3], 2000, offsets=a[3]))
        ]
        for actual, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected)
    assert counter.frame_count == 1


def test_exports_with_any_number_of_coefficients() -> None:
    """Also where they need a gradient: a symbol stays one."""

    class Convolution(torch.nn.Module):
        def forward(self, u: Tensor, coeffs: Tensor, decay: Tensor) -> Tensor:
            return ops.legendre_conv(u, coeffs, decay, 2000)

    def inputs(num_coeffs: int) -> tuple[Tensor, ...]:
        coeffs = random(4, num_coeffs, seed=2).requires_grad_()
        return random(2, 600, 4, seed=1), coeffs, torch.full((4,), 0.01, dtype=torch.float64)

    sizes = ({}, {1: torch.export.Dim("N", min=2, max=40)}, {})
    program = torch.export.export(Convolution(), inputs(9), dynamic_shapes=sizes)
    for num_coeffs in (5, 17):
        arguments = inputs(num_coeffs)
        torch.testing.assert_close(program.module()(*arguments), Convolution()(*arguments))
