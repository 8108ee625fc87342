from __future__ import annotations

import itertools

import pytest
import torch
from op_checks import (
    DEVICES,
    HALF_TYPES,
    LENGTHS,
    Arguments,
    assert_compiles_once,
    assert_exports,
    assert_matches_oracle,
    assert_rejects,
    assert_second_derivative_raises,
    assert_takes_any_strides,
    converted,
    differentiable,
    error,
    random,
    run_opcheck,
    solve,
)
from torch import Tensor

from hyenarec import ops

OPTIONAL = ("skip", "pre_gate", "post_gate")


def case(
    batch: int = 2,
    length: int = 7,
    channels: int = 3,
    lags: int | None = None,
    optional: tuple[str, ...] = OPTIONAL,
) -> Arguments:
    arguments: Arguments = {
        "u": random(batch, length, channels, seed=1),
        "kernel": random(channels, length if lags is None else lags, seed=2),
    }
    sizes = {
        "skip": (channels,),
        "pre_gate": (batch, length, channels),
        "post_gate": (batch, length, channels),
    }
    return arguments | {name: random(*sizes[name], seed=3 + OPTIONAL.index(name)) for name in optional}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_matches_oracle(length: int, dtype: torch.dtype, device: str) -> None:
    batch, channels = (1, 2) if length > 1000 else (3, 20)  # the oracle is quadratic in the length
    assert_matches_oracle("fft_conv", case(batch, length, channels), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 7, 64, 200])
def test_matches_oracle_in_16_bits(length: int, device: str) -> None:
    for dtype in HALF_TYPES[device]:
        assert_matches_oracle("fft_conv", case(2, length, 17), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "optional",
    [names for count in range(4) for names in itertools.combinations(OPTIONAL, count)],
    ids="+".join,
)
def test_optional_arguments(optional: tuple[str, ...], device: str) -> None:
    assert_matches_oracle("fft_conv", case(3, 30, 9, optional=optional), torch.float64, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lags", [0, 1, 5, 29, 30, 31, 100])
def test_kernel_of_another_length(lags: int, device: str) -> None:
    assert_matches_oracle("fft_conv", case(2, 30, 4, lags), torch.float64, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (2, 9, 1), (1, 1, 1), (70, 33, 130), (5, 200, 64)]
)
def test_shapes(shape: tuple[int, int, int], device: str) -> None:
    assert_matches_oracle("fft_conv", case(*shape), torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(3, 20, 3), (7, 200, 20), (3, 600, 20)])
