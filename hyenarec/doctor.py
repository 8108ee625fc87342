"""`hyenarec doctor`: how this installation was made, and whether its operators compute what they should."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hyenarec import ops, reference
from hyenarec._extension import BUILD, __version__

Arguments = dict[str, "Tensor | int | float | str"]

# Largest error that passes, relative to the largest expected number; an error in a formula costs far more.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass(frozen=True)
class SelfTest:
    """One operator with its oracle and arguments, in float64 on the CPU."""

    name: str
    operator: Callable[..., Tensor]
    oracle: Callable[..., Tensor]
    arguments: Arguments
    activations: tuple[str, ...] = ()  # the arguments that may have 16 bits; the others are parameters
    differentiable: bool = True


def self_tests() -> list[SelfTest]:
    """Every operator, with sizes that are no multiple of a block or vector, and every optional argument."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    batch, length, channels, horizon = 3, 77, 19, 100
    legendre: Arguments = {
        "coeffs": normal(channels, 17),
        "decay": normal(channels).abs() / 10,
        "horizon": horizon,
        "length": length,
    }
    convolution: Arguments = {
        "u": normal(batch, length, channels),
        "kernel": normal(channels, horizon),
        "skip": normal(channels),
        "pre_gate": normal(batch, length, channels),
        "post_gate": normal(batch, length, channels),
    }
    padded: Arguments = {
        "u": normal(batch, length, channels),
        "weight": normal(channels, 3),
        "bias": normal(channels),
    }
    packed: Arguments = {
        "u": normal(length, channels),
        "weight": normal(channels, 4),
        "bias": normal(channels),
        "offsets": torch.tensor([0, 5, 5, 60, length]),
    }
    scan: Arguments = {
        "u": normal(batch, length, channels),
        "coeffs": normal(channels, 17),
        "decay": normal(channels).abs() / 10,
        "horizon": horizon,
        "skip": normal(channels),
        "pre_gate": normal(batch, length, channels),
        "post_gate": normal(batch, length, channels),
    }
    offsets = torch.tensor([0, 5, 5, 90, 2 * length])
    packed_scan = scan | {name: normal(2 * length, channels) for name in ("u", "pre_gate", "post_gate")}
    mixer: Arguments = {
        "x": normal(2 * length, 3 * channels),
        "short_weight": normal(3 * channels, 4),
        "short_bias": normal(3 * channels),
        "coeffs": normal(channels, 9),
        "decay": normal(channels).abs() / 10,
        "horizon": horizon,
        "skip": normal(channels),
        "offsets": offsets,
    }
    catalogue: Arguments = {
        "hidden": normal(length, channels),
        "weight": normal(horizon, channels),
        "bias": normal(horizon),
        "target": torch.arange(length) - 1,
        "label_smoothing": 0.1,
        "reduction": "none",
    }
    norm: Arguments = {
        "branch": normal(batch, length, channels),
        "residual": normal(batch, length, channels),
        "weight": normal(channels),
        "bias": normal(channels),
        "p": 0.2,
        "seed": torch.tensor(5),
    }
    sampled = catalogue | {"candidates": torch.arange(0, horizon, 3), "log_q": normal(horizon)}
    gated = ("u", "pre_gate", "post_gate")
    conv, loss = reference.legendre_conv, reference.linear_cross_entropy
    return [
        SelfTest("legendre_kernel", ops.legendre_kernel, reference.legendre_kernel, legendre),
        SelfTest("fft_conv", ops.fft_conv, reference.fft_conv, convolution, gated),
        SelfTest("short_conv", ops.short_conv, reference.short_conv, padded, ("u",)),
        SelfTest("short_conv, packed", ops.short_conv, reference.short_conv, packed, ("u",)),
        SelfTest("legendre_conv", ops.legendre_conv, conv, scan, gated),
        SelfTest("legendre_conv, packed", ops.legendre_conv, conv, packed_scan | {"offsets": offsets}, gated),
        SelfTest("hyena_mixer, packed", ops.hyena_mixer, reference.hyena_mixer, mixer, ("x",)),
        SelfTest(
            "dropout_add_layer_norm",
            stacked(ops.dropout_add_layer_norm),
            stacked(reference.dropout_add_layer_norm),
            norm,
            ("branch", "residual"),
        ),
        SelfTest("linear_cross_entropy", ops.linear_cross_entropy, loss, catalogue, ("hidden", "weight")),
        SelfTest(
            "linear_cross_entropy, sampled", ops.linear_cross_entropy, loss, sampled, ("hidden", "weight")
        ),
        SelfTest("legendre_step", stepwise, conv, scan, gated, differentiable=False),
    ]


