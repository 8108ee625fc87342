"""HyenaRec: sequential recommendation for long histories, by Legendre convolutions instead of attention.

The parts, in the order in which an event passes them:

- `hyenarec.data`: files or frames -> vocabulary -> split -> packed batches
- `hyenarec.HyenaRec`, `hyenarec.ModelConfig`: the model; `hyenarec.Stream`: one history, event by event
- `hyenarec.baselines`: the models to compare with; `hyenarec.registry`: each model by its name
- `hyenarec.ops`: its operators (C++ and CUDA), with one readable oracle each in `hyenarec.reference`
- `hyenarec.loss`, `hyenarec.evaluate`, `hyenarec.metrics`: what training lowers and what is reported
- `hyenarec.train`: conducts all of them; `hyenarec.recommend`: uses the result
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from hyenarec import ops, reference
from hyenarec._extension import __version__, cmake_prefix_path
from hyenarec.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from hyenarec.model import HyenaRec
from hyenarec.stream import Stream

if TYPE_CHECKING:
    from hyenarec import baselines, data, evaluate, loss, metrics, recommend, registry, report, train

__all__ = [
    "DataConfig",
    "HyenaRec",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Stream",
    "TrainConfig",
    "__version__",
    "baselines",
    "cmake_prefix_path",
    "data",
    "evaluate",
    "loss",
    "metrics",
    "ops",
    "recommend",
    "reference",
    "registry",
    "report",
    "train",
]


def __getattr__(name: str) -> ModuleType:
    """Loads a submodule at its first use: the model and the operators need neither pyarrow nor accelerate."""
    if name in __all__:
        return importlib.import_module(f"hyenarec.{name}")
    raise AttributeError(f"module 'hyenarec' has no attribute {name!r}")
