"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hyenarec.config.auto import Auto
from hyenarec.config.checks import require, require_choice, require_count
from hyenarec.config.data import DataConfig
from hyenarec.config.devices import Device, Precision
from hyenarec.config.loss import LossConfig
from hyenarec.config.models import ModelConfig, RecommenderConfig
from hyenarec.config.names import made_with_old_names
from hyenarec.config.optimizer import OptimizerConfig

Recipe = Literal["data", "none"]


@made_with_old_names
@dataclass(frozen=True)
class TrainConfig:
    """One training run, from the events to the reported score.

    A setting that is `auto`, here or in the parts, is left to the recipe; one that is given always counts.

    Attributes:
        data: the events and their split.
        model: the model: an object of a class in `MODEL_CONFIGS`.
        loss: the training objective; a model that counts has none.
        optimizer: the optimiser and its schedule.
        recipe: where the values of settings that are `auto` come from: the training `data`, by the rules in
            docs/recipe.md, or `none` of it: they are fixed, in `hyenarec.config.auto`.
        epochs: most passes over the training windows; another number on `resume` stretches or shrinks the
            rest of the cosine schedule.
        batch_events: most events a step, over all processes together; a longer window is a step of its own.
        patience: epochs without a better validation NDCG@10 before training stops; None never stops early.
        evaluate_every: epochs between two validations.
        seed: of initial values, order of batches, negatives, dropout and synthetic data.
        device: `auto` uses the GPUs if there are any, `cpu` does not.
        precision: `no` (float32), `bf16` or `fp16` mixed precision.
        output_dir: folder for checkpoints, logs, the report and the saved model.
        resume: continue the run in `output_dir` from its last checkpoint; start it if there is none yet. With
            the same settings and data it ends as if it had never stopped; with other `epochs` it may not.
        overwrite: begin a new run in an `output_dir` that already has one.
        checkpoint_every: steps between two checkpoints within an epoch; each epoch ends with one anyway.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: RecommenderConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    recipe: Recipe = "data"
    epochs: int | Auto = "auto"
    batch_events: int | Auto = "auto"
    patience: int | Auto | None = "auto"
    evaluate_every: int = 1
    seed: int = 0
    device: Device = "auto"
    precision: Precision = "no"
    output_dir: str = "runs/hyenarec"
    resume: bool = False
    overwrite: bool = False
    checkpoint_every: int | None = None

    @property
    def batch_tokens(self) -> int | Auto:
        """The old name of `batch_events`."""
        return self.batch_events

    def __post_init__(self) -> None:
        require_choice("recipe", Recipe, self.recipe)
        require_count("evaluate_every", self.evaluate_every)
        special = {"epochs": ("auto",), "batch_events": ("auto",), "patience": ("auto", None)}
        for name, words in {**special, "checkpoint_every": (None,)}.items():
            if getattr(self, name) not in words:
                require_count(name, getattr(self, name))
        require_count("seed", self.seed, least=0)
        require_choice("device", Device, self.device)
        require_choice("precision", Precision, self.precision)
        require(self.output_dir != "", "output_dir", "a folder", self.output_dir)
        require(not (self.resume and self.overwrite), "overwrite", "false with resume", self.overwrite)