def stacked(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    """The function's outputs as one."""
    return lambda **arguments: torch.stack(function(**arguments))


def stepwise(
    u: Tensor,
    coeffs: Tensor,
    decay: Tensor,
    horizon: int,
    skip: Tensor,
    pre_gate: Tensor,
    post_gate: Tensor,
) -> Tensor:
    """`legendre_conv` by `legendre_step`: one event, then all the others."""
    weights = ops.legendre_step_weights(coeffs, decay, horizon, skip)
    state = ops.legendre_step_state(coeffs, u.shape[0])
    position = torch.zeros(u.shape[0], dtype=torch.int64, device=u.device)
    gates = [pre_gate, post_gate]
    first = ops.legendre_step(state, u[:, 0], position, weights, horizon, *(gate[:, 0] for gate in gates))
    others = ops.legendre_step(
        state, u[:, 1:], position + 1, weights, horizon, *(gate[:, 1:] for gate in gates)
    )
    return torch.cat([first[:, None], others], dim=1)


def run_with_gradients(function: Callable[..., Tensor], arguments: Arguments) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of its weighted sum with respect to every floating argument but log_q."""
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name != "log_q"
    }
    out = function(**(arguments | leaves))
    weights = torch.linspace(0, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    grads = torch.autograd.grad(out, list(leaves.values()), weights.to(out.device, out.dtype))
    return out.detach(), list(grads)


def largest_error(test: SelfTest, device: torch.device, dtype: torch.dtype) -> tuple[float, float | None]:
    """Largest errors of output and gradients against the oracle, relative to the largest expected number.

    None for the gradients of what has none.

    The oracle gets the same rounded arguments, in float64.
    """
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    rounded: Arguments = {}
    for name, value in test.arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            rounded[name] = value.to(device, dtype if name in test.activations else parameter)
        else:
            rounded[name] = value.to(device) if isinstance(value, Tensor) else value
    exact = {
        name: value.to("cpu", torch.float64 if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in rounded.items()
    }
    if not test.differentiable:
        return relative_error(test.operator(**rounded), test.oracle(**exact)), None
    got, got_grads = run_with_gradients(test.operator, rounded)
    expected, expected_grads = run_with_gradients(test.oracle, exact)
    backward = [relative_error(*pair) for pair in zip(got_grads, expected_grads, strict=True)]
    return relative_error(got, expected), float(torch.tensor(backward).max())


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest expected magnitude; NaN if `got` holds one."""
    difference = (got.to("cpu", torch.float64) - expected).abs().max()
    return float(difference / expected.abs().max())


def devices() -> list[torch.device]:
    """The devices that the operators have kernels for and that are present."""
    gpus = (index for index in range(torch.cuda.device_count()) if runs_on(index))
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in gpus)]


def runs_on(index: int) -> bool:
    """Whether the operators were compiled for a GPU of this kind."""
    return BUILD.runs_on(torch.cuda.get_device_capability(index))


def self_test_lines() -> Iterator[tuple[bool, str]]:
    """Runs every operator in every dtype on every device; yields whether it passed, and a line about it."""
    tests = self_tests()
    for device in devices():
        for test in tests:
            dtypes = [torch.float64, torch.float32]
            if test.activations:
                dtypes += [torch.bfloat16] + ([torch.float16] if device.type == "cuda" else [])
            for dtype in dtypes:
                line = f"  {test.name:29} {device!s:7} {str(dtype).removeprefix('torch.'):9}"
                try:
                    forward, backward = largest_error(test, device, dtype)
                except RuntimeError as error:
                    yield False, f"{line} FAILED: {error}"
                    continue
                # Written so that NaN is wrong.
                allowed = TOLERANCES[dtype]
                passed = forward <= allowed and (backward is None or backward <= allowed)
                verdict = "ok" if passed else f"WRONG, at most {allowed:.0e} is allowed"
                gradients = f"{'no backward':16}" if backward is None else f"backward {backward:.1e}"
                yield passed, f"{line} forward {forward:.1e}  {gradients}  {verdict}"


def describe() -> Iterator[str]:
    """What is installed, line by line."""
    yield f"hyenarec {__version__} in {Path(__file__).parent}"
    yield f"Python {platform.python_version()} on {platform.platform()}"
    yield f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    cuda = "without CUDA"
    if BUILD.with_cuda:
        cuda = f"with CUDA {BUILD.cuda_version} for {BUILD.cuda_architectures}"
    yield f"extension: compiled against torch {BUILD.torch_version} by {BUILD.compiler}, {cuda}"
    yield f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        yield f"GPU {index}: {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
        if BUILD.with_cuda and not runs_on(index):
            yield (
                f"the operators cannot run on GPU {index}: they were compiled for {BUILD.cuda_architectures}."
                f' Reinstall from the sources: TORCH_CUDA_ARCH_LIST="{major}.{minor}" '
                "pip install --no-build-isolation --force-reinstall --no-deps ."
            )
    if torch.cuda.device_count() and not BUILD.with_cuda:
        yield (
            "the operators run on the CPU only: they were compiled without CUDA. With nvcc in PATH, "
            "reinstall: HYENAREC_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps ."
        )
    for tool in ("c++", "nvcc"):
        yield f"{tool}: {tool_version(tool)}"


def tool_version(tool: str) -> str:
    """The line of `<tool> --version` that holds its version."""
    path = shutil.which(tool)
    if path is None:
        return "not found (needed to build only)"
    lines = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    return next((line for line in lines if "release" in line), lines[0])


def main() -> int:
    """Prints the installation and runs the self-test; returns the exit status, 1 if an operator is wrong."""
    for line in describe():
        print(line)
    print("self-test: largest errors against hyenarec.reference, relative to the largest expected number")
    all_passed = True
    for passed, line in self_test_lines():
        print(line, flush=True)
        all_passed = all_passed and passed
    print("every operator agrees with its oracle" if all_passed else "hyenarec doctor: an operator is WRONG")
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
