"""The settings of the optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hyenarec.config.auto import Auto
from hyenarec.config.checks import require, require_choice, require_count, require_number

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate.

    Attributes:
        learning_rate: the peak rate.
        weight_decay: decoupled decay of the matrices; never of biases, norms, kernels or embeddings.
        betas: exponential decay rates of AdamW's two moments.
        warmup_steps: steps of linear growth from 0 to the peak.
        schedule: what follows the warm-up: `constant`, or `cosine` down to `final_rate` x the peak.
        final_rate: where `cosine` ends, as a share of the peak.
        gradient_clip: largest global norm of the gradient; None does not clip.
    """

    learning_rate: float | Auto = "auto"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 100
    schedule: Schedule | Auto = "auto"
    final_rate: float = 0.05
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate != "auto":
            require_number("optimizer.learning_rate", rate)
            require(0 < rate < math.inf, "optimizer.learning_rate", "positive", rate)
        require(self.weight_decay >= 0, "optimizer.weight_decay", "at least 0", self.weight_decay)
        pair = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        require(pair, "optimizer.betas", "two numbers in [0, 1)", self.betas)
        require_count("optimizer.warmup_steps", self.warmup_steps, least=0)
        if self.schedule != "auto":
            require_choice("optimizer.schedule", Schedule, self.schedule)
        require(0 <= self.final_rate <= 1, "optimizer.final_rate", "between 0 and 1", self.final_rate)
        clip = self.gradient_clip
        require(clip is None or clip > 0, "optimizer.gradient_clip", "positive or null", clip)
