"""Every setting of the package, one frozen dataclass a subject.

The command line, YAML files and Python all build these same classes; a value is checked here, when the object
is made, before any work is done with it.
"""

from hyenarec.config.bench import BenchConfig
from hyenarec.config.data import SYNTHETIC, BadRows, DataConfig, Format, SplitName, TargetKind, Windows
from hyenarec.config.devices import Device, Precision
from hyenarec.config.evaluation import EvaluateOptions, RecommendOptions
from hyenarec.config.loss import Distribution, LossConfig, LossName
from hyenarec.config.models import (
    LEARNED_NAMES,
    MODEL_CONFIGS,
    BlocksConfig,
    GRU4RecConfig,
    HyenaConfig,
    KernelFamily,
    MarkovConfig,
    ModelConfig,
    PersonalConfig,
    PersonalMarkovConfig,
    PopularityConfig,
    RecommenderConfig,
    SASRecConfig,
    SequentialConfig,
    TimeUnit,
    model_config_from_dict,
    model_config_named,
)
from hyenarec.config.names import to_dict
from hyenarec.config.optimizer import OptimizerConfig, Schedule
from hyenarec.config.train import TrainConfig

__all__ = [
    "LEARNED_NAMES",
    "MODEL_CONFIGS",
    "SYNTHETIC",
    "BadRows",
    "BenchConfig",
    "BlocksConfig",
    "DataConfig",
    "Device",
    "Distribution",
    "EvaluateOptions",
    "Format",
    "GRU4RecConfig",
    "HyenaConfig",
    "KernelFamily",
    "LossConfig",
    "LossName",
    "MarkovConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PersonalConfig",
    "PersonalMarkovConfig",
    "PopularityConfig",
    "Precision",
    "RecommendOptions",
    "RecommenderConfig",
    "SASRecConfig",
    "Schedule",
    "SequentialConfig",
    "SplitName",
    "TargetKind",
    "TimeUnit",
    "TrainConfig",
    "Windows",
    "model_config_from_dict",
    "model_config_named",
    "to_dict",
]
