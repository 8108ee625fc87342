from __future__ import annotations

import pytest
import torch
from op_checks import (
    DEVICES,
    LENGTHS,
    Arguments,
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

from hyenarec import ops, reference


def case(channels: int = 3, coefficients: int = 5, horizon: int = 16, length: int = 12) -> Arguments:
    return {
        "coeffs": random(channels, coefficients, seed=1),
        "decay": random(channels, seed=2).abs() / 16,
        "horizon": horizon,
        "length": length,
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_matches_oracle(length: int, dtype: torch.dtype, device: str) -> None:
    # float64: recurrences of different rounding differ by about N ulp of the largest term.
    tolerance = 1e-11 if dtype == torch.float64 else 1e-6
    arguments = case(5, 9, horizon=max(length, 1), length=length)
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
def test_shapes(shape: tuple[int, int, int, int], device: str) -> None:
    assert_matches_oracle("legendre_kernel", case(*shape), torch.float32, device)
    assert_matches_oracle("legendre_kernel", case(*shape), torch.float64, device, 1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_is_as_good_as_its_output_allows(device: str) -> None:
    arguments = case(8, 33, horizon=16384, length=16384) | {"decay": torch.zeros(8)}
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


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device: str) -> None:
    arguments = converted(case(), torch.float64, device)
    torch.autograd.gradcheck(ops.legendre_kernel, tuple(arguments.values()))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device: str) -> None:
    run_opcheck("legendre_kernel", case(), device)


@pytest.mark.parametrize("device", DEVICES)
def test_takes_any_strides(device: str) -> None:
    assert_takes_any_strides("legendre_kernel", case(), device)


@pytest.mark.parametrize("device", DEVICES)
def test_second_derivative_raises(device: str) -> None:
    assert_second_derivative_raises("legendre_kernel", case(), device)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_deterministic(device: str) -> None:
    arguments = converted(case(64, 17, 1021, 1021), torch.float32, device)
    _, first = solve(ops.legendre_kernel, arguments)
    _, second = solve(ops.legendre_kernel, arguments)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_same_numbers_on_any_number_of_threads() -> None:
    arguments = converted(case(64, 17, 1021, 1021), torch.float32, "cpu")
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            out, gradients = solve(ops.legendre_kernel, arguments)
            results.append([out, *gradients.values()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


COEFFS, DECAY = torch.ones(4, 3), torch.ones(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coeffs": torch.ones(4)}, r"coeffs must be \[D, N\], got \[4\]"),
        ({"coeffs": COEFFS.half()}, "coeffs must be float32 or float64, got Half"),
        ({"coeffs": COEFFS.int()}, "coeffs must be float32 or float64, got Int"),
        ({"decay": torch.ones(4, 1)}, r"decay must be \[D\], got \[4, 1\]"),
        ({"decay": torch.ones(5)}, r"decay must be \[D\] with D = 4, got \[5\]"),
        ({"decay": DECAY.double()}, "decay must be Float like coeffs, got Double"),
        ({"decay": DECAY.to("meta")}, "decay must be on cpu like coeffs, got meta"),
        (
            {"decay": torch.tensor([1, 1, float("nan"), 1])},
            "decay must be finite and not negative, got nan for channel 2",
        ),
        (
            {"decay": torch.tensor([1, -0.5, 1, 1])},
            "decay must be finite and not negative, got -0.5 for channel 1",
        ),
        ({"decay": torch.tensor([1, 1, 1, torch.inf])}, "decay must be finite"),
        ({"horizon": 0, "length": 0}, "horizon must be at least 1, got 0"),
        ({"length": -1}, "length must be at least 0, got -1"),
        ({"length": 11}, "length must be at most the horizon = 10, got 11"),
    ],
)
def test_rejects(change: Arguments, message: str) -> None:
    assert_rejects(
        "legendre_kernel", {"coeffs": COEFFS, "decay": DECAY, "horizon": 10, "length": 6} | change, message
    )


class Kernel(torch.nn.Module):
    """A kernel as long as its first input, as in the model."""

    def forward(self, u: torch.Tensor, coeffs: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        return ops.legendre_kernel(coeffs, decay, 64, u.shape[0]) * u


def kernel_inputs() -> list[tuple[torch.Tensor, ...]]:
    coeffs, decay = random(3, 5).float(), random(3).abs().float()
    return [(random(length, 1, 1).float(), coeffs, decay) for length in (12, 7, 50)]


def test_exports_with_dynamic_length() -> None:
    length = torch.export.Dim("length", min=2, max=64)
    assert_exports(Kernel(), kernel_inputs(), ({0: length}, None, None))


def test_compiles_once_for_all_lengths() -> None:
    assert_compiles_once(Kernel(), kernel_inputs(), "aot_eager")
