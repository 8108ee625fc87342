"""The recipe: values for the settings that are left open, from statistics of the training data.

docs/recipe.md has the rules as a table, docs/accuracy.md what they lead to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from hyenarec.config import SequentialConfig, TrainConfig
from hyenarec.config.auto import open_settings, settled, with_fixed, with_values
from hyenarec.data import Histories

STEPS_PER_EPOCH = 125
FEWEST_EVENTS, MOST_EVENTS = 128, 16384
"""Bounds of a step's events."""

LENGTHS = (50, 100, 200, 500, 1000, 2000, 5000, 10000)
SPARSE, MEDIUM = 30, 150
"""Events an item, below which there is little to learn about most of them."""

MOST_ITEMS = 100_000
"""Of the full softmax, whose steps cost as much as the catalogue is large, and of the table of followers."""

LOOKAHEAD = 3
"""Items to come that are targets of an event in sparse data."""

REPEATING = 0.02
"""Share of repeated events from which on people are said to come back to items."""


@dataclass(frozen=True)
class Statistics:
    """What the rules look at.

    Attributes:
        num_items: V, size of the catalogue.
        num_targets: events with one before them, each of which is predicted once an epoch.
        usual_length: nine histories of ten are not longer.
        repeats: share of the events whose item the user has had before.
    """

    num_items: int
    num_targets: int
    usual_length: int
    repeats: float

    @staticmethod
    def of(train: Histories) -> Statistics:
        """Statistics of the training events; users without any don't count."""
        lengths = train.lengths[train.lengths > 0]
        user = np.repeat(np.arange(train.num_users, dtype=np.int64), train.lengths)
        distinct = len(np.unique(user * (train.num_items + 1) + train.items))
        return Statistics(
            num_items=train.num_items,
            num_targets=int((lengths - 1).sum()),
            usual_length=int(np.quantile(lengths, 0.9)) if len(lengths) else 0,
            repeats=1 - distinct / max(train.num_events, 1),
        )

    @property
    def targets_per_item(self) -> float:
        """How often an item is to be predicted in an epoch, on average."""
        return self.num_targets / max(self.num_items, 1)

    @property
    def is_sparse(self) -> bool:
        """Whether most items are seen too rarely to learn much about them."""
        return self.targets_per_item < SPARSE

    @property
    def step_events(self) -> int:
        """Events a step, a multiple of 128, so that an epoch has about `STEPS_PER_EPOCH` steps."""
        wanted = 128 * round(self.num_targets / STEPS_PER_EPOCH / 128)
        return min(max(wanted, FEWEST_EVENTS), MOST_EVENTS)

    def epochs(self, usual: int, step_events: int) -> int:
        """As many as have the steps of `usual` epochs, where tiny data have fewer steps in each."""
        steps = max(self.num_targets / step_events, 1)
        return max(usual, round(usual * STEPS_PER_EPOCH / steps))


@dataclass(frozen=True)
class Choice:
    """A value that the recipe chose for a setting, and why, in a few words."""

    setting: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.setting:<24} {self.value!s:<10} {self.reason}"


# --- the rules: each gives a value and its reason ---

Answer = tuple[Any, str]


def exclude_history(data: Statistics, config: TrainConfig) -> Answer:
    """Excludes what a user has had where people don't repeat."""
    return data.repeats < REPEATING, f"{data.repeats:.1%} of the events repeat an item of their history"


def windows(data: Statistics, config: TrainConfig) -> Answer:
    """All of them: the older events teach as much as the latest."""
    return "all", "every event is predicted once an epoch"


def max_len(data: Statistics, config: TrainConfig) -> Answer:
    """Long enough for nearly all histories: an event of a long one costs no more."""
    length = next((length for length in LENGTHS if length >= data.usual_length), LENGTHS[-1])
    return length, f"nine histories of ten have at most {data.usual_length:,} events"


def dropout(data: Statistics, config: TrainConfig) -> Answer:
    """The more, the fewer events tell about an item."""
    value = 0.5 if data.is_sparse else 0.3 if data.targets_per_item < MEDIUM else 0.2
    return value, f"{data.targets_per_item:,.0f} events an item"


def loss(data: Statistics, config: TrainConfig) -> Answer:
    """The full softmax, unless the catalogue is large or negatives are asked for."""
    if config.loss.negatives is not None or config.loss.distribution is not None:
        return "sampled_softmax", "it takes negatives"
    if config.loss.lookahead not in ("auto", 1):
        return "softmax", "it takes loss.lookahead"
    return ("softmax" if data.num_items <= MOST_ITEMS else "sampled_softmax"), f"{data.num_items:,} items"


