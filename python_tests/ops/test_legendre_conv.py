from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from op_cases import (
    LARGE_RESULTS,
    OPTIONAL,
    PACKED_LENGTHS,
    SCAN_LENGTHS,
    SEGMENT_LENGTHS,
    Arguments,
    Layout,
    MakeDecay,
    fast_decay,
    learned_decay,
    legendre_conv_case,
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
    differentiable,
    error,
    solve,
    threads,
)
from rejects import (
    COEFFS,
    VECTOR,
    U,
    activation_rows,
    assert_backward_rejects_a_wrong_gradient,
    assert_rejects,
    gate_rows,
    legendre_rows,
    offsets_rows,
    parameter_rows,
    rejected,
    starts,
)
from torch import Tensor, library
from torch._dynamo.testing import CompileCounterWithBackend
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
    without_lengths,
)

from hyenarec import ops


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make_decay", [no_decay, learned_decay, fast_decay])
@pytest.mark.parametrize(("horizon", "length"), SCAN_LENGTHS)
def test_matches_oracle(horizon: int, length: int, make_decay: MakeDecay, device: str) -> None:
    """Any place where chunks and horizon end, any number of coefficients, also more than lags."""
    decay = make_decay(3, horizon)
    for coefficients in (0, 1, 2, 9, 17, 33, 40):
        arguments = legendre_conv_case(padded(2, length), 3, coefficients, horizon, decay=decay)
        assert_matches_oracle("legendre_conv", arguments, torch.float64, device, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make_decay", [no_decay, learned_decay])
@pytest.mark.parametrize(("horizon", "length", "coefficients"), SEGMENT_LENGTHS)
def test_segments_match_oracle(
    horizon: int, length: int, coefficients: int, make_decay: MakeDecay, device: str
) -> None:
    decay = make_decay(3, horizon)
    arguments = legendre_conv_case(padded(1, length), 3, coefficients, horizon, decay=decay)
    assert_matches_oracle("legendre_conv", arguments, torch.float64, device, 1e-12)


LONG_PACKED = (600, 513, 40, 512, 511, 0, 257, 256, 255, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.instruction_sets
def test_packed_segments_match_oracle(device: str) -> None:
    """Sequences of a task that leave it in different segments, in different chunks of them."""
    arguments = legendre_conv_case(packed(*LONG_PACKED), 5, 9, 600)
    assert_matches_oracle("legendre_conv", arguments, torch.float64, device, 1e-12)


def test_long_history_has_the_same_bits_in_any_batch() -> None:
    arguments = converted(legendre_conv_case(packed(*LONG_PACKED), 20, 9, 600), torch.float32, "cpu")
    of_all = ops.legendre_conv(**arguments).split(LONG_PACKED)
    per_event = {name: arguments[name].split(LONG_PACKED) for name in ("u", "pre_gate", "post_gate")}
    for i, length in enumerate(LONG_PACKED):
        alone = arguments | {name: parts[i] for name, parts in per_event.items()}
        alone["offsets"] = torch.tensor([0, length])
        assert torch.equal(ops.legendre_conv(**alone), of_all[i]), length


@pytest.mark.parametrize(("channels", "dtype"), LARGE_RESULTS)
@pytest.mark.instruction_sets
@pytest.mark.slow
def test_large_results_have_all_channels(channels: int, dtype: torch.dtype) -> None:
    layout = padded(14, 2**18 // channels)
    arguments = converted(legendre_conv_case(layout, channels, 9), dtype, "cpu")
    assert_each_sequence_is_the_same_alone("legendre_conv", arguments, {"u", "pre_gate", "post_gate"})


def test_backward_without_saved_states() -> None:
    """Whoever calls the backward operator by itself need not have them: the same bits."""
    arguments = converted(legendre_conv_case(packed(*LONG_PACKED), 20, 9, 600), torch.float32, "cpu")
    grad = random(*arguments["u"].shape, seed=7).float()
    _, gradients = solve(ops.legendre_conv, arguments, grad)
    alone = torch.ops.hyenarec.legendre_conv_backward(grad, **detached(arguments), needs_grad=[True] * 6)
    for expected, gradient in zip(gradients.values(), alone, strict=True):
        assert torch.equal(expected, gradient)


@pytest.mark.parametrize(
    ("layout", "rows"), [(padded(3, 700), 8), (padded(0, 700), 2), (packed(*LONG_PACKED), 13)]
)
def test_opcheck_with_states(layout: Layout, rows: int) -> None:
    """Segments are of 256 events here: a sequence of 700 has two carried states. Two rows are never used."""
    arguments = detached(converted(legendre_conv_case(layout, 5, 9, 700), torch.float32, "cpu"))
    op = torch.ops.hyenarec.legendre_conv_with_states.default
    library.opcheck(op, (), arguments)
    assert op(**arguments)[1].shape == (rows, 9, 5)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (torch.zeros(5, 9, 5), r"states must be \[rows, N, D\] with rows = 8, got \[5, 9, 5\]"),
        (torch.zeros(8, 9), r"states must be \[rows, N, D\], got \[8, 9\]"),
        (torch.zeros(8, 9, 5).double(), "states must be Float like coeffs, got Double"),
    ],
)
def test_other_states_are_refused(states: Tensor, message: str) -> None:
    arguments = detached(converted(legendre_conv_case(padded(3, 700), 5, 9, 700), torch.float32, "cpu"))
    arguments |= {"grad": arguments["u"], "needs_grad": [True] * 6, "states": states}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.hyenarec.legendre_conv_backward(**arguments)


def test_gradcheck_of_several_segments() -> None:
    arguments = converted(legendre_conv_case(packed(300, 0, 7, 257), 2, 3, 600), torch.float64, "cpu")
    leaves = differentiable(arguments)

    def op(*values: Tensor) -> Tensor:
        return ops.legendre_conv(**arguments | dict(zip(leaves, values, strict=True)))

    torch.autograd.gradcheck(op, tuple(leaves.values()), fast_mode=True)


def test_large_results_of_tasks_that_do_not_fill_lines() -> None:
    """Rows of 160 bfloat16 do, one vector of channels does not: so narrow are tasks of few sequences."""
    arguments = converted(legendre_conv_case(padded(2, 12_000), 160, 9), torch.bfloat16, "cpu")
    expected, expected_gradients = solve(ops.legendre_conv, arguments)
    with threads(6):
        out, gradients = solve(ops.legendre_conv, arguments)
    assert torch.equal(out, expected)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected_gradients[name]), name


