"""The settings of `hyenarec evaluate` and `hyenarec recommend`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hyenarec.config.data import DataConfig
from hyenarec.config.devices import Device


@dataclass(frozen=True)
class SavedModelOptions:
    """A saved model, and data for it.

    Attributes:
        model: folder of the saved model: a run's `output_dir`.
        data: the events and their split; by default those of the run.
        seed: of synthetic data.
        device: `auto` uses a GPU if there is one, `cpu` does not.
    """

    model: str
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    device: Device = "auto"


@dataclass(frozen=True)
class EvaluateOptions(SavedModelOptions):
    """Evaluates a saved model on held-out items, beside popularity and Markov counts.

    Attributes:
        targets: the held-out items to rank; `test` is for reporting, `validation` for choosing.
        k: length of the ranked list.
        batch_size: users scored at a time.
    """

    targets: Literal["test", "validation"] = "test"
    k: int = 10
    batch_size: int = 256


@dataclass(frozen=True)
class RecommendOptions(SavedModelOptions):
    """Prints the best next items for a user of the data, or after a history.

    Attributes:
        user: the user's id in the data.
        history: item ids separated by blanks, oldest first; instead of a user. "" is that of a new user.
        k: number of items.
        timestamps: when the events of `history` happened, separated by blanks, in the model's `time_unit`, if
            it has one.
        at: the moment to recommend for, if the model has a `time_unit`; not before the last event.
    """

    user: str | None = None
    history: str | None = None
    k: int = 10
    timestamps: str | None = None
    at: int | None = None
