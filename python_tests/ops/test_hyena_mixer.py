from __future__ import annotations

import itertools

import pytest
import torch
from op_cases import (
    LARGE_RESULTS,
    PACKED_LENGTHS,
    SCAN_LENGTHS,
    SEGMENT_LENGTHS,
    Arguments,
    Layout,
    MakeDecay,
    fast_decay,
    hyena_mixer_case,
    learned_decay,
    no_decay,
    packed,
    padded,
    random,
)
from op_checks import (
    DEVICES,
    HALF_TYPES,
    assert_each_sequence_is_the_same_alone,
    assert_matches_oracle,
    converted,
    detached,
    error,
    solve,
)
from rejects import (
    COEFFS,
    VECTOR,
    activation_rows,
    assert_backward_rejects_a_wrong_gradient,
    assert_rejects,
    filter_rows,
    legendre_rows,
    offsets_rows,
    parameter_rows,
    rejected,
    starts,
)
from torch import Tensor, library
from varying import (
    CHANNELS,
    HORIZON,
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
@pytest.mark.parametrize("make_decay", [no_decay, learned_decay, fast_decay])
@pytest.mark.parametrize(("horizon", "length"), SCAN_LENGTHS)
def test_matches_oracle(horizon: int, length: int, make_decay: MakeDecay, device: str) -> None:
    decay = make_decay(3, horizon)
    for coefficients in (0, 1, 9, 33):
        arguments = hyena_mixer_case(padded(2, length), 3, coefficients, horizon, decay=decay)
        assert_matches_oracle("hyena_mixer", arguments, torch.float64, device, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("horizon", "length", "coefficients"), SEGMENT_LENGTHS)
def test_segments_match_oracle(horizon: int, length: int, coefficients: int, device: str) -> None:
    arguments = hyena_mixer_case(padded(1, length), 3, coefficients, horizon)
    assert_matches_oracle("hyena_mixer", arguments, torch.float64, device, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", range(1, 9))
def test_widths(width: int, bias: bool, device: str) -> None:
    """Also sequences shorter than the filter, and chunks that start within its reach."""
    for layout in (padded(2, 70), padded(3, 2), packed(5, 0, 66, 1, 3)):
        arguments = hyena_mixer_case(layout, 5, 9, 70, width, bias)
        assert_matches_oracle("hyena_mixer", arguments, torch.float64, device, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [0, 1, 3, 16, 17, 64, 70])
@pytest.mark.instruction_sets
def test_channels(channels: int, dtype: torch.dtype, device: str) -> None:
    for coefficients in (9, 17):
        arguments = hyena_mixer_case(padded(3, 100), channels, coefficients, 130)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # one channel's gradients nearly cancel
        assert_matches_oracle("hyena_mixer", arguments, dtype, device, tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", PACKED_LENGTHS, ids=str)
def test_packed_matches_oracle(lengths: tuple[int, ...], device: str) -> None:
    for channels, width, dtype, tolerance in (
        (5, 4, torch.float64, 1e-12),
        (70, 3, torch.float32, 5e-6),
    ):
        arguments = hyena_mixer_case(packed(*lengths), channels, 9, 200, width)
        assert_matches_oracle("hyena_mixer", arguments, dtype, device, tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [0, 1, 40])
def test_batches(batch: int, device: str) -> None:
    arguments = hyena_mixer_case(padded(batch, 70), 5, 9)
    assert_matches_oracle("hyena_mixer", arguments, torch.float64, device, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 7, 64, 200])
@pytest.mark.instruction_sets
def test_matches_oracle_in_16_bits(length: int, device: str) -> None:
    for dtype, layout in itertools.product(HALF_TYPES[device], (padded(2, length), packed(length, 0, 1))):
        assert_matches_oracle("hyena_mixer", hyena_mixer_case(layout, 17, 9, 200), dtype, device)


def composed(
    x: Tensor,
    short_weight: Tensor,
    short_bias: Tensor | None,
    coeffs: Tensor,
    decay: Tensor,
    horizon: int,
    skip: Tensor,
    offsets: Tensor | None = None,
) -> Tensor:
    q, k, v = ops.short_conv(x, short_weight, short_bias, offsets).chunk(3, dim=-1)
    return ops.legendre_conv(v, coeffs, decay, horizon, skip, k, q, offsets)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize(
    "layout", [padded(4, 1000), packed(1000, 1, 0, 64, 333, 5)], ids=["padded", "packed"]
)
def test_equals_the_operators_it_fuses(
    layout: Layout, dtype: torch.dtype, tolerance: float, device: str
) -> None:
    arguments = converted(hyena_mixer_case(layout, 20, 17), dtype, device)
    out, gradients = solve(ops.hyena_mixer, arguments)
    expected_out, expected = solve(composed, arguments)
    assert error(out, expected_out) < tolerance
    for argument, gradient in gradients.items():
        assert error(gradient, expected[argument]) < tolerance, argument


@pytest.mark.parametrize(("channels", "dtype"), LARGE_RESULTS)
@pytest.mark.instruction_sets
@pytest.mark.slow
def test_large_results_have_all_channels(channels: int, dtype: torch.dtype) -> None:
    layout = padded(14, 2**18 // channels)
    arguments = converted(hyena_mixer_case(layout, channels, 9), dtype, "cpu")
    assert_each_sequence_is_the_same_alone("hyena_mixer", arguments, {"x"})


def test_backward_without_saved_states() -> None:
    arguments = converted(hyena_mixer_case(padded(3, 700), 20, 9), torch.float32, "cpu")
    out, gradients = solve(ops.hyena_mixer, arguments, grad := random(3, 700, 20, seed=7))
    backward = torch.ops.hyenarec.hyena_mixer_backward
    alone = backward(grad.to(out), **detached(arguments), needs_grad=[True] * 6)
    for expected, gradient in zip(gradients.values(), alone, strict=True):
        assert torch.equal(expected, gradient)


@pytest.mark.parametrize("layout", [padded(3, 700), packed(700, 0, 257)], ids=["padded", "packed"])
def test_opcheck_with_states(layout: Layout) -> None:
    arguments = detached(converted(hyena_mixer_case(layout, 5, 9), torch.float32, "cpu"))
    library.opcheck(torch.ops.hyenarec.hyena_mixer_with_states.default, (), arguments)


@pytest.mark.parametrize("device", DEVICES)
def test_packed_padded_and_single_sequences_agree(device: str) -> None:
    """In float32, with the gradients: summed over the same events, whatever lies between them."""
    lengths = (333, 1, 64, 200)
    arguments = converted(hyena_mixer_case(packed(*lengths), 20, 17, 333), torch.float32, device)
    x, offsets = arguments.pop("x").detach(), arguments.pop("offsets")
    sequences = x.split(lengths)
    parameters = [value for value in arguments.values() if isinstance(value, Tensor)]

    def results(rows: list[Tensor]) -> tuple[Tensor, ...]:
        out = torch.cat(rows)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=device).view_as(out)
        return (out, *torch.autograd.grad(out, parameters, weights))

    at_once = results([ops.hyena_mixer(x, **arguments, offsets=offsets)])
    rectangle = ops.hyena_mixer(torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), **arguments)
    rows = [row[:length] for row, length in zip(rectangle, lengths, strict=True)]
    alone = [ops.hyena_mixer(sequence[None], **arguments)[0] for sequence in sequences]
    for others in (results(rows), results(alone)):
        for other, expected in zip(others, at_once, strict=True):
            assert error(other, expected) < 1e-6


X = torch.ones(2, 5, 12)
GOOD: Arguments = {
    "x": X,
    "short_weight": torch.ones(12, 3),
    "short_bias": torch.ones(12),
    "coeffs": COEFFS,
    "decay": VECTOR,
    "horizon": 7,
    "skip": VECTOR,
}
PACKED_GOOD: Arguments = {"x": X[0].repeat(2, 1)}  # 10 events
LAYOUTS = {
    "short_weight": "[3D, W]",
    "short_bias": "[3D]",
    "coeffs": "[D, N]",
    "decay": "[D]",
    "skip": "[D]",
}


@rejected(
    "hyena_mixer",
    activation_rows(GOOD, "x", "[B, L, 3D] when no offsets are given"),
    parameter_rows(GOOD, "x", LAYOUTS),
    filter_rows(GOOD, "short_weight", "[3D, W]"),
    offsets_rows(GOOD, PACKED_GOOD, "x", "[total, 3D]"),
    legendre_rows(),
    [
        ({"x": X[..., 1:]}, "x must be [.., 3D], the channels of q, k and v side by side, got [2, 5, 11]"),
        ({"horizon": 4}, "x must be [B, L, 3D] with L at most the horizon = 4, got [2, 5, 12]"),
    ],
)
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects("hyena_mixer", GOOD | change, message)


def test_accepts_what_the_rows_start_from() -> None:
    ops.hyena_mixer(**GOOD)
    ops.hyena_mixer(**GOOD | PACKED_GOOD | starts(0, 4, 10))


def test_backward_rejects_a_wrong_gradient() -> None:
    assert_backward_rejects_a_wrong_gradient("hyena_mixer", GOOD, "[B, L, D]")


VARYING = {
    "hyena_mixer": Varying(
        ops.hyena_mixer,
        [hyena_mixer_case(layout, CHANNELS, horizon=HORIZON) for layout in PADDED],
        {"x": IN_PADDED},
    ),
    "hyena_mixer packed": Varying(
        ops.hyena_mixer,
        [hyena_mixer_case(layout, CHANNELS, horizon=HORIZON) for layout in PACKED],
        {"x": IN_PACKED, "offsets": IN_OFFSETS},
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


@pytest.mark.slow
def test_compiles_once_with_inductor() -> None:
    assert_compiles_once(VARYING["hyena_mixer packed"], "inductor")
