from __future__ import annotations

import pytest
import torch
from op_checks import (
    DEVICES,
    HALF_TYPES,
    LENGTHS,
    Arguments,
    Op,
    assert_compiles_once,
    assert_exports,
    assert_matches_oracle,
    assert_rejects,
    assert_second_derivative_raises,
    assert_takes_any_strides,
    converted,
    error,
    random,
    run_opcheck,
    solve,
)
from torch import Tensor

from hyenarec import ops


def case(batch: int = 2, length: int = 7, channels: int = 3, width: int = 3, bias: bool = True) -> Arguments:
    arguments = {"u": random(batch, length, channels, seed=1), "weight": random(channels, width, seed=2)}
    return arguments | ({"bias": random(channels, seed=3)} if bias else {})


def packed_case(sizes: tuple[int, ...] = (3, 0, 7, 1, 12), channels: int = 3, width: int = 4) -> Arguments:
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    arguments = case(1, sum(sizes), channels, width)
    return arguments | {"u": arguments["u"][0], "offsets": offsets}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_matches_oracle(length: int, dtype: torch.dtype, device: str) -> None:
    assert_matches_oracle("short_conv", case(3, length, 20), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 7, 64, 200])
def test_matches_oracle_in_16_bits(length: int, device: str) -> None:
    for dtype in HALF_TYPES[device]:
        assert_matches_oracle("short_conv", case(2, length, 17), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", range(1, 9))
def test_widths(width: int, bias: bool, device: str) -> None:
    assert_matches_oracle("short_conv", case(2, 20, 5, width, bias), torch.float64, device)
    assert_matches_oracle("short_conv", case(2, 3, 5, width, bias), torch.float64, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (2, 9, 1), (1, 1, 1), (40, 33, 130), (3, 2000, 64)]
)
def test_shapes(shape: tuple[int, int, int], device: str) -> None:
    assert_matches_oracle("short_conv", case(*shape), torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (0, 0), (1,), (5,), (3, 0, 7, 1, 12), (0, 4, 0, 0, 2, 0), (1, 1, 1, 1), (700, 1, 2, 900)],
    ids=str,
)
def test_packed_matches_oracle(sizes: tuple[int, ...], device: str) -> None:
    assert_matches_oracle("short_conv", packed_case(sizes), torch.float64, device)
    assert_matches_oracle("short_conv", packed_case(sizes, channels=70, width=8), torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
def test_packed_equals_padded_equals_single(device: str) -> None:
    """To the last bit: what is beside a sequence leaves no trace."""
    sizes = (9, 1, 40, 0, 3)
    arguments = converted(packed_case(sizes, channels=33), torch.float32, device)
    packed = ops.short_conv(**arguments).split(sizes)
    weight, bias = arguments["weight"], arguments["bias"]
    sequences = arguments["u"].split(sizes)
    padded_input = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=5.0)
    padded = ops.short_conv(padded_input, weight, bias)
    for i, size in enumerate(sizes):
        assert torch.equal(padded[i, :size], packed[i])
        assert torch.equal(ops.short_conv(sequences[i][None], weight, bias)[0], packed[i])


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device: str) -> None:
    for arguments in (case(), packed_case()):
        arguments = converted(arguments, torch.float64, device)
        torch.autograd.gradcheck(ops.short_conv, tuple(arguments.values()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "arguments", [case(), case(bias=False), packed_case()], ids=["bias", "no_bias", "packed"]
)
def test_opcheck(arguments: Arguments, device: str) -> None:
    run_opcheck("short_conv", arguments, device)


@pytest.mark.parametrize("device", DEVICES)
def test_takes_any_strides(device: str) -> None:
    assert_takes_any_strides("short_conv", case(2, 11, 9), device)
    assert_takes_any_strides("short_conv", packed_case(), device)


@pytest.mark.parametrize("device", DEVICES)
def test_one_event_with_a_stride_that_means_nothing(device: str) -> None:
    """[B, 1, D] from [1, B, D] keeps B * D as the stride between events, and still counts as contiguous."""
    arguments = converted(case(4, 1, 8), torch.float64, device)
    out, gradients = solve(ops.short_conv, arguments)
    grad = random(*out.shape, seed=7).to(device)
    u, odd_grad = (
        torch.empty(1, 4, 8).to(t).transpose(0, 1).copy_(t.detach()) for t in (arguments["u"], grad)
    )
    assert u.stride() == odd_grad.stride() == (8, 32, 1)
    assert u.is_contiguous()
    odd_out, odd_gradients = solve(ops.short_conv, arguments | {"u": u.requires_grad_()}, odd_grad)
    assert torch.equal(odd_out, out)
    assert all(torch.equal(odd_gradients[name], gradients[name]) for name in gradients)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_causality(dtype: torch.dtype, device: str) -> None:
    arguments = converted(case(2, 200, 37, 4), dtype, device)
    changed = arguments | {"u": arguments["u"].detach().clone()}
    changed["u"][:, 120:] *= -3
    out, other = ops.short_conv(**arguments), ops.short_conv(**changed)
    assert torch.equal(other[:, :120], out[:, :120])
    assert error(other[:, 120:], out[:, 120:]) > 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivative_raises(device: str) -> None:
    assert_second_derivative_raises("short_conv", case(), device)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_deterministic(device: str) -> None:
    arguments = converted(case(20, 300, 70), torch.float32, device)
    _, first = solve(ops.short_conv, arguments)
    _, second = solve(ops.short_conv, arguments)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_same_numbers_on_any_number_of_threads() -> None:
    arguments = converted(packed_case((1000, 3, 2000, 1), channels=70), torch.float32, "cpu")
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            out, gradients = solve(ops.short_conv, arguments)
            results.append([out, *gradients.values()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


U, WEIGHT = torch.ones(2, 5, 4), torch.ones(4, 3)
PACKED = {"u": torch.ones(10, 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(10, 4)}, r"u must be \[B, L, D\] when no offsets are given, got \[10, 4\]"),
        ({"u": U.int()}, "u must be float32, float64, bfloat16 or float16, got Int"),
        ({"u": U.half()}, "u must be float32, float64 or bfloat16 on the CPU, got Half"),
        ({"weight": torch.ones(4)}, r"weight must be \[D, W\], got \[4\]"),
        ({"weight": torch.ones(3, 3)}, r"weight must be \[D, W\] with D = 4, got \[3, 3\]"),
        ({"weight": torch.ones(4, 9)}, r"weight must be \[D, W\] with 1 <= W <= 8, got \[4, 9\]"),
        ({"weight": torch.ones(4, 0)}, r"weight must be \[D, W\] with 1 <= W <= 8, got \[4, 0\]"),
        ({"weight": WEIGHT.double()}, "weight must be Float beside this u, got Double"),
        ({"weight": WEIGHT.to("meta")}, "weight must be on cpu like u, got meta"),
        ({"bias": torch.ones(4, 1)}, r"bias must be \[D\], got \[4, 1\]"),
        ({"bias": torch.ones(3)}, r"bias must be \[D\] with D = 4, got \[3\]"),
        ({"bias": torch.ones(4).double()}, "bias must be Float beside this u, got Double"),
        ({"bias": torch.ones(4, device="meta")}, "bias must be on cpu like u, got meta"),
        (
            {"offsets": torch.tensor([0, 10])},
            r"u must be \[total, D\] when offsets are given, got \[2, 5, 4\]",
        ),
        (PACKED | {"offsets": torch.tensor([[0, 10]])}, r"offsets must be \[S \+ 1\], got \[1, 2\]"),
        (PACKED | {"offsets": torch.zeros(0).long()}, r"offsets must be \[S \+ 1\] with S >= 0, got \[0\]"),
        (PACKED | {"offsets": torch.tensor([0, 10]).int()}, "offsets must be Long, got Int"),
        (
            PACKED | {"offsets": torch.tensor([0, 10], device="meta")},
            "offsets must be on cpu like u, got meta",
        ),
        (PACKED | {"offsets": torch.tensor([1, 10])}, "offsets must start at 0, got 1"),
        (
            PACKED | {"offsets": torch.tensor([0, 6, 4, 10])},
            "offsets must not decrease, got 6 before 4 at sequence 1",
        ),
        (PACKED | {"offsets": torch.tensor([0, 9])}, "offsets must end at the number of events = 10, got 9"),
        (
            PACKED | {"offsets": torch.tensor([0, 11])},
            "offsets must end at the number of events = 10, got 11",
        ),
        (PACKED | {"offsets": torch.tensor([0])}, "offsets must end at the number of events = 10, got 0"),
    ],
)
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects("short_conv", {"u": U, "weight": WEIGHT} | change, message)


def inputs(*sizes: tuple[int, int]) -> list[tuple[Tensor, ...]]:
    weight, bias = random(4, 3).float(), random(4).float()
    return [(random(*size, 4).float(), weight, bias) for size in sizes]


def packed_inputs() -> list[tuple[Tensor, ...]]:
    weight, bias = random(4, 3).float(), random(4).float()
    # No two sizes of the first case are equal: the compiler would take them for the same symbol.
    offsets = [torch.tensor(o) for o in ([0, 4, 4, 9, 11, 12], [0, 0, 3, 7], [0, 20, 21, 45, 50])]
    return [(random(int(o[-1]), 4).float(), weight, bias, o) for o in offsets]


def test_exports_with_dynamic_batch_and_length() -> None:
    varies = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    assert_exports(Op(ops.short_conv, {}), inputs((2, 12), (3, 7), (5, 50)), (varies, (None, None)))


def test_exports_packed_with_dynamic_sizes() -> None:
    total, starts = {0: torch.export.Dim("total")}, {0: torch.export.Dim("starts")}
    assert_exports(Op(ops.short_conv, {}), packed_inputs(), (total, (None, None, starts)))


def test_compiles_once_for_all_lengths() -> None:
    assert_compiles_once(Op(ops.short_conv, {}), inputs((2, 12), (3, 7), (5, 50)), "aot_eager")


def test_compiles_once_packed() -> None:
    assert_compiles_once(Op(ops.short_conv, {}), packed_inputs(), "aot_eager")
