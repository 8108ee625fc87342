"""legendre_step over whole histories is legendre_conv, whose oracle it is compared with."""

from __future__ import annotations

import pytest
import torch
from op_cases import (
    SCAN_LENGTHS,
    Arguments,
    MakeDecay,
    fast_decay,
    learned_decay,
    legendre_conv_case,
    no_decay,
    padded,
    random,
)
from op_checks import DEVICES, HALF_TYPES, TOLERANCE, converted, error, threads
from torch import Tensor, library

from hyenarec import ops, reference

EVENTS = ("u", "pre_gate", "post_gate")


def case(batch: int, length: int, device: str, dtype: torch.dtype, **shape: object) -> Arguments:
    """The arguments of a legendre_conv over whole histories, without gradients."""
    arguments = converted(legendre_conv_case(padded(batch, length), **shape), dtype, device)  # type: ignore[arg-type]
    return {name: v.detach() if isinstance(v, Tensor) else v for name, v in arguments.items()}


def expected(arguments: Arguments) -> Tensor:
    exact = {
        name: v.double().cpu() if isinstance(v, Tensor) and v.is_floating_point() else v
        for name, v in arguments.items()
    }
    return reference.legendre_conv(**exact)


class Streams:
    """A batch of streams with the parameters of a legendre_conv; counts each stream's position."""

    def __init__(self, arguments: Arguments, batch: int) -> None:
        coeffs, self.horizon = arguments["coeffs"], arguments["horizon"]
        self.weights = ops.legendre_step_weights(
            coeffs, arguments["decay"], self.horizon, arguments.get("skip")
        )
        # A state is not read at position 0, so numbers in it must not matter.
        self.state = ops.legendre_step_state(coeffs, batch).fill_(torch.nan)
        self.position = torch.zeros(batch, dtype=torch.int64, device=coeffs.device)

    def step(self, u: Tensor, pre_gate: Tensor | None = None, post_gate: Tensor | None = None) -> Tensor:
        out = ops.legendre_step(self.state, u, self.position, self.weights, self.horizon, pre_gate, post_gate)
        self.position += 1 if u.dim() == 2 else u.shape[1]
        return out


