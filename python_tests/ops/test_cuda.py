"""What only a GPU can show of the operators: streams, CUDA graphs, waits of the host, TF32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from op_cases import (
    LARGE_CASES,
    Arguments,
    Case,
    fft_conv_case,
    hyena_mixer_case,
    legendre_conv_case,
    packed,
    padded,
    random,
)
from op_checks import TOLERANCE, converted, differentiable, error, operator, solve
from torch import Tensor
from torch._dynamo.utils import counters

from hyenarec import ops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# The caches hold 32 sets of the scan's tables and 1,024 plans of cuFFT beside what graphs hold.
MORE_TABLES, MORE_PLANS = 40, 1100
# One sequence of many chunks is cut into segments.
SCANS: dict[str, Case] = {
    "legendre_conv": ("legendre_conv", legendre_conv_case(padded(20, 300), 70, 17)),
    "legendre_conv cut": ("legendre_conv", legendre_conv_case(padded(1, 3000), 40, 17)),
    "legendre_conv packed": ("legendre_conv", legendre_conv_case(packed(3, 0, 2000, 1, 700), 40, 9)),
    "hyena_mixer": ("hyena_mixer", hyena_mixer_case(padded(20, 300), 70, 17)),
    "hyena_mixer cut": ("hyena_mixer", hyena_mixer_case(padded(1, 3000), 40, 17)),
    "hyena_mixer packed": ("hyena_mixer", hyena_mixer_case(packed(3, 0, 2000, 1, 700), 40, 33)),
}
scans = pytest.mark.parametrize("case", SCANS.values(), ids=SCANS)
Results = dict[str, Tensor]


class Problem:
    """An operator's arguments on the GPU, and the gradient at its output."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32, **change: Any) -> None:
        self.name, arguments = case
        self.arguments = converted(arguments, dtype, "cuda") | change
        out = operator(self.name)(**self.arguments)
        self.grad = random(*out.shape, seed=7).to(out)

    def solve(self) -> Results:
        """Output and every gradient."""
        out, gradients = solve(operator(self.name), self.arguments, self.grad)
        return {"out": out} | gradients


def new_stream() -> torch.cuda.Stream:
    """One that begins behind what the current stream does now."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    return stream


def assert_same_bits(results: Results, expected: Results) -> None:
    for name, value in expected.items():
        assert torch.equal(results[name], value), name


@contextmanager
def restored(get: Callable[[], Any], put: Callable[[Any], Any]) -> Iterator[None]:
    before = get()
    try:
        yield
    finally:
        put(before)


def set_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed


@scans
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_same_bits_twice_on_cuda(case: Case, dtype: torch.dtype) -> None:
    problem = Problem(case, dtype)
    assert_same_bits(problem.solve(), problem.solve())


@scans
def test_cuda_tf32_changes_nothing(case: Case) -> None:
    problem = Problem(case)
    with restored(lambda: torch.backends.cuda.matmul.allow_tf32, set_tf32):
        set_tf32(False)
        expected = problem.solve()
        set_tf32(True)
        assert_same_bits(problem.solve(), expected)


@scans
def test_cuda_tf32_of_cublaslt_costs_no_digits(case: Case) -> None:
    """torch would use it in spite of its own guard against TF32."""
    problem = Problem(case)
    expected = problem.solve()
    prefer = torch.backends.cuda.preferred_blas_library
    with restored(lambda: torch.backends.cuda.matmul.allow_tf32, set_tf32), restored(prefer, prefer):
        set_tf32(True)
        prefer("cublaslt")
        results = problem.solve()
    for name, value in expected.items():
        assert error(results[name], value) <= 5 * TOLERANCE[torch.float32], name


@scans
def test_cuda_autocast_changes_nothing(case: Case) -> None:
    problem = Problem(case)
    expected = problem.solve()
    with torch.autocast("cuda", torch.bfloat16):
        assert_same_bits(problem.solve(), expected)


@scans
def test_cuda_deterministic_mode_changes_nothing(case: Case) -> None:
    problem = Problem(case)
    expected = problem.solve()
    with restored(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms):
        torch.use_deterministic_algorithms(True)
        assert_same_bits(problem.solve(), expected)


@scans
def test_cuda_inference_mode_changes_nothing(case: Case) -> None:
    """Also where it is the first to need the tables: nothing of it is left in what they hold."""
    name, arguments = case
    arguments = converted(arguments, torch.float32, "cuda")
    horizon = arguments["horizon"] + 17  # of this test alone
    with torch.inference_mode():
        out = operator(name)(**arguments | {"horizon": horizon})
    assert_same_bits(Problem(case, horizon=horizon).solve(), {"out": out})


def on_streams(problems: list[Problem], times: int) -> list[list[Results]]:
    """Each problem `times` times on a stream of its own, all at once."""
    streams = [new_stream() for _ in problems]
    results: list[list[Results]] = [[] for _ in problems]
    for _ in range(times):
        for problem, stream, solved in zip(problems, streams, results, strict=True):
            with torch.cuda.stream(stream):
                solved.append(problem.solve())
    torch.cuda.synchronize()
    return results


@scans
def test_two_cuda_streams_with_the_same_shapes(case: Case) -> None:
    problem, other = Problem(case), Problem(case)
    for name, value in differentiable(other.arguments).items():
        if name in ("u", "x", "coeffs"):
            other.arguments[name] = (value.detach() * 2).requires_grad_()
    expected = [problem.solve(), other.solve()]
    for results, alone in zip(on_streams([problem, other], times=10), expected, strict=True):
        for result in results:
            assert_same_bits(result, alone)


def test_two_cuda_streams_with_different_shapes() -> None:
    """Tables of one are made while the other one runs."""
    problems = [Problem(case) for case in SCANS.values()]
    for i, problem in enumerate(problems):
        problem.arguments["horizon"] += 101 + i  # of this test alone
    results = on_streams(problems, times=5)
    for problem, solved in zip(problems, results, strict=True):
        expected = problem.solve()
        for result in solved:
            assert_same_bits(result, expected)


def captured(problem: Problem, warm_ups: int = 3) -> tuple[torch.cuda.CUDAGraph, Results]:
    """A graph of the problem's solution, and where it leaves its results."""
    stream = new_stream()
    with torch.cuda.stream(stream):
        for _ in range(warm_ups):
            problem.solve()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = problem.solve()
    return graph, results


