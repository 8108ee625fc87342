"""`hyenarec bench train` in bfloat16 on a GPU, for machines without the packages of the command line.

    python benchmarks/gpu_bench_train.py [--device cpu] [--tiny] [--output figures.json]

GRU4Rec is left out: it processes events one by one, so that a step of long histories would take seconds on a
GPU. The figures of each length are written as they come, to `figures-<length>.json` beside the file that
--output names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from hyenarec.bench import bench_train
from hyenarec.config import LEARNED_NAMES, BenchConfig


def main() -> int:
    parser = argparse.ArgumentParser(description="Times training steps; see this file's head.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU takes a moment for")
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: nowhere")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU, and torch sees none")
    common: dict[str, Any] = {
        "device": "auto" if options.device == "cuda" else "cpu",
        "precision": "bf16",
        "models": [name for name in LEARNED_NAMES if name != "gru4rec"],
    }
    if options.tiny:
        common |= {"batch_events": 128, "num_items": 50, "dim": 16, "repetitions": 1}
    for length in (64,) if options.tiny else (200, 1024, 4096, 16384):
        path = options.output and options.output.with_stem(f"{options.output.stem}-{length}")
        bench_train(BenchConfig(lengths=[length], output=path and str(path), **common))
    return 0


if __name__ == "__main__":
    sys.exit(main())