def test_long_inputs_gradient_needs_no_other() -> None:
    """Without the parameters' gradients no state is kept: the same bits all the same."""
    arguments = converted(legendre_conv_case(packed(*LONG_PACKED), 20, 9, 600), torch.float32, "cpu")
    _, expected = solve(ops.legendre_conv, arguments)
    only_u = {
        name: value.detach() if isinstance(value, Tensor) and name != "u" else value
        for name, value in arguments.items()
    }
    _, gradients = solve(ops.legendre_conv, only_u)
    assert torch.equal(gradients["u"], expected["u"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [0, 1, 3, 16, 17, 64, 70])
@pytest.mark.instruction_sets
def test_channels(channels: int, dtype: torch.dtype, device: str) -> None:
    for coefficients in (9, 17):
        arguments = legendre_conv_case(padded(3, 100), channels, coefficients, 130)
        tolerance = 1e-12 if dtype == torch.float64 else 5e-6
        assert_matches_oracle("legendre_conv", arguments, dtype, device, tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [0, 1, 40])
def test_batches(batch: int, device: str) -> None:
    assert_matches_oracle(
        "legendre_conv", legendre_conv_case(padded(batch, 70), 5, 9), torch.float64, device, 1e-12
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", PACKED_LENGTHS, ids=str)
def test_packed_matches_oracle(lengths: tuple[int, ...], device: str) -> None:
    for channels, coefficients, dtype, tolerance in (
        (5, 9, torch.float64, 1e-12),
        (17, 17, torch.float64, 1e-12),
        (70, 17, torch.float32, 5e-6),
    ):
        arguments = legendre_conv_case(packed(*lengths), channels, coefficients, 200)
        assert_matches_oracle("legendre_conv", arguments, dtype, device, tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [padded(3, 70), packed(70, 0, 3, 41)], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "optional",
    [names for count in range(4) for names in itertools.combinations(OPTIONAL, count)],
    ids="+".join,
)
def test_optional_arguments(optional: tuple[str, ...], layout: Layout, device: str) -> None:
    arguments = legendre_conv_case(layout, 9, 9, optional=optional)
    assert_matches_oracle("legendre_conv", arguments, torch.float64, device, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 7, 64, 200])
@pytest.mark.instruction_sets
def test_matches_oracle_in_16_bits(length: int, device: str) -> None:
    """Parameters are in float32 beside them, and so are their gradients."""
    for dtype, layout in itertools.product(HALF_TYPES[device], (padded(2, length), packed(length, 0, 1))):
        assert_matches_oracle("legendre_conv", legendre_conv_case(layout, 17, 9, 200), dtype, device)


def through_fft(u: Tensor, coeffs: Tensor, decay: Tensor, horizon: int, **optional: Tensor) -> Tensor:
    return ops.fft_conv(u, ops.legendre_kernel(coeffs, decay, horizon, u.shape[1]), **optional)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("horizon", "length", "coefficients"),
    [(1000, 777, 17), (2048, 2048, 33), (2049, 2049, 9), (4096, 4096, 17), (16384, 5000, 33)],
)
def test_is_fft_conv_with_a_legendre_kernel(
    horizon: int, length: int, coefficients: int, device: str
) -> None:
    arguments = converted(
        legendre_conv_case(padded(2, length), 3, coefficients, horizon), torch.float64, device
    )
    out, gradients = solve(ops.legendre_conv, arguments)
    expected_out, expected = solve(through_fft, arguments)
    # The kernel, evaluated in one go, has an error that grows with N: as in the tests of legendre_kernel.
    assert error(out, expected_out) < 1e-11
    for argument, gradient in gradients.items():
        assert error(gradient, expected[argument]) < 1e-11, argument