def one_by_one(arguments: Arguments) -> Tensor:
    streams = Streams(arguments, arguments["u"].shape[0])
    length = arguments["u"].shape[1]
    events = [[arguments[n][:, t] for n in EVENTS if n in arguments] for t in range(length)]
    return torch.stack([streams.step(*event) for event in events], dim=1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make_decay", [no_decay, learned_decay, fast_decay])
@pytest.mark.parametrize(("horizon", "length"), [pair for pair in SCAN_LENGTHS if pair[1] > 0])
@pytest.mark.slow
def test_equals_legendre_conv(horizon: int, length: int, make_decay: MakeDecay, device: str) -> None:
    """Wherever chunks and horizon end, with any number of coefficients, also more than lags."""
    for coefficients in (0, 1, 2, 9, 17, 33, 40, 70):
        shape = {"coefficients": coefficients, "horizon": horizon, "decay": make_decay(3, horizon)}
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
            arguments = case(2, length, device, dtype, **shape)
            out = one_by_one(arguments)
            assert out.dtype == dtype
            assert error(out, expected(arguments)) < tolerance, (coefficients, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optional", [(), ("skip",), ("pre_gate",), ("pre_gate", "post_gate")], ids="+".join)
def test_optional_arguments(optional: tuple[str, ...], device: str) -> None:
    arguments = case(2, 40, device, torch.float64, coefficients=9, optional=optional)
    streams = Streams(arguments, 2)
    gates = [arguments.get("pre_gate"), arguments.get("post_gate")]
    assert error(streams.step(arguments["u"], *gates), expected(arguments)) < 1e-12


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [0, 1, 7, 16, 33, 130])
@pytest.mark.instruction_sets
def test_channels(channels: int, device: str) -> None:
    arguments = case(2, 70, device, torch.float32, channels=channels, coefficients=17, horizon=90)
    assert error(one_by_one(arguments), expected(arguments)) < 2e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.instruction_sets
def test_16_bits(device: str) -> None:
    """State and weights stay in float32 beside them."""
    for dtype in HALF_TYPES[device]:
        arguments = case(2, 70, device, dtype, coefficients=9, horizon=90)
        out = one_by_one(arguments)
        assert out.dtype == dtype
        assert error(out, expected(arguments)) < TOLERANCE[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("horizon", "coefficients"), [(4096, 9), (4096, 17), (2500, 33)])
def test_long_streams(horizon: int, coefficients: int, device: str) -> None:
    """Errors don't pile up over hundreds of chunks."""
    arguments = case(1, horizon, device, torch.float32, coefficients=coefficients)
    out = Streams(arguments, 1).step(*(arguments[name] for name in EVENTS))
    exact = {name: v.double() if isinstance(v, Tensor) else v for name, v in arguments.items()}
    kernel = ops.legendre_kernel(exact["coeffs"], exact["decay"], horizon, horizon)
    through_fft = ops.fft_conv(exact["u"], kernel, exact["skip"], exact["pre_gate"], exact["post_gate"])
    assert error(out, through_fft) < 5e-6


@pytest.mark.parametrize("device", DEVICES)
def test_events_in_one_call_or_in_many(device: str) -> None:
    """The same bits, however many events a call brings; also none."""
    arguments = case(3, 100, device, torch.float32, coefficients=9)
    streams = Streams(arguments, 3)
    events = [arguments[name] for name in EVENTS]
    pieces = zip(*(e.split((1, 30, 0, 32, 37), dim=1) for e in events), strict=True)
    assert torch.equal(torch.cat([streams.step(*piece) for piece in pieces], dim=1), one_by_one(arguments))


@pytest.mark.parametrize("device", DEVICES)
def test_streams_at_different_positions(device: str) -> None:
    """A row of the batch begins anew again and again, others go on; states are moved between calls."""
    arguments = case(3, 60, device, torch.float64, coefficients=9)
    begins = [(0,), (0, 20, 33), (0, 48)]
    streams = Streams(arguments, 3)
    order = torch.tensor([2, 0, 1], device=device)
    outs = []
    for t in range(60):
        for b, starts in enumerate(begins):
            if t in starts:
                streams.position[b] = 0
        event = [arguments[name][:, t] for name in EVENTS]
        if t % 7 == 3:  # in another order
            state, position = streams.state[order], streams.position[order]
            out = torch.empty_like(event[0])
            u, *gates = (e[order] for e in event)
            out[order] = ops.legendre_step(state, u, position, streams.weights, streams.horizon, *gates)
            streams.state[order] = state
            streams.position += 1
            outs.append(out)
        else:
            outs.append(streams.step(*event))
    together = torch.stack(outs, dim=1)
    for b, starts in enumerate(begins):
        for first, last in zip(starts, [*starts[1:], 60], strict=True):
            part = {n: v[b : b + 1, first:last] if n in EVENTS else v for n, v in arguments.items()}
            assert error(together[b : b + 1, first:last], expected(part)) < 1e-12


@pytest.mark.parametrize("device", DEVICES)
def test_any_strides(device: str) -> None:
    """q, k, v as the model cuts them, a gate that is expanded, spread channels and positions."""
    arguments = case(3, 40, device, torch.float64, channels=6, coefficients=9)
    together = torch.cat([arguments[name] for name in EVENTS], dim=-1)
    u, pre, post = together.chunk(3, dim=-1)
    expected_out = Streams(arguments, 3).step(*(arguments[name] for name in EVENTS))
    assert torch.equal(Streams(arguments, 3).step(u, pre, post), expected_out)
    spread = [e.repeat_interleave(2, dim=-1)[..., ::2] for e in (u, pre, post)]
    streams = Streams(arguments, 3)
    streams.weights = streams.weights.t().contiguous().t()
    streams.position = torch.zeros(6, dtype=torch.int64, device=device)[::2]
    out = streams.step(*spread)
    assert out.is_contiguous()
    assert torch.equal(out, expected_out)
    expanded = pre[:1].expand(3, -1, -1)
    expected_out = Streams(arguments, 3).step(u, expanded.contiguous(), post)
    assert torch.equal(Streams(arguments, 3).step(u, expanded, post), expected_out)


def test_same_numbers_on_any_number_of_threads() -> None:
    arguments = case(300, 40, "cpu", torch.float32, channels=16, coefficients=9)
    results = []
    for count in (1, 3):
        with threads(count):
            results.append(one_by_one(arguments))
    assert torch.equal(*results)


@pytest.mark.parametrize("device", DEVICES)
def test_decay_beyond_all_bounds_leaves_the_current_event(device: str) -> None:
    arguments = case(1, 60, device, torch.float32, coefficients=9, optional=(), decay=torch.full((3,), 3e38))
    at_lag_0 = arguments["coeffs"][:, ::2].sum(1) - arguments["coeffs"][:, 1::2].sum(1)
    assert error(one_by_one(arguments), at_lag_0 * arguments["u"]) < 1e-6


def good(device: str = "cpu") -> Arguments:
    """A good call: N = 3, C = 16."""
    coeffs, decay = random(4, 3).float().to(device), torch.full((4,), 0.1, device=device)
    return {
        "state": ops.legendre_step_state(coeffs, 2),
        "u": random(2, 4, seed=1).float().to(device),
        "position": torch.zeros(2, dtype=torch.int64, device=device),
        "weights": ops.legendre_step_weights(coeffs, decay, 50),
        "horizon": 50,
        "pre_gate": random(2, 4, seed=2).float().to(device),
        "post_gate": random(2, 4, seed=3).float().to(device),
    }


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    coeffs, decay = random(4, 3).float().to(device), torch.full((4,), 0.1, device=device)
    library.opcheck(torch.ops.hyenarec.legendre_step.default, (), good(device))
    library.opcheck(torch.ops.hyenarec.legendre_step_weights.default, (coeffs, decay, 50, decay))
    library.opcheck(torch.ops.hyenarec.legendre_step_state.default, (coeffs, 3))


def test_compiles() -> None:
    """One graph for any batch, which changes the state as the eager call does."""
    call = torch.compile(ops.legendre_step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 5):
        arguments = case(batch, 20, "cpu", torch.float32)
        eager, compiled = Streams(arguments, batch), Streams(arguments, batch)
        for t in range(20):
            event = [arguments[name][:, t] for name in EVENTS]
            out = call(compiled.state, event[0], compiled.position, compiled.weights, 20, *event[1:])
            compiled.position += 1
            assert torch.equal(out, eager.step(*event))


def test_a_gradient_raises() -> None:
    for name in ("state", "u", "weights", "pre_gate", "post_gate"):
        arguments = good()
        arguments[name] = arguments[name].requires_grad_()
        with pytest.raises(RuntimeError, match=f"{name} must not require a gradient"):
            ops.legendre_step(**arguments)
        with torch.no_grad():
            ops.legendre_step(**arguments)
        with torch.inference_mode():
            ops.legendre_step(**arguments)


def test_marks_the_state_as_changed() -> None:
    """So that autograd notices where something else saved it for its backward pass."""
    arguments = good()
    factor = torch.ones((), requires_grad=True)
    product = factor * arguments["state"]
    ops.legendre_step(**arguments)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


ONE = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(4)}, r"u must be \[B, D\] or \[B, L, D\], got \[4\]"),
        ({"u": ONE.int()}, "u must be float32, float64, bfloat16 or float16, got Int"),
        ({"u": ONE.half(), "pre_gate": None, "post_gate": None}, "u must be float32, float64 or bfloat16 on"),
        ({"position": torch.zeros(2, 1).long()}, r"position must be \[B\], got \[2, 1\]"),
        ({"position": torch.zeros(3).long()}, r"position must be \[B\] with B = 2, got \[3\]"),
        ({"position": torch.zeros(2)}, "position must be Long, got Float"),
        ({"position": torch.tensor([0, 50])}, "position must be from 0 to 49.* = 50, got 50 for stream 1"),
        ({"position": torch.tensor([-1, 0])}, "position must be from 0 to 49.*, got -1 for stream 0"),
        ({"weights": torch.ones(37)}, r"weights must be \[N \+ 2 C \+ 2, D\], got \[37\]"),
        ({"weights": torch.ones(37, 5)}, r"weights must be .* with D = 4, got \[37, 5\]"),
        ({"weights": torch.ones(37, 4).double()}, "weights must be Float beside this u, got Double"),
        ({"weights": torch.ones(38, 4)}, "the same number of coefficients, got 19 and 38 rows"),
        ({"state": torch.ones(19, 4)}, r"state must be \[B, N \+ C, D\], got \[19, 4\]"),
        ({"state": torch.ones(3, 19, 4)}, r"state must be .* with B = 2, got \[3, 19, 4\]"),
        ({"state": torch.ones(2, 19, 5)}, r"state must be .* with D = 4, got \[2, 19, 5\]"),
        ({"state": torch.ones(2, 19, 4).double()}, "state must be Float beside this u, got Double"),
        ({"state": torch.ones(2, 4, 19).mT}, r"state must be contiguous, got strides \[76, 1, 19\]"),
        ({"state": torch.ones(2, 19, 4, device="meta")}, "state must be on cpu like u, got meta"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"pre_gate": torch.ones(2, 5)}, "pre_gate must have the shape of u"),
        ({"post_gate": ONE.double()}, "post_gate must be Float like u, got Double"),
    ],
)
def test_rejects(change: Arguments, message: str) -> None:
    """And the state stays as it was."""
    arguments = good() | change
    before = arguments["state"].clone()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), pytest.raises(RuntimeError, match=message):
            ops.legendre_step(**arguments)
    assert arguments["state"].is_meta or torch.equal(arguments["state"], before)