@pytest.mark.parametrize("mebibytes", ["0", "1"])
def test_small_workspace(
    mebibytes: str, shape: tuple[int, int, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA the batch, then the channels, are cut into parts: with 0 into single signals."""
    monkeypatch.setenv("HYENAREC_FFT_WORKSPACE_MIB", mebibytes)
    assert_matches_oracle("fft_conv", case(*shape), torch.float64, device)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device: str) -> None:
    arguments = converted(case(2, 7, 3, 5), torch.float64, device)
    torch.autograd.gradcheck(ops.fft_conv, tuple(arguments.values()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (0, 3), (1, 4), (2, 3)])
def test_only_the_gradients_asked_for(wanted: tuple[int, ...], device: str) -> None:
    arguments = converted(case(3, 20, 10), torch.float64, device)
    _, expected = solve(ops.fft_conv, arguments)
    names = [list(arguments)[i] for i in wanted]
    some = {n: v if n in names else v.detach() for n, v in arguments.items()}
    _, gradients = solve(ops.fft_conv, some)
    assert list(gradients) == names
    assert all(error(gradients[name], expected[name]) < 1e-13 for name in names)

    out = ops.fft_conv(**arguments)
    partial = torch.autograd.grad(out, [arguments[n] for n in names], random(*out.shape, seed=7).to(out))
    assert all(error(g, expected[n]) < 1e-13 for n, g in zip(names, partial, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_backward_op_leaves_out_what_is_not_needed(device: str) -> None:
    arguments = converted(case(2, 6, 4), torch.float32, device)
    u = arguments["u"].detach()
    gradients = torch.ops.hyenarec.fft_conv_backward(
        u, *arguments.values(), [False, True, False, False, True]
    )
    assert [tuple(g.shape) for g in gradients] == [(0,), (4, 6), (0,), (0,), (2, 6, 4)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optional", [OPTIONAL, (), ("post_gate",)], ids="+".join)
def test_opcheck(optional: tuple[str, ...], device: str) -> None:
    run_opcheck("fft_conv", case(optional=optional), device)


@pytest.mark.parametrize("device", DEVICES)
def test_takes_any_strides(device: str) -> None:
    assert_takes_any_strides("fft_conv", case(2, 11, 9), device)


@pytest.mark.parametrize("device", DEVICES)
def test_slices_of_one_projection(device: str) -> None:
    """q, k, v as the model cuts them, and a gate that is expanded over the batch."""
    q, k, v = random(3, 20, 3 * 16).to(device).chunk(3, dim=-1)
    kernel = random(16, 20).to(device)
    expected = ops.fft_conv(v.contiguous(), kernel, None, k.contiguous(), q.contiguous())
    assert torch.equal(ops.fft_conv(v, kernel, None, k, q), expected)
    expanded = q[:1].expand(3, -1, -1)
    assert torch.equal(
        ops.fft_conv(v, kernel, None, expanded), ops.fft_conv(v, kernel, None, expanded.contiguous())
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_causality(dtype: torch.dtype, device: str) -> None:
    arguments = converted(case(2, 200, 5), dtype, device)
    changed = dict(arguments)
    for name in ("u", "pre_gate", "post_gate"):
        changed[name] = arguments[name].detach().clone()
        changed[name][:, 120:] *= -3
    out, other = ops.fft_conv(**arguments), ops.fft_conv(**changed)
    rounding = 2e-6 if dtype == torch.float32 else 1e-14
    assert error(other[:, :120], out[:, :120]) < rounding
    assert error(other[:, 120:], out[:, 120:]) > 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivative_raises(device: str) -> None:
    assert_second_derivative_raises("fft_conv", case(), device)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_deterministic(device: str) -> None:
    arguments = converted(case(20, 300, 70), torch.float32, device)
    _, first = solve(ops.fft_conv, arguments)
    _, second = solve(ops.fft_conv, arguments)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_same_numbers_on_any_number_of_threads() -> None:
    arguments = converted(case(20, 300, 70), torch.float32, "cpu")
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            out, gradients = solve(ops.fft_conv, arguments)
            results.append([out, *gradients.values()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


U, KERNEL = torch.ones(2, 5, 4), torch.ones(4, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(5, 4)}, r"u must be \[B, L, D\], got \[5, 4\]"),
        ({"u": U.int()}, "u must be float32, float64, bfloat16 or float16, got Int"),
        ({"u": U.half()}, "u must be float32, float64 or bfloat16 on the CPU, got Half"),
        ({"kernel": torch.ones(4)}, r"kernel must be \[D, K\], got \[4\]"),
        ({"kernel": torch.ones(3, 5)}, r"kernel must be \[D, K\] with D = 4, got \[3, 5\]"),
        ({"kernel": KERNEL.double()}, "kernel must be Float beside this u, got Double"),
        (
            {"u": U.bfloat16(), "kernel": KERNEL.bfloat16()},
            "kernel must be Float beside this u, got BFloat16",
        ),
        ({"kernel": KERNEL.to("meta")}, "kernel must be on cpu like u, got meta"),
        ({"skip": torch.ones(4, 1)}, r"skip must be \[D\], got \[4, 1\]"),
        ({"skip": torch.ones(3)}, r"skip must be \[D\] with D = 4, got \[3\]"),
        ({"skip": torch.ones(4).double()}, "skip must be Float beside this u, got Double"),
        ({"skip": torch.ones(4, device="meta")}, "skip must be on cpu like u, got meta"),
        ({"pre_gate": U[:1]}, r"pre_gate must have the shape of u, \[2, 5, 4\], got \[1, 5, 4\]"),
        ({"pre_gate": U.double()}, "pre_gate must be Float like u, got Double"),
        ({"pre_gate": U.to("meta")}, "pre_gate must be on cpu like u, got meta"),
        ({"post_gate": U[0]}, r"post_gate must have the shape of u, \[2, 5, 4\], got \[5, 4\]"),
        ({"post_gate": U.bfloat16()}, "post_gate must be Float like u, got BFloat16"),
    ],
)
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects("fft_conv", {"u": U, "kernel": KERNEL} | change, message)


class Mixer(torch.nn.Module):
    """Kernel and gated convolution as in the model: the kernel is as long as the batch."""

    def forward(
        self, u: Tensor, pre: Tensor, post: Tensor, coeffs: Tensor, decay: Tensor, skip: Tensor
    ) -> Tensor:
        kernel = ops.legendre_kernel(coeffs, decay, 64, u.shape[1])
        return ops.fft_conv(u, kernel, skip, pre, post)


def mixer_inputs() -> list[tuple[Tensor, ...]]:
    coeffs, decay, skip = random(4, 5).float(), random(4).abs().float(), random(4, seed=9).float()
    sizes = [(2, 12, 4), (3, 7, 4), (5, 50, 4)]
    return [(*(random(*size, seed=i).float() for i in range(3)), coeffs, decay, skip) for size in sizes]


def test_exports_with_dynamic_batch_and_length() -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=64)
    varies = {0: batch, 1: length}
    assert_exports(Mixer(), mixer_inputs(), (varies, varies, varies, None, None, None))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_once_for_all_lengths(backend: str) -> None:
    assert_compiles_once(Mixer(), mixer_inputs(), backend)


def test_needs_no_autograd() -> None:
    arguments = converted(case(2, 12, 4), torch.float32, "cpu")
    assert differentiable(arguments)
    expected = ops.fft_conv(**arguments)
    with torch.inference_mode():
        out = ops.fft_conv(**arguments)
    assert out.is_inference()
    assert torch.equal(out, expected)
