"""HyenaRec: sequential recommendation for long histories, by Legendre convolutions instead of attention.

The parts, in the order in which an event passes them:

- `hyenarec.data`: files or frames -> vocabulary -> split -> packed batches
- `hyenarec.HyenaRec`, `hyenarec.ModelConfig`: the model; `hyenarec.Stream`: one history, event by event
- `hyenarec.baselines`: the models to compare with; `hyenarec.registry`: each model by its name
- `hyenarec.ops`: its operators (C++ and CUDA), with one readable oracle each in `hyenarec.reference`
- `hyenarec.train`: training, from the events to the report; `hyenarec.train.loss`: its objective
- `hyenarec.evaluation`: ranks, figures, reports, recommendations
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from hyenarec import ops, reference
from hyenarec._extension import __version__, cmake_prefix_path
from hyenarec.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.stream import Stream

if TYPE_CHECKING:
    from hyenarec import data, train
    from hyenarec.evaluation import evaluate, metrics, recommend, report
    from hyenarec.models import baselines, registry
    from hyenarec.train import loss

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

MODULES = {
    "baselines": "hyenarec.models.baselines",
    "data": "hyenarec.data",
    "evaluate": "hyenarec.evaluation.evaluate",
    "loss": "hyenarec.train.loss",
    "metrics": "hyenarec.evaluation.metrics",
    "recommend": "hyenarec.evaluation.recommend",
    "registry": "hyenarec.models.registry",
    "report": "hyenarec.evaluation.report",
    "train": "hyenarec.train",
}
"""The modules that are attributes of the package, and where they lie."""


def __getattr__(name: str) -> ModuleType:
    """Loads a submodule at its first use: the model and the operators need neither pyarrow nor accelerate."""
    if name in MODULES:
        return importlib.import_module(MODULES[name])
    raise AttributeError(f"module 'hyenarec' has no attribute {name!r}")