def test_a_stream_ends_at_its_horizon() -> None:
    arguments = case(1, 17, "cpu", torch.float32)
    streams = Streams(arguments, 1)
    streams.step(arguments["u"][:, :10])
    with pytest.raises(RuntimeError, match=r"position must be from 0 to 9, .* horizon = 17, got 10"):
        streams.step(arguments["u"][:, :8])
    streams.step(arguments["u"][:, 10:])
    with pytest.raises(RuntimeError, match=r"position must be from 0 to 16, .* got 17 for stream 0"):
        streams.step(arguments["u"][:, 0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_beyond_the_horizon_on_a_gpu() -> None:
    """NaN for that stream, whose state stays; the other one goes on."""
    arguments = good("cuda")
    expected_out = ops.legendre_step(**arguments | {"state": arguments["state"].clone()})
    before = arguments["state"].clone()
    arguments["position"][1] = 50
    out = ops.legendre_step(**arguments)
    assert torch.equal(out[0], expected_out[0])
    assert out[1].isnan().all()
    assert torch.equal(arguments["state"][1], before[1])


COEFFS, DECAY = torch.ones(4, 3), torch.ones(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coeffs": torch.ones(4)}, r"coeffs must be \[D, N\], got \[4\]"),
        ({"coeffs": COEFFS.half()}, "coeffs must be float32 or float64, got Half"),
        ({"decay": torch.ones(5)}, r"decay must be \[D\] with D = 4, got \[5\]"),
        ({"decay": -DECAY}, "decay must be finite and not negative, got -1 for channel 0"),
        ({"skip": DECAY.double()}, "skip must be Float like coeffs, got Double"),
        ({"skip": torch.ones(4, 1)}, r"skip must be \[D\], got \[4, 1\]"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
    ],
)
def test_weights_reject(change: Arguments, message: str) -> None:
    arguments = {"coeffs": COEFFS, "decay": DECAY, "horizon": 10, "skip": DECAY} | change
    with pytest.raises(RuntimeError, match=f"legendre_step_weights: {message}"):
        ops.legendre_step_weights(**arguments)


def test_state_rejects() -> None:
    with pytest.raises(RuntimeError, match="batch must be at least 0, got -1"):
        ops.legendre_step_state(COEFFS, -1)
    with pytest.raises(RuntimeError, match=r"coeffs must be \[D, N\], got \[4\]"):
        ops.legendre_step_state(DECAY, 1)