def repeats(data: Statistics, config: TrainConfig) -> Answer:
    """Counts the history's items, or its steps, where people come back to items."""
    if config.data.exclude_history:
        return False, "the history is excluded"
    return data.repeats >= REPEATING, f"{data.repeats:.1%} of the events repeat an item of their history"


def lag_bias(data: Statistics, config: TrainConfig) -> Answer:
    """Learns a bias for the latest items where they may come back, with the full softmax."""
    if config.loss.name != "softmax":
        return False, f"with the loss {config.loss.name}"
    if config.loss.lookahead not in ("auto", 1):
        return False, "with loss.lookahead"
    return repeats(data, config)


def repeats_by_time(data: Statistics, config: TrainConfig) -> Answer:
    """Counts the history's items by time where their repeats count and the time is known."""
    model = cast(SequentialConfig, config.model)
    if model.time_unit is None:
        return False, "without model.time_unit"
    return settled(model.repeats), "as model.repeats"


def followers(data: Statistics, config: TrainConfig) -> Answer:
    """Counts what followed in training, unless the table of it would be large."""
    return data.num_items <= MOST_ITEMS, f"{data.num_items:,} items"


def lookahead(data: Statistics, config: TrainConfig) -> Answer:
    """Trains on the next few items where little is known of most, and counts tell which comes first."""
    model = config.model
    if not isinstance(model, SequentialConfig):
        return 1, "nothing is trained"
    against = {
        f"with the loss {config.loss.name}": config.loss.name != "softmax",
        "without model.followers": not model.followers,
        "with model.time_unit": model.uses_time,
        "with model.lag_bias": bool(model.lag_bias),
        "with model.repeat_head": model.repeat_head,
        "the history is not excluded": not config.data.exclude_history,
    }
    for reason, applies in against.items():
        if applies:
            return 1, reason
    return (LOOKAHEAD if data.is_sparse else 1), f"{data.targets_per_item:,.0f} events an item"


def schedule(data: Statistics, config: TrainConfig) -> Answer:
    """Constant on sparse data, where patience ends the run."""
    return ("constant" if data.is_sparse else "cosine"), f"{data.targets_per_item:,.0f} events an item"


def learning_rate(data: Statistics, config: TrainConfig) -> Answer:
    """Lower where it doesn't fall."""
    schedule = config.optimizer.schedule
    return (1e-3 if schedule == "constant" else 2e-3), f"with the schedule {schedule}"


def batch_events(data: Statistics, config: TrainConfig) -> Answer:
    """As many as make about `STEPS_PER_EPOCH` steps an epoch."""
    steps = data.num_targets / data.step_events
    return data.step_events, f"{steps:,.0f} steps an epoch of {data.num_targets:,} events"


def epochs(data: Statistics, config: TrainConfig) -> Answer:
    """Enough for the schedule."""
    usual = 60 if config.optimizer.schedule == "constant" else 30
    epochs = data.epochs(usual, settled(config.batch_events))
    steps = f"{usual} of {STEPS_PER_EPOCH} steps" if epochs > usual else "usual"
    return epochs, f"{steps}, with the schedule {config.optimizer.schedule}"


def patience(data: Statistics, config: TrainConfig) -> Answer:
    """Long enough that chance doesn't end a run; with the cosine, half of it: the best comes at its end."""
    usual = 6 if config.optimizer.schedule == "constant" else 15
    return data.epochs(usual, settled(config.batch_events)), "epochs without a better validation"


RULES: dict[str, Callable[[Statistics, TrainConfig], Answer]] = {
    "data.exclude_history": exclude_history,
    "data.windows": windows,
    "model.max_len": max_len,
    "model.dropout": dropout,
    "loss.name": loss,
    "model.lag_bias": lag_bias,
    "model.repeats": repeats,
    "model.own_followers": repeats,
    "model.followers": followers,
    "model.repeats_by_time": repeats_by_time,
    "loss.lookahead": lookahead,
    "optimizer.schedule": schedule,
    "optimizer.learning_rate": learning_rate,
    "batch_events": batch_events,
    "epochs": epochs,
    "patience": patience,
}
"""How each setting that may be open follows from the data, and from those that are given or above it here."""


def complete(config: TrainConfig, train: Histories) -> tuple[TrainConfig, list[Choice]]:
    """Settles what is left open, by `config.recipe`: from the training events, or at fixed values.

    Returns:
        The settings, and what was chosen from the data; settings that were given stay as they are.
    """
    if config.recipe == "none":
        return with_fixed(config), []
    data, choices, still_open = Statistics.of(train), [], open_settings(config)
    for name, rule in RULES.items():
        if name in still_open:
            choice = Choice(name, *rule(data, config))
            choices.append(choice)
            config = with_values(config, {name: choice.value})
    return config, choices