@pytest.mark.parametrize("device", DEVICES)
def test_packed_equals_padded_equals_single(device: str) -> None:
    """Forward and the gradient of u. Padding holds numbers that must not matter."""
    lengths = (90, 1, 200, 0, 33, 64)
    arguments = converted(
        legendre_conv_case(packed(*lengths), 33, 17, 200, optional=("skip",)), torch.float32, device
    )
    out, gradients = solve(ops.legendre_conv, arguments, torch.ones(sum(lengths), 33))
    parameters = {name: value for name, value in arguments.items() if name not in ("u", "offsets")}
    sequences = arguments["u"].detach().split(lengths)

    padding = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=5.0)
    grad = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True)
    in_padding, padded_gradients = solve(
        ops.legendre_conv, parameters | {"u": padding.requires_grad_()}, grad
    )
    for i, (length, one) in enumerate(zip(lengths, sequences, strict=True)):
        alone, alone_gradients = solve(
            ops.legendre_conv, parameters | {"u": one[None].requires_grad_()}, grad[i : i + 1, :length]
        )
        expected, expected_gradient = out.split(lengths)[i], gradients["u"].split(lengths)[i]
        assert error(alone[0], expected) < 1e-6
        assert error(in_padding[i, :length], expected) < 1e-6
        assert error(alone_gradients["u"][0], expected_gradient) < 1e-6
        assert error(padded_gradients["u"][i, :length], expected_gradient) < 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_slices_of_one_projection(device: str) -> None:
    """q, k, v as the model cuts them, and a gate that is expanded over the batch."""
    q, k, v = random(3, 70, 3 * 16).float().to(device).chunk(3, dim=-1)
    coeffs, decay = random(16, 9).float().to(device), torch.full((16,), 0.1, device=device)
    expected = ops.legendre_conv(v.contiguous(), coeffs, decay, 70, None, k.contiguous(), q.contiguous())
    assert torch.equal(ops.legendre_conv(v, coeffs, decay, 70, None, k, q), expected)
    expanded = q[:1].expand(3, -1, -1)
    expected = ops.legendre_conv(v, coeffs, decay, 70, None, expanded.contiguous())
    assert torch.equal(ops.legendre_conv(v, coeffs, decay, 70, None, expanded), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_decay_beyond_all_bounds_leaves_the_current_event(device: str) -> None:
    """P_n(-1) = (-1)^n is the kernel at lag 0; exp(-decay lag) must become 0 and nothing NaN."""
    decay = torch.full((3,), 3e38)
    arguments = converted(
        legendre_conv_case(padded(2, 100), 3, 9, optional=(), decay=decay), torch.float32, device
    )
    out, gradients = solve(ops.legendre_conv, arguments)
    at_lag_0 = arguments["coeffs"][:, ::2].sum(1) - arguments["coeffs"][:, 1::2].sum(1)
    assert error(out, at_lag_0 * arguments["u"]) < 1e-6
    assert not gradients["decay"].any()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_calls_from_several_threads_share_tables() -> None:
    """More horizons than the cache of tables holds, in histories that grow."""
    calls = [
        converted(legendre_conv_case(padded(1, length), 3, 9, horizon), torch.float32, "cpu")
        for length in (20, 70, 140)
        for horizon in range(140, 165)
    ]
    expected = [ops.legendre_conv(**arguments) for arguments in calls]
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: [ops.legendre_conv(**a) for a in calls], range(4)):
            assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))


