"""Wrong arguments and the sentences they raise: what the operators' tests have in common.

A row is a change of a correct call, and the sentence: it names the argument, what was expected and what came.
Rows that several operators have are made here, those of one operator stand in its own tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pytest
import torch
from op_cases import CONSTANTS, GATES, Arguments
from torch import Tensor

from hyenarec import ops

Row = tuple[Arguments, str]

U = torch.ones(2, 5, 4)
VECTOR = torch.ones(4)
COEFFS = FILTER = torch.ones(4, 3)
TYPES = "float32, float64, bfloat16 or float16"
TYPES_ON_CPU = "float32, float64 or bfloat16 on the CPU"


def shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def starts(*values: int) -> Arguments:
    return {"offsets": torch.tensor(values, dtype=torch.int64)}


def activation_rows(good: Arguments, name: str, layout: str) -> Iterator[Row]:
    activation = good[name]
    yield {name: activation[0]}, f"{name} must be {layout}, got {shape(activation[0])}"
    yield {name: activation.int()}, f"{name} must be {TYPES}, got Int"
    half = {gate: good[gate].half() for gate in GATES if gate in good} | {name: activation.half()}
    yield half, f"{name} must be {TYPES_ON_CPU}, got Half"


def parameter_rows(good: Arguments, activation: str, layouts: dict[str, str]) -> Iterator[Row]:
    """Parameters beside an activation, by their layouts."""
    for name, layout in layouts.items():
        value = good[name]
        size = f"{layout.strip('[]').partition(',')[0]} = {len(value)}"
        yield {name: value[..., None]}, f"{name} must be {layout}, got {shape(value[..., None])}"
        yield {name: value[1:]}, f"{name} must be {layout} with {size}, got {shape(value[1:])}"
        yield {name: value.double()}, f"{name} must be Float beside this {activation}, got Double"
        yield {name: value.to("meta")}, f"{name} must be on cpu like {activation}, got meta"


def gate_rows() -> Iterator[Row]:
    like_u = "must have the shape of u, [2, 5, 4]"
    for gate in GATES:
        yield {gate: U[:1]}, f"{gate} {like_u}, got [1, 5, 4]"
        yield {gate: U[0]}, f"{gate} {like_u}, got [5, 4]"
        yield {gate: U.double()}, f"{gate} must be Float like u, got Double"
        yield {gate: U.to("meta")}, f"{gate} must be on cpu like u, got meta"


def offsets_rows(good: Arguments, packed: Arguments, name: str, layout: str) -> Iterator[Row]:
    """`packed` is what changes in the good call for 10 packed events of the activation `name`."""
    yield starts(0, 10), f"{name} must be {layout} when offsets are given, got {shape(good[name])}"
    for offsets, message in [
        ({"offsets": torch.tensor([[0, 10]])}, "must be [S + 1], got [1, 2]"),
        (starts(), "must be [S + 1] with S >= 0, got [0]"),
        ({"offsets": torch.tensor([0, 10]).int()}, "must be Long, got Int"),
        ({"offsets": torch.tensor([0, 10], device="meta")}, f"must be on cpu like {name}, got meta"),
        (starts(1, 10), "must start at 0, got 1"),
        (starts(0, 6, 4, 10), "must not decrease, got 6 before 4 at sequence 1"),
        (starts(0, 9), "must end at the number of events = 10, got 9"),
        (starts(0, 11), "must end at the number of events = 10, got 11"),
        (starts(0), "must end at the number of events = 10, got 0"),
    ]:
        yield packed | offsets, f"offsets {message}"
    if "horizon" in good:
        message = f"sequences of at most horizon = {good['horizon']} events, got one of 8"
        yield packed | starts(0, 2, 10), f"offsets must describe {message}"


def filter_rows(good: Arguments, name: str, layout: str) -> Iterator[Row]:
    channels = len(good[name])
    for width in (0, 9):
        message = f"{name} must be {layout} with 1 <= W <= 8, got [{channels}, {width}]"
        yield {name: torch.ones(channels, width)}, message


def legendre_rows() -> Iterator[Row]:
    finite = "decay must be finite and not negative"
    yield {"decay": torch.tensor([1, 1, torch.nan, 1])}, f"{finite}, got nan for channel 2"
    yield {"decay": torch.tensor([1, -0.5, 1, 1])}, f"{finite}, got -0.5 for channel 1"
    yield {"decay": torch.tensor([1, 1, 1, torch.inf])}, f"{finite}, got inf for channel 3"
    yield {"horizon": 0}, "horizon must be at least 1, got 0"


def rejected(op: str, *rows: Iterable[Row]) -> pytest.MarkDecorator:
    """Gives a test each row as `change` and `message`."""
    every = [row for some in rows for row in some]
    return pytest.mark.parametrize(
        ("change", "message"), every, ids=[f"{op}: {message}" for _, message in every]
    )


def assert_rejects(op: str, arguments: Arguments, message: str) -> None:
    """The same sentence with and without autograd."""
    sentence = re.escape(f"{op}: {message}")
    with pytest.raises(RuntimeError, match=sentence):
        getattr(ops, op)(**arguments)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=sentence):
        getattr(ops, op)(**arguments)


def assert_backward_rejects_a_wrong_gradient(op: str, good: Arguments, layout: str) -> None:
    """The gradient at the output of the good call must be `layout`."""
    overload = getattr(torch.ops.hyenarec, f"{op}_backward").default
    arguments = {argument.name: good.get(argument.name) for argument in overload._schema.arguments}
    if "needs_grad" in arguments:
        schema = getattr(torch.ops.hyenarec, op).default._schema
        tensors = [argument.name for argument in schema.arguments if "Tensor" in str(argument.type)]
        arguments["needs_grad"] = [True] * len(set(tensors) - CONSTANTS)
    out = getattr(ops, op)(**good)
    overload(**arguments | {"grad": out})
    for wrong in (out[1:], out[..., None]):
        with pytest.raises(RuntimeError, match=re.escape(f"{op}_backward: grad must ")) as caught:
            overload(**arguments | {"grad": wrong})
        assert layout in str(caught.value)
        assert f"got {shape(wrong)}" in str(caught.value)
    with pytest.raises(RuntimeError, match=f"{op}_backward: grad must be Float"):
        overload(**arguments | {"grad": out.double()})
    with pytest.raises(RuntimeError, match=f"{op}_backward: grad must be on cpu"):
        overload(**arguments | {"grad": out.to("meta")})
