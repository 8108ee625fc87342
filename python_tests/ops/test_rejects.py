"""Wrong arguments of every operator: a sentence that names the argument, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

import pytest
import torch
from op_cases import Arguments
from torch import Tensor

from hyenarec import ops

Row = tuple[str, Arguments, str]  # operator, what is changed in a good call, the sentence

U, X = torch.ones(2, 5, 4), torch.ones(2, 5, 12)
VECTOR, WIDE_VECTOR = torch.ones(4), torch.ones(12)
KERNEL, COEFFS = torch.ones(4, 5), torch.ones(4, 3)
FILTER, WIDE_FILTER = torch.ones(4, 3), torch.ones(12, 3)
GATES = {"pre_gate": U, "post_gate": U}

GOOD: dict[str, Arguments] = {
    "legendre_kernel": {"coeffs": COEFFS, "decay": VECTOR, "horizon": 10, "length": 6},
    "fft_conv": {"u": U, "kernel": KERNEL, "skip": VECTOR, **GATES},
    "short_conv": {"u": U, "weight": FILTER, "bias": VECTOR},
    "legendre_conv": {"u": U, "coeffs": COEFFS, "decay": VECTOR, "horizon": 7, "skip": VECTOR, **GATES},
    "hyena_mixer": {
        "x": X,
        "short_weight": WIDE_FILTER,
        "short_bias": WIDE_VECTOR,
        "coeffs": COEFFS,
        "decay": VECTOR,
        "horizon": 7,
        "skip": VECTOR,
    },
    "dropout_add_layer_norm": {
        "branch": U,
        "residual": U,
        "weight": VECTOR,
        "bias": VECTOR,
        "p": 0.1,
        "eps": 1e-5,
        "seed": torch.tensor(5),
    },
    "linear_cross_entropy": {
        "hidden": torch.ones(3, 4),
        "weight": torch.ones(6, 4),
        "bias": torch.ones(6),
        "target": torch.tensor([0, -1, 5]),
        "candidates": torch.tensor([5, 1]),
        "log_q": torch.ones(6),
        "label_smoothing": 0.1,
        "reduction": "none",
    },
}
# The same calls with 10 packed events.
PACKED: dict[str, Arguments] = {
    "short_conv": {"u": U[0].repeat(2, 1)},
    "legendre_conv": {"u": U[0].repeat(2, 1), "pre_gate": None, "post_gate": None},
    "hyena_mixer": {"x": X[0].repeat(2, 1)},
}
# Parameters beside an activation: their layout, the symbol of their first dimension, the activation's name.
PARAMETERS = [
    ("fft_conv", "kernel", "[D, K]", "D = 4", "u"),
    ("fft_conv", "skip", "[D]", "D = 4", "u"),
    ("short_conv", "weight", "[D, W]", "D = 4", "u"),
    ("short_conv", "bias", "[D]", "D = 4", "u"),
    ("legendre_conv", "coeffs", "[D, N]", "D = 4", "u"),
    ("legendre_conv", "decay", "[D]", "D = 4", "u"),
    ("legendre_conv", "skip", "[D]", "D = 4", "u"),
    ("hyena_mixer", "short_weight", "[3D, W]", "3D = 12", "x"),
    ("hyena_mixer", "short_bias", "[3D]", "3D = 12", "x"),
    ("hyena_mixer", "coeffs", "[D, N]", "D = 4", "x"),
    ("hyena_mixer", "decay", "[D]", "D = 4", "x"),
    ("hyena_mixer", "skip", "[D]", "D = 4", "x"),
]


def shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def parameters() -> Iterator[Row]:
    for op, name, layout, size, activation in PARAMETERS:
        good = GOOD[op][name]
        yield op, {name: good[..., None]}, f"{name} must be {layout}, got {shape(good[..., None])}"
        yield op, {name: good[1:]}, f"{name} must be {layout} with {size}, got {shape(good[1:])}"
        yield op, {name: good.double()}, f"{name} must be Float beside this {activation}, got Double"
        yield op, {name: good.to("meta")}, f"{name} must be on cpu like {activation}, got meta"
    in_16_bits = {"u": U.bfloat16(), "kernel": KERNEL.bfloat16()}
    yield "fft_conv", in_16_bits, "kernel must be Float beside this u, got BFloat16"


def activations() -> Iterator[Row]:
    types = "float32, float64, bfloat16 or float16"
    for op, name, layout in (
        ("fft_conv", "u", "[B, L, D]"),
        ("short_conv", "u", "[B, L, D] when no offsets are given"),
        ("legendre_conv", "u", "[B, L, D] when no offsets are given"),
        ("hyena_mixer", "x", "[B, L, 3D] when no offsets are given"),
    ):
        good = GOOD[op][name]
        yield op, {name: good[0]}, f"{name} must be {layout}, got {shape(good[0])}"
        yield op, {name: good.int()}, f"{name} must be {types}, got Int"
        half = {gate: U.half() for gate in GATES if gate in GOOD[op]} | {name: good.half()}
        yield op, half, f"{name} must be float32, float64 or bfloat16 on the CPU, got Half"
    wrong = {"x": X[..., 1:]}
    yield "hyena_mixer", wrong, "x must be [.., 3D], the channels of q, k and v side by side, got [2, 5, 11]"


def gates() -> Iterator[Row]:
    like_u = "must have the shape of u, [2, 5, 4]"
    for op in ("fft_conv", "legendre_conv"):
        for gate in GATES:
            yield op, {gate: U[:1]}, f"{gate} {like_u}, got [1, 5, 4]"
            yield op, {gate: U[0]}, f"{gate} {like_u}, got [5, 4]"
            yield op, {gate: U.double()}, f"{gate} must be Float like u, got Double"
            yield op, {gate: U.to("meta")}, f"{gate} must be on cpu like u, got meta"


def offsets() -> Iterator[Row]:
    def given(*values: int) -> Arguments:
        return {"offsets": torch.tensor(values, dtype=torch.int64)}

    for op, name, layout in (
        ("short_conv", "u", "[total, D]"),
        ("legendre_conv", "u", "[total, D]"),
        ("hyena_mixer", "x", "[total, 3D]"),
    ):
        rank = f"{name} must be {layout} when offsets are given, got {shape(GOOD[op][name])}"
        yield op, given(0, 10), rank
        for change, message in [
            ({"offsets": torch.tensor([[0, 10]])}, "offsets must be [S + 1], got [1, 2]"),
            (given(), "offsets must be [S + 1] with S >= 0, got [0]"),
            ({"offsets": torch.tensor([0, 10]).int()}, "offsets must be Long, got Int"),
            (
                {"offsets": torch.tensor([0, 10], device="meta")},
                f"offsets must be on cpu like {name}, got meta",
            ),
            (given(1, 10), "offsets must start at 0, got 1"),
            (given(0, 6, 4, 10), "offsets must not decrease, got 6 before 4 at sequence 1"),
            (given(0, 9), "offsets must end at the number of events = 10, got 9"),
            (given(0, 11), "offsets must end at the number of events = 10, got 11"),
            (given(0), "offsets must end at the number of events = 10, got 0"),
        ]:
            yield op, PACKED[op] | change, message
    for op in ("legendre_conv", "hyena_mixer"):
        message = "offsets must describe sequences of at most horizon = 7 events, got one of 8"
        yield op, PACKED[op] | given(0, 2, 10), message


def legendre_parameters() -> Iterator[Row]:
    finite = "decay must be finite and not negative"
    for op in ("legendre_kernel", "legendre_conv", "hyena_mixer"):
        yield op, {"decay": torch.tensor([1, 1, torch.nan, 1])}, f"{finite}, got nan for channel 2"
        yield op, {"decay": torch.tensor([1, -0.5, 1, 1])}, f"{finite}, got -0.5 for channel 1"
        yield op, {"decay": torch.tensor([1, 1, 1, torch.inf])}, f"{finite}, got inf for channel 3"
        yield op, {"horizon": 0, "length": 0}, "horizon must be at least 1, got 0"
    too_long = "with L at most the horizon = 4, got"
    yield "legendre_conv", {"horizon": 4}, f"u must be [B, L, D] {too_long} [2, 5, 4]"
    yield "hyena_mixer", {"horizon": 4}, f"x must be [B, L, 3D] {too_long} [2, 5, 12]"
    for op, change, message in [
        ("legendre_kernel", {"coeffs": VECTOR}, "coeffs must be [D, N], got [4]"),
        ("legendre_kernel", {"coeffs": COEFFS.half()}, "coeffs must be float32 or float64, got Half"),
        ("legendre_kernel", {"coeffs": COEFFS.int()}, "coeffs must be float32 or float64, got Int"),
        ("legendre_kernel", {"decay": VECTOR[:, None]}, "decay must be [D], got [4, 1]"),
        ("legendre_kernel", {"decay": VECTOR[1:]}, "decay must be [D] with D = 4, got [3]"),
        ("legendre_kernel", {"decay": VECTOR.double()}, "decay must be Float like coeffs, got Double"),
        ("legendre_kernel", {"decay": VECTOR.to("meta")}, "decay must be on cpu like coeffs, got meta"),
        ("legendre_kernel", {"length": -1}, "length must be at least 0, got -1"),
        ("legendre_kernel", {"length": 11}, "length must be at most the horizon = 10, got 11"),
    ]:
        yield op, change, message


def short_filters() -> Iterator[Row]:
    for op, name, layout, channels in (
        ("short_conv", "weight", "[D, W]", 4),
        ("hyena_mixer", "short_weight", "[3D, W]", 12),
    ):
        for width in (0, 9):
            message = f"{name} must be {layout} with 1 <= W <= 8, got [{channels}, {width}]"
            yield op, {name: torch.ones(channels, width)}, message


def norms() -> Iterator[Row]:
    op, types = "dropout_add_layer_norm", "float32, float64, bfloat16 or float16"
    for name in ("branch", "residual"):
        yield op, {name: U.int()}, f"{name} must be {types}, got Int"
        yield op, {name: U.half()}, f"{name} must be float32, float64 or bfloat16 on the CPU, got Half"
    for name in ("weight", "bias"):
        for wrong, message in [
            (VECTOR[None], "must be [D], got [1, 4]"),
            (VECTOR[1:], "must be [D] with D = 4, got [3]"),
            (VECTOR.double(), "must be Float like the sum, got Double"),
            (VECTOR.bfloat16(), "must be Float like the sum, got BFloat16"),
            (VECTOR.to("meta"), "must be on cpu like branch, got meta"),
        ]:
            yield op, {name: wrong}, f"{name} {message}"
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
        yield op, change, message


def losses() -> Iterator[Row]:
    op = "linear_cross_entropy"
    good = GOOD[op]
    layouts = [("hidden", "[M, D]"), ("weight", "[V, D]"), ("bias", "[V]"), ("target", "[M]")]
    for name, layout in [*layouts, ("candidates", "[K]"), ("log_q", "[V]")]:
        message = f"{name} must be {layout}, got {shape(good[name][..., None])}"
        yield op, {name: good[name][..., None]}, message
        if name != "hidden":
            yield op, {name: good[name].to("meta")}, f"{name} must be on cpu like hidden, got meta"
    for name, layout, size in [
        ("target", "[M]", "M = 3"),
        ("bias", "[V]", "V = 6"),
        ("log_q", "[V]", "V = 6"),
    ]:
        yield op, {name: good[name][1:]}, f"{name} must be {layout} with {size}, got {shape(good[name][1:])}"
    for change, message in [
        ({"hidden": good["hidden"].int()}, "hidden must be float32, float64, bfloat16 or float16, got Int"),
        ({"weight": good["weight"][:, 1:]}, "weight must be [V, D] with D = 4, got [6, 3]"),
        ({"weight": good["weight"][:0]}, "weight must be [V, D] with V >= 1, got [0, 4]"),
        ({"weight": good["weight"].bfloat16()}, "weight must be Float like hidden, got BFloat16"),
        ({"bias": good["bias"].double()}, "bias must be Float like hidden, got Double"),
        ({"target": good["target"].int()}, "target must be Long, got Int"),
        ({"candidates": good["candidates"].int()}, "candidates must be Long, got Int"),
        ({"log_q": good["log_q"].double()}, "log_q must be Float beside this hidden, got Double"),
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
        yield op, change, message
    rounded = {name: good[name].bfloat16() for name in ("hidden", "weight")}
    yield op, rounded | {"bias": good["bias"].half()}, "bias must be Float or like hidden, got Half"
    half = {name: good[name].half() for name in ("hidden", "weight")}
    yield op, half, "hidden must be float32, float64 or bfloat16 on the CPU, got Half"


ROWS = list(
    chain(
        parameters(),
        activations(),
        gates(),
        offsets(),
        legendre_parameters(),
        short_filters(),
        norms(),
        losses(),
    )
)


@pytest.mark.parametrize(("op", "change", "message"), ROWS, ids=[f"{row[0]}: {row[2]}" for row in ROWS])
def test_rejects(op: str, change: Arguments, message: str) -> None:
    """The same sentence with and without autograd."""
    accepted = torch.ops.hyenarec.__getattr__(op).default._schema.arguments
    names = {argument.name for argument in accepted}
    arguments = {name: value for name, value in (GOOD[op] | change).items() if name in names}
    sentence = re.escape(f"{op}: {message}")
    with pytest.raises(RuntimeError, match=sentence):
        getattr(ops, op)(**arguments)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=sentence):
        getattr(ops, op)(**arguments)


@pytest.mark.parametrize("op", GOOD)
def test_accepts_what_the_rows_start_from(op: str) -> None:
    getattr(ops, op)(**GOOD[op])
    if op in PACKED:
        getattr(ops, op)(**GOOD[op] | PACKED[op] | {"offsets": torch.tensor([0, 4, 10])})


@pytest.mark.parametrize(
    ("op", "layout"),
    [
        ("legendre_kernel", "[D, length]"),
        ("fft_conv", "the shape of u"),
        ("short_conv", "the shape of u"),
        ("legendre_conv", "the shape of u"),
        ("hyena_mixer", "[B, L, D]"),
        ("linear_cross_entropy", "[M]"),
    ],
)
def test_backward_rejects_a_wrong_gradient(op: str, layout: str) -> None:
    overload = getattr(torch.ops.hyenarec, f"{op}_backward").default
    arguments = {argument.name: GOOD[op].get(argument.name) for argument in overload._schema.arguments}
    if "needs_grad" in arguments:
        count = {"short_conv": 3, "linear_cross_entropy": 3, "fft_conv": 5}.get(op, 6)
        arguments["needs_grad"] = [True] * count
    good = getattr(ops, op)(**GOOD[op])
    overload(**arguments | {"grad": good})
    for wrong in (good[1:], good[..., None]):
        with pytest.raises(RuntimeError, match=re.escape(f"{op}_backward: grad must ")) as caught:
            overload(**arguments | {"grad": wrong})
        assert layout in str(caught.value)
        assert f"got {shape(wrong)}" in str(caught.value)
    with pytest.raises(RuntimeError, match=f"{op}_backward: grad must be Float"):
        overload(**arguments | {"grad": good.double()})
    with pytest.raises(RuntimeError, match=f"{op}_backward: grad must be on cpu"):
        overload(**arguments | {"grad": good.to("meta")})
