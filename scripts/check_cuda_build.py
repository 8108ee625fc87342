"""Checks a CUDA build: it imports, what has a CPU kernel has one for CUDA, and the GPU can run them.

    python scripts/check_cuda_build.py [--device cuda] [--output machine.json]

Without --device no GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

import hyenarec
from hyenarec._extension import BUILD

NO_GPU = 3  # exit status


OF_THE_CPU = "_with_states"  # what its forward pass saves, a GPU's computes again


def operators_without_kernel() -> list[str]:
    """Operators with a kernel for the CPU and none for CUDA, but for those that only a CPU needs."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("hyenarec::")]
    on_cpu = [name for name in sorted(names) if has_kernel(name, "CPU")]
    print(f"{len(on_cpu)} operators have a kernel for the CPU")
    return [name for name in on_cpu if not (has_kernel(name, "CUDA") or name.endswith(OF_THE_CPU))]


def describe_gpu() -> dict[str, object]:
    """The GPU and what bounds its speed."""
    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "capability": [gpu.major, gpu.minor],
        "multiprocessors": gpu.multi_processor_count,
        "second_level_cache_mib": gpu.L2_cache_size / 2**20,
        "memory_gib": round(gpu.total_memory / 2**30, 1),
    }


def main() -> int:
    """Prints what is there; 1 if something is missing, NO_GPU if it is the GPU."""
    parser = argparse.ArgumentParser(description="Checks a CUDA build; see this file's head.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: nowhere")
    options = parser.parse_args()
    machine: dict[str, object] = {
        "hyenarec": hyenarec.__version__,
        "package": str(Path(hyenarec.__file__).parent),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "compiled_with_cuda": BUILD.cuda_version,
        "compiled_for": BUILD.cuda_architectures,
    }
    problems = [] if BUILD.with_cuda else ["the operators were compiled without CUDA"]
    problems += [f"{name} has no CUDA kernel" for name in operators_without_kernel()]
    if options.device == "cuda":
        if not torch.cuda.is_available():
            problems.append("torch sees no GPU on this machine")
        else:
            machine |= describe_gpu()
            if not BUILD.runs_on(torch.cuda.get_device_capability()):
                problems.append(f"this GPU cannot run what was compiled for {BUILD.cuda_architectures}")
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    print("\n".join(problems) or "the CUDA build is complete")
    if options.output is not None:
        options.output.write_text(json.dumps(machine | {"problems": problems}, indent=1) + "\n")
    if options.device == "cuda" and not torch.cuda.is_available():
        return NO_GPU
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
