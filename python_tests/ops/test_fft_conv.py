from __future__ import annotations

import itertools

import pytest
import torch
from op_cases import OPTIONAL, Arguments, fft_conv_case, legendre_conv_case, random
from op_checks import DEVICES, HALF_TYPES, LENGTHS, assert_matches_oracle
from rejects import (
    VECTOR,
    U,
    activation_rows,
    assert_backward_rejects_a_wrong_gradient,
    assert_rejects,
    gate_rows,
    parameter_rows,
    rejected,
)
from torch import Tensor
from varying import (
    CHANNELS,
    HORIZON,
    IN_PADDED,
    PADDED,
    Varying,
    assert_compiles_once,
    assert_exports,
    without_lengths,
)

from hyenarec import ops


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_matches_oracle(length: int, dtype: torch.dtype, device: str) -> None:
    batch, channels = (1, 2) if length > 1000 else (3, 20)  # the oracle is quadratic in the length
    assert_matches_oracle("fft_conv", fft_conv_case(batch, length, channels), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [1, 7, 64, 200])
@pytest.mark.instruction_sets
def test_matches_oracle_in_16_bits(length: int, device: str) -> None:
    for dtype in HALF_TYPES[device]:
        assert_matches_oracle("fft_conv", fft_conv_case(2, length, 17), dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "optional",
    [names for count in range(4) for names in itertools.combinations(OPTIONAL, count)],
    ids="+".join,
)
def test_optional_arguments(optional: tuple[str, ...], device: str) -> None:
    assert_matches_oracle("fft_conv", fft_conv_case(3, 30, 9, optional=optional), torch.float64, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lags", [0, 1, 5, 29, 30, 31, 100])
def test_kernel_of_another_length(lags: int, device: str) -> None:
    assert_matches_oracle("fft_conv", fft_conv_case(2, 30, 4, lags), torch.float64, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (2, 9, 1), (1, 1, 1), (70, 33, 130), (5, 200, 64)]
)
@pytest.mark.instruction_sets
def test_shapes(shape: tuple[int, int, int], device: str) -> None:
    assert_matches_oracle("fft_conv", fft_conv_case(*shape), torch.float32, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(3, 20, 3), (7, 200, 20), (3, 600, 20)])
@pytest.mark.parametrize("mebibytes", ["0", "1"])
def test_small_workspace(
    mebibytes: str, shape: tuple[int, int, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA the batch, then the channels, are cut into parts: with 0 into single signals."""
    monkeypatch.setenv("HYENAREC_FFT_WORKSPACE_MIB", mebibytes)
    assert_matches_oracle("fft_conv", fft_conv_case(*shape), torch.float64, device)


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


KERNEL = torch.ones(4, 5)
GOOD: Arguments = {"u": U, "kernel": KERNEL, "skip": VECTOR, "pre_gate": U, "post_gate": U}
IN_16_BITS: Arguments = {"u": U.bfloat16(), "kernel": KERNEL.bfloat16()}


@rejected(
    "fft_conv",
    activation_rows(GOOD, "u", "[B, L, D]"),
    parameter_rows(GOOD, "u", {"kernel": "[D, K]", "skip": "[D]"}),
    [(IN_16_BITS, "kernel must be Float beside this u, got BFloat16")],
    gate_rows(),
)
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects("fft_conv", GOOD | change, message)


def test_accepts_what_the_rows_start_from() -> None:
    ops.fft_conv(**GOOD)


def test_backward_rejects_a_wrong_gradient() -> None:
    assert_backward_rejects_a_wrong_gradient("fft_conv", GOOD, "the shape of u")


def kernel_and_fft_conv(
    u: Tensor, coeffs: Tensor, decay: Tensor, skip: Tensor, pre_gate: Tensor, post_gate: Tensor
) -> Tensor:
    """The kernel is as long as the batch, as in the model."""
    kernel = ops.legendre_kernel(coeffs, decay, HORIZON, u.shape[1])
    return ops.fft_conv(u, kernel, skip, pre_gate, post_gate)


VARYING = {
    "legendre_kernel and fft_conv": Varying(
        kernel_and_fft_conv,
        [without_lengths(legendre_conv_case(layout, CHANNELS)) for layout in PADDED],
        {"u": IN_PADDED, "pre_gate": IN_PADDED, "post_gate": IN_PADDED},
    )
}
varying = pytest.mark.parametrize("case", VARYING.values(), ids=VARYING)


@varying
def test_exports_with_dynamic_sizes(case: Varying) -> None:
    assert_exports(case)


@varying
@pytest.mark.slow
def test_compiles_once_with_backward(case: Varying) -> None:
    assert_compiles_once(case, "aot_eager")