def assert_replays(graph: torch.cuda.CUDAGraph, results: Results, expected: Results) -> None:
    for value in results.values():
        value.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(results, expected)


@scans
def test_a_cuda_graph_outlives_its_tables_turn_in_the_cache(case: Case) -> None:
    problem = Problem(case)
    expected = problem.solve()
    graph, results = captured(problem)
    assert_replays(graph, results, expected)
    for i in range(MORE_TABLES):  # of the same sizes: memory that is free is taken at once
        operator(problem.name)(**problem.arguments | {"horizon": problem.arguments["horizon"] + 1000 + i})
    assert_replays(graph, results, expected)


def test_a_cuda_graph_outlives_its_plans_turn_in_the_cache() -> None:
    problem = Problem(("fft_conv", fft_conv_case(2, 300, 70)))
    expected = problem.solve()
    graph, results = captured(problem)
    kernel = torch.randn(1, 8, device="cuda")
    for batch in range(1, MORE_PLANS // 2 + 1):  # two plans each
        ops.fft_conv(torch.randn(batch, 8, 1, device="cuda"), kernel)
    assert_replays(graph, results, expected)


@scans
def test_cuda_tables_made_during_a_capture(case: Case) -> None:
    """The rest is warm: another call has been before, and needs other tables."""
    problem = Problem(case)
    captured(problem)
    problem.arguments["horizon"] += 211  # of this test alone
    graph, results = captured(problem, warm_ups=0)
    assert_replays(graph, results, {name: value.clone() for name, value in problem.solve().items()})


def mixer_and_conv(arguments: dict[str, Arguments]) -> Tensor:
    mixed = ops.hyena_mixer(**arguments["hyena_mixer"])
    convolved = ops.legendre_conv(**arguments["legendre_conv"] | {"u": mixed})
    return (convolved * convolved).mean()


@pytest.mark.parametrize("layout", [padded(4, 500), packed(900, 1, 0, 300)], ids=["padded", "packed"])
def test_cuda_reduce_overhead(layout: Any) -> None:
    """`torch.compile` with CUDA graphs, whose trees own torch's memory: several steps of training."""
    arguments = {
        "hyena_mixer": converted(hyena_mixer_case(layout, 40, 17, 1531), torch.float32, "cuda"),
        "legendre_conv": converted(legendre_conv_case(layout, 40, 9, 1531, ()), torch.float32, "cuda"),
    }
    del arguments["legendre_conv"]["u"]
    leaves = [leaf for part in arguments.values() for leaf in differentiable(part).values()]
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(mixer_and_conv, mode="reduce-overhead", fullgraph=True)
    for step in range(6):
        with torch.no_grad():
            for leaf in leaves:
                leaf.mul_(1 + step / 64)
        expected = mixer_and_conv(arguments)
        expected_gradients = torch.autograd.grad(expected, leaves)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss = compiled(arguments)
        gradients = torch.autograd.grad(loss, leaves)
        assert error(loss, expected) < 1e-5, step
        for gradient, value in zip(gradients, expected_gradients, strict=True):
            assert error(gradient, value) < 1e-5, step
        # As a training loop would: other work between the steps, from the same allocator and the same caches.
        ops.legendre_conv(
            **converted(legendre_conv_case(padded(2, 300 + step), 40, 9), torch.float32, "cuda")
        )
    assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.parametrize("case", (SCANS | LARGE_CASES).values(), ids=SCANS | LARGE_CASES)
def test_the_host_never_waits_for_cuda(case: Case) -> None:
    """Neither forward nor backward, once what is made once is there."""
    problem = Problem(case)
    problem.solve()
    torch.cuda.synchronize()
    with restored(torch.cuda.get_sync_debug_mode, torch.cuda.set_sync_debug_mode):
        torch.cuda.set_sync_debug_mode("error")
        problem.solve()
