"""The settings of the training objective, and what sets its losses apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hyenarec.config.auto import Auto, settled
from hyenarec.config.checks import require, require_choice, require_count

LossName = Literal["softmax", "sampled_softmax", "bce", "gbce"]
Distribution = Literal["uniform", "popularity"]


@dataclass(frozen=True)
class LossTraits:
    """How one loss differs from the others, apart from its formula.

    Attributes:
        negatives: how many are drawn by default; 0 if all other items are the negatives.
        distribution: what they are drawn from by default.
        per_event: whether each event has negatives of its own; otherwise the events of a step share them.
        softmax: whether it is a cross-entropy over classes, whose labels can be smoothed.
    """

    negatives: int
    distribution: Distribution = "uniform"
    per_event: bool = False
    softmax: bool = False


LOSSES: dict[LossName, LossTraits] = {
    "softmax": LossTraits(negatives=0, softmax=True),
    "sampled_softmax": LossTraits(negatives=1000, distribution="popularity", softmax=True),
    "bce": LossTraits(negatives=1, per_event=True),
    "gbce": LossTraits(negatives=256),
}
"""Each loss by its name; `hyenarec.train.loss` holds the formulas."""


@dataclass(frozen=True)
class LossConfig:
    """The training objective.

    Attributes:
        name: `softmax` cross-entropy over the whole catalogue; `sampled_softmax` cross-entropy over the
            target and negatives shared by the events of a step; `bce`, SASRec's binary cross-entropy with
            negatives for each event; `gbce`, gSASRec's generalised one, with negatives shared by the events
            of a step (gSASRec draws them for each event). All but `softmax` cost the same at any size of
            the catalogue.
        negatives: how many are drawn, with replacement, for each step, or with `bce` for each event. None:
            1,000 for `sampled_softmax`, 1 for `bce` and 256 for `gbce`.
        distribution: what they are drawn from: `uniform` over the items, or by `popularity` in training.
            None: `popularity` for `sampled_softmax`, which with `logq` comes closer to `softmax`, and
            `uniform` for `bce` and `gbce`, as in their papers.
        logq: whether `sampled_softmax` corrects its scores for how often popular items are drawn.
        calibration: gSASRec's t, for `gbce` only: 0 keeps the overconfidence that sampling brings, 1 removes
            it.
        label_smoothing: share of the probability that the softmaxes spread over all their classes.
        lookahead: how many of the items that come next are targets of an event, within its training window;
            each has half the weight of the one before it. More than 1 by `softmax` only, and without the
            model's `lag_bias` and `repeat_head`.
    """

    name: LossName | Auto = "auto"
    negatives: int | None = None
    distribution: Distribution | None = None
    logq: bool = True
    calibration: float = 0.75
    label_smoothing: float = 0.0
    lookahead: int | Auto = "auto"

    def __post_init__(self) -> None:
        if self.distribution is not None:
            require_choice("loss.distribution", Distribution, self.distribution)
        if self.negatives is not None:
            require_count("loss.negatives", self.negatives)
        require(0 <= self.calibration <= 1, "loss.calibration", "from 0 to 1", self.calibration)
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "loss.label_smoothing", "at least 0 and below 1", smoothing)
        if self.lookahead != "auto":
            require_count("loss.lookahead", self.lookahead)
        draws = self.negatives is not None or self.distribution is not None
        further = self.lookahead not in ("auto", 1)
        require(not (draws and further), "loss.lookahead", "1 where negatives are drawn", self.lookahead)
        if self.name == "auto":
            return
        require_choice("loss.name", LossName, self.name)
        used = self.is_sampled or self.negatives is None
        require(used, "loss.negatives", f"null with {self.name}", self.negatives)
        allowed = self.traits.softmax or smoothing == 0
        require(allowed, "loss.label_smoothing", f"0 with {self.name}", smoothing)
        allowed = self.name == "softmax" or not further
        require(allowed, "loss.lookahead", f"1 with {self.name}", self.lookahead)

    @property
    def traits(self) -> LossTraits:
        """How the loss differs from the others."""
        return LOSSES[settled(self.name)]

    @property
    def is_sampled(self) -> bool:
        """Whether events are compared with drawn negatives instead of the whole catalogue."""
        return self.traits.negatives > 0

    @property
    def is_plain_softmax(self) -> bool:
        """Whether it is the full softmax without smoothing, the only one that trains a repeat head."""
        return self.name == "softmax" and self.label_smoothing == 0

    @property
    def num_negatives(self) -> int:
        """Negatives a step, or with `bce` an event; 0 for the full softmax."""
        return self.traits.negatives if self.negatives is None else self.negatives

    @property
    def negative_distribution(self) -> Distribution:
        """What negatives are drawn from."""
        return self.traits.distribution if self.distribution is None else self.distribution
