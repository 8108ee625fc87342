from __future__ import annotations

import pytest
import torch
from op_cases import Arguments, packed, padded, short_conv_case
from op_checks import DEVICES, HALF_TYPES, LENGTHS, assert_matches_oracle, converted
from rejects import (
    FILTER,
    VECTOR,
    U,
    activation_rows,
    assert_backward_rejects_a_wrong_gradient,
    assert_rejects,
    filter_rows,
    offsets_rows,
    parameter_rows,
    rejected,
    starts,
)
from varying import (
    CHANNELS,
    IN_OFFSETS,
    IN_PACKED,
    IN_PADDED,
    PACKED,
    PADDED,
    Varying,
    assert_compiles_once,
    assert_exports,
)

from hyenarec import ops


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_matches_oracle(length: int, dtype: torch.dtype, device: str) -> None:
    assert_matches_oracle("short_conv", short_conv_case(padded(3, length), 20), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 7, 64, 200])
@pytest.mark.instruction_sets
def test_matches_oracle_in_16_bits(length: int, device: str) -> None:
    for dtype in HALF_TYPES[device]:
        assert_matches_oracle("short_conv", short_conv_case(padded(2, length), 17), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", range(1, 9))
def test_widths(width: int, bias: bool, device: str) -> None:
    for length in (20, 3):
        arguments = short_conv_case(padded(2, length), 5, width, bias)
        assert_matches_oracle("short_conv", arguments, torch.float64, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (2, 9, 1), (1, 1, 1), (40, 33, 130), (3, 2000, 64)]
)
@pytest.mark.instruction_sets
def test_shapes(shape: tuple[int, int, int], device: str) -> None:
    batch, length, channels = shape
    assert_matches_oracle(
        "short_conv", short_conv_case(padded(batch, length), channels), torch.float32, device
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "lengths",
    [(), (0,), (0, 0), (1,), (5,), (3, 0, 7, 1, 12), (0, 4, 0, 0, 2, 0), (1, 1, 1, 1), (700, 1, 2, 900)],
    ids=str,
)
def test_packed_matches_oracle(lengths: tuple[int, ...], device: str) -> None:
    layout = packed(*lengths)
    assert_matches_oracle("short_conv", short_conv_case(layout, width=4), torch.float64, device)
    assert_matches_oracle("short_conv", short_conv_case(layout, 70, width=8), torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
def test_packed_equals_padded_equals_single(device: str) -> None:
    """To the last bit: what is beside a sequence leaves no trace."""
    lengths = (9, 1, 40, 0, 3)
    arguments = converted(short_conv_case(packed(*lengths), 33), torch.float32, device)
    results = ops.short_conv(**arguments).split(lengths)
    weight, bias = arguments["weight"], arguments["bias"]
    sequences = arguments["u"].split(lengths)
    padded_input = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=5.0)
    padded_results = ops.short_conv(padded_input, weight, bias)
    for i, length in enumerate(lengths):
        assert torch.equal(padded_results[i, :length], results[i])
        assert torch.equal(ops.short_conv(sequences[i][None], weight, bias)[0], results[i])


GOOD: Arguments = {"u": U, "weight": FILTER, "bias": VECTOR}
PACKED_GOOD: Arguments = {"u": U[0].repeat(2, 1)}  # 10 events


@rejected(
    "short_conv",
    activation_rows(GOOD, "u", "[B, L, D] when no offsets are given"),
    parameter_rows(GOOD, "u", {"weight": "[D, W]", "bias": "[D]"}),
    filter_rows(GOOD, "weight", "[D, W]"),
    offsets_rows(GOOD, PACKED_GOOD, "u", "[total, D]"),
)
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects("short_conv", GOOD | change, message)


def test_accepts_what_the_rows_start_from() -> None:
    ops.short_conv(**GOOD)
    ops.short_conv(**GOOD | PACKED_GOOD | starts(0, 4, 10))


def test_backward_rejects_a_wrong_gradient() -> None:
    assert_backward_rejects_a_wrong_gradient("short_conv", GOOD, "the shape of u")


VARYING = {
    "short_conv": Varying(
        ops.short_conv, [short_conv_case(layout, CHANNELS) for layout in PADDED], {"u": IN_PADDED}
    ),
    "short_conv packed": Varying(
        ops.short_conv,
        [short_conv_case(layout, CHANNELS) for layout in PACKED],
        {"u": IN_PACKED, "offsets": IN_OFFSETS},
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
