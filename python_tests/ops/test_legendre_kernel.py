from __future__ import annotations

import pytest
import torch
from op_cases import Arguments, legendre_kernel_case, random
from op_checks import DEVICES, LENGTHS, assert_matches_oracle, converted, error
from rejects import (
    COEFFS,
    VECTOR,
    assert_backward_rejects_a_wrong_gradient,
    assert_rejects,
    legendre_rows,
    rejected,
)
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

from hyenarec import ops, reference


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_matches_oracle(length: int, dtype: torch.dtype, device: str) -> None:
    # float64: recurrences of different rounding differ by about N ulp of the largest term.
    tolerance = 1e-11 if dtype == torch.float64 else 1e-6
    arguments = legendre_kernel_case(5, 9, horizon=max(length, 1), length=length)
    assert_matches_oracle("legendre_kernel", arguments, dtype, device, tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (1, 33, 200, 200),
        (3, 9, 4, 4),
        (4, 6, 1, 1),
        (3, 140, 2, 2),
        (3, 220, 7, 7),
        (70, 17, 130, 65),
        (0, 4, 5, 5),
        (3, 0, 5, 5),
    ],
    ids=[
        "one",
        "one_channel",
        "more_coeffs_than_lags",
        "horizon_one",
        "many_coeffs_on_two_lags",
        "many_coeffs_on_seven_lags",
        "part",
        "no_channels",
        "no_coeffs",
    ],
)
@pytest.mark.instruction_sets
def test_shapes(shape: tuple[int, int, int, int], device: str) -> None:
    arguments = legendre_kernel_case(*shape)
    assert_matches_oracle("legendre_kernel", arguments, torch.float32, device)
    assert_matches_oracle("legendre_kernel", arguments, torch.float64, device, 1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_is_as_good_as_its_output_allows(device: str) -> None:
    arguments = legendre_kernel_case(8, 33, horizon=16384, length=16384) | {"decay": torch.zeros(8)}
    exact = reference.legendre_kernel(**converted(arguments, torch.float64, "cpu"))
    assert error(ops.legendre_kernel(**converted(arguments, torch.float32, device)), exact) < 1e-7


@pytest.mark.parametrize("device", DEVICES)
def test_horizon_and_ends(device: str) -> None:
    """P_n(-1) = (-1)^n at lag 0, P_n(1) = 1 at the last lag of the horizon; alone, lag 0 is at -1."""
    coeffs = torch.eye(4, dtype=torch.float64, device=device)
    kernel = ops.legendre_kernel(coeffs, torch.zeros_like(coeffs[0]), 9, 9)
    assert kernel[:, 0].tolist() == [1, -1, 1, -1]
    assert kernel[:, -1].tolist() == [1, 1, 1, 1]
    assert ops.legendre_kernel(coeffs, torch.ones_like(coeffs[0]), 1, 1)[:, 0].tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize("device", DEVICES)
def test_fast_decay_underflows_to_zero(device: str) -> None:
    coeffs = torch.ones(1, 3, device=device)
    kernel = ops.legendre_kernel(coeffs, torch.full((1,), 1000.0, device=device), 200, 200)
    assert kernel[0, 0] == 1
    assert not kernel[0, 1:].any()


GOOD: Arguments = {"coeffs": COEFFS, "decay": VECTOR, "horizon": 10, "length": 6}


@rejected(
    "legendre_kernel",
    legendre_rows(),
    [
        ({"coeffs": VECTOR}, "coeffs must be [D, N], got [4]"),
        ({"coeffs": COEFFS.half()}, "coeffs must be float32 or float64, got Half"),
        ({"coeffs": COEFFS.int()}, "coeffs must be float32 or float64, got Int"),
        ({"decay": VECTOR[:, None]}, "decay must be [D], got [4, 1]"),
        ({"decay": VECTOR[1:]}, "decay must be [D] with D = 4, got [3]"),
        ({"decay": VECTOR.double()}, "decay must be Float like coeffs, got Double"),
        ({"decay": VECTOR.to("meta")}, "decay must be on cpu like coeffs, got meta"),
        ({"length": -1}, "length must be at least 0, got -1"),
        ({"length": 11}, "length must be at most the horizon = 10, got 11"),
    ],
)
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects("legendre_kernel", GOOD | change, message)


def test_accepts_what_the_rows_start_from() -> None:
    ops.legendre_kernel(**GOOD)


def test_backward_rejects_a_wrong_gradient() -> None:
    assert_backward_rejects_a_wrong_gradient("legendre_kernel", GOOD, "[D, length]")


VARYING = {
    "legendre_kernel": Varying(
        lambda u, coeffs, decay: ops.legendre_kernel(coeffs, decay, HORIZON, u.shape[1]) + u.sum(),
        [
            {"u": random(*layout.sizes, 3, seed=1)} | without_lengths(legendre_kernel_case(CHANNELS))
            for layout in PADDED
        ],
        {"u": IN_PADDED},
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
