"""Builds the consumer against an installed HyenaRec, compares its numbers with Python's torch.ops.hyenarec.

    python cpp_tests/consumer/compare.py [--prefix <folder given to cmake --install>]

Without a prefix it uses the CMake package inside the installed Python package.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import hyenarec

SOURCE = Path(__file__).resolve().parent
TOLERANCE = 1e-6


def make_inputs() -> dict[str, torch.Tensor]:
    """Random float32 arguments of every operator that the consumer calls."""
    batch, length, channels, coefficients = 2, 50, 6, 5
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "u": (batch, length, channels),
        "pre_gate": (batch, length, channels),
        "post_gate": (batch, length, channels),
        "coeffs": (channels, coefficients),
        "skip": (channels,),
        "weight": (channels, 3),
        "bias": (channels,),
        "x": (batch * length, 3 * channels),
        "short_weight": (3 * channels, 4),
        "short_bias": (3 * channels,),
    }
    inputs = {name: torch.randn(size, generator=generator) * 0.3 for name, size in sizes.items()}
    inputs["decay"] = torch.rand(channels, generator=generator) * 0.2
    return inputs


def python_results(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same calculation as consumer.cpp, through the operators that `import hyenarec` registers."""
    ops = torch.ops.hyenarec
    u = inputs["u"].clone().requires_grad_(True)
    coeffs = inputs["coeffs"].clone().requires_grad_(True)
    length = u.shape[1]
    kernel = ops.legendre_kernel(coeffs, inputs["decay"], length, length)
    filtered = ops.short_conv(u, inputs["weight"], inputs["bias"])
    out = ops.fft_conv(filtered, kernel, inputs["skip"], inputs["pre_gate"], inputs["post_gate"])
    out.square().sum().backward()
    offsets = torch.tensor([0, length - 10, 2 * length])
    mixer = (inputs["short_weight"], inputs["short_bias"], inputs["coeffs"], inputs["decay"], 2 * length)
    mixed = ops.hyena_mixer(inputs["x"], *mixer, inputs["skip"], offsets)
    assert u.grad is not None and coeffs.grad is not None
    results = {"legendre_kernel": kernel, "short_conv": filtered, "fft_conv": out, "hyena_mixer": mixed}
    results |= {"grad_u": u.grad, "grad_coeffs": coeffs.grad}
    return {name: tensor.detach() for name, tensor in results.items()}


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes the text that consumer.cpp reads."""
    lines = []
    for name, tensor in tensors.items():
        values = (f"{value:.9g}" for value in tensor.flatten().tolist())
        lines.append(" ".join([name, str(tensor.dim()), *map(str, tensor.shape), *values]))
    path.write_text("\n".join(lines) + "\n")


def read_tensors(text: str) -> dict[str, torch.Tensor]:
    """Reads the text that consumer.cpp prints."""
    tensors = {}
    for line in text.splitlines():
        name, rank, *rest = line.split()
        sizes = [int(size) for size in rest[: int(rank)]]
        tensors[name] = torch.tensor([float(value) for value in rest[int(rank) :]]).reshape(sizes)
    return tensors


def build_consumer(prefix: Path, folder: Path) -> Path:
    """Configures and builds consumer/ against the HyenaRec below `prefix`; returns the program."""
    definitions = [
        f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    run(["cmake", "-S", str(SOURCE), "-B", str(folder), *definitions])
    run(["cmake", "--build", str(folder)])
    return folder / "consumer"


def run(command: list[str]) -> str:
    """Runs a command; returns what it printed to stdout, raises RuntimeError with all of it if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def largest_differences(prefix: Path) -> dict[str, float]:
    """Largest absolute difference between C++ and Python, for every tensor that the consumer prints."""
    inputs = make_inputs()
    with tempfile.TemporaryDirectory() as folder:
        program = build_consumer(prefix, Path(folder) / "build")
        write_tensors(Path(folder) / "inputs.txt", inputs)
        printed = read_tensors(run([str(program), str(Path(folder) / "inputs.txt")]))
    expected = python_results(inputs)
    if printed.keys() != expected.keys():
        raise RuntimeError(f"the consumer printed {sorted(printed)}, expected {sorted(expected)}")
    return {name: float((printed[name] - expected[name]).abs().max()) for name in expected}


def main() -> int:
    """Prints the differences; 1 if one is too large."""
    parser = argparse.ArgumentParser(description="Compares C++ and Python on the same inputs.")
    parser.add_argument("--prefix", type=Path, default=Path(hyenarec.cmake_prefix_path))
    prefix = parser.parse_args().prefix.resolve()
    differences = largest_differences(prefix)
    for name, difference in differences.items():
        print(f"{name}: largest difference between C++ and Python {difference:.2g}")
    return 0 if all(difference <= TOLERANCE for difference in differences.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
