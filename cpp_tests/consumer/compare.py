"""Builds two C++ programs against an installed HyenaRec and compares their numbers with Python's.

    python cpp_tests/consumer/compare.py [--prefix <folder given to cmake --install>]

One program is consumer.cpp; the other is the README's, taken from there as it stands. Without a prefix this
uses the CMake package inside the installed Python package.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import hyenarec

SOURCE = Path(__file__).resolve().parent
README = SOURCE.parents[1] / "README.md"
TOLERANCE = 1e-6
README_TOLERANCE = 1e-5  # relative: the README's program prints six digits


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


def write_readme_program(folder: Path) -> None:
    """Writes the README's two code blocks that begin with a comment naming their file."""
    for name in ("CMakeLists.txt", "main.cpp"):
        (text,) = re.findall(rf"```\w+\n(\S+ {re.escape(name)}\n.*?)```", README.read_text(), re.DOTALL)
        (folder / name).write_text(text)


def readme_results() -> torch.Tensor:
    """The same calculation as the README's program."""
    torch.manual_seed(0)
    short_weight, short_bias = torch.randn(192, 4), torch.zeros(192)
    coeffs, decay, skip = torch.randn(64, 17), torch.rand(64) / 10, torch.randn(64)
    offsets = torch.tensor([0, 200, 204, 300])
    x = torch.randn(300, 192)
    y = torch.ops.hyenarec.hyena_mixer(x, short_weight, short_bias, coeffs, decay, 200, skip, offsets)
    return y[offsets[1:] - 1].norm(dim=1)


def build(source: Path, prefix: Path, folder: Path) -> None:
    """Configures and builds the program in `source` against the HyenaRec below `prefix`."""
    definitions = [
        f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    run(["cmake", "-S", str(source), "-B", str(folder), *definitions])
    run(["cmake", "--build", str(folder)])


def run(command: list[str]) -> str:
    """Runs a command; returns what it printed to stdout, raises RuntimeError with all of it if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def consumer_differences(prefix: Path, folder: Path) -> dict[str, float]:
    """Largest absolute difference between C++ and Python, for every tensor that consumer.cpp prints."""
    inputs = make_inputs()
    build(SOURCE, prefix, folder / "build")
    write_tensors(folder / "inputs.txt", inputs)
    printed = read_tensors(run([str(folder / "build" / "consumer"), str(folder / "inputs.txt")]))
    expected = python_results(inputs)
    if printed.keys() != expected.keys():
        raise RuntimeError(f"the consumer printed {sorted(printed)}, expected {sorted(expected)}")
    return {name: float((printed[name] - expected[name]).abs().max()) for name in expected}


def readme_difference(prefix: Path, folder: Path) -> float:
    """Largest relative difference between the README's program and Python."""
    write_readme_program(folder)
    build(folder, prefix, folder / "build")
    printed = torch.tensor([float(line) for line in run([str(folder / "build" / "mixer")]).splitlines()])
    return float((printed / readme_results() - 1).abs().max())


def main() -> int:
    """Prints the differences; 1 if one is too large."""
    parser = argparse.ArgumentParser(description="Compares C++ and Python on the same inputs.")
    parser.add_argument("--prefix", type=Path, default=Path(hyenarec.cmake_prefix_path))
    prefix = parser.parse_args().prefix.resolve()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as readme_folder:
        differences = consumer_differences(prefix, Path(folder))
        readme = readme_difference(prefix, Path(readme_folder))
    for name, difference in differences.items():
        print(f"{name}: largest difference between C++ and Python {difference:.2g}")
    print(f"README.md: largest relative difference {readme:.2g}")
    return 0 if readme <= README_TOLERANCE and max(differences.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