GOOD: Arguments = {
    "u": U,
    "coeffs": COEFFS,
    "decay": VECTOR,
    "horizon": 7,
    "skip": VECTOR,
    "pre_gate": U,
    "post_gate": U,
}
PACKED_GOOD: Arguments = {"u": U[0].repeat(2, 1), "pre_gate": None, "post_gate": None}  # 10 events


@rejected(
    "legendre_conv",
    activation_rows(GOOD, "u", "[B, L, D] when no offsets are given"),
    parameter_rows(GOOD, "u", {"coeffs": "[D, N]", "decay": "[D]", "skip": "[D]"}),
    gate_rows(),
    offsets_rows(GOOD, PACKED_GOOD, "u", "[total, D]"),
    legendre_rows(),
    [({"horizon": 4}, "u must be [B, L, D] with L at most the horizon = 4, got [2, 5, 4]")],
)
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects("legendre_conv", GOOD | change, message)


def test_accepts_what_the_rows_start_from() -> None:
    ops.legendre_conv(**GOOD)
    ops.legendre_conv(**GOOD | PACKED_GOOD | starts(0, 4, 10))


def test_backward_rejects_a_wrong_gradient() -> None:
    assert_backward_rejects_a_wrong_gradient("legendre_conv", GOOD, "the shape of u")


def legendre_conv_over_the_batch(u: Tensor, coeffs: Tensor, decay: Tensor) -> Tensor:
    """The horizon varies, too."""
    return ops.legendre_conv(u, coeffs, decay, u.shape[1])


VARYING = {
    "legendre_conv": Varying(
        ops.legendre_conv,
        [legendre_conv_case(layout, CHANNELS, horizon=HORIZON) for layout in PADDED],
        {"u": IN_PADDED, "pre_gate": IN_PADDED, "post_gate": IN_PADDED},
    ),
    "legendre_conv packed": Varying(
        ops.legendre_conv,
        [legendre_conv_case(layout, CHANNELS, horizon=HORIZON) for layout in PACKED],
        {"u": IN_PACKED, "pre_gate": IN_PACKED, "post_gate": IN_PACKED, "offsets": IN_OFFSETS},
    ),
    "legendre_conv over the batch": Varying(
        legendre_conv_over_the_batch,
        [without_lengths(legendre_conv_case(layout, CHANNELS, optional=())) for layout in PADDED],
        {"u": IN_PADDED},
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
