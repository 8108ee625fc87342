"""Settings that may be left open: `auto` stands for a value that follows from the data, or else is fixed."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

Auto = Literal["auto"]
T = TypeVar("T")
C = TypeVar("C")

FIXED: dict[str, Any] = {
    "data.windows": "last",
    "data.exclude_history": False,
    "model.max_len": 200,
    "model.dropout": 0.2,
    "loss.name": "softmax",
    "loss.lookahead": 1,
    "optimizer.learning_rate": 2e-3,
    "optimizer.schedule": "cosine",
    "epochs": 20,
    "batch_events": 8192,
    "patience": 10,
    "model.lag_bias": False,
    "model.repeats": False,
    "model.own_followers": False,
    "model.followers": False,
    "model.repeats_by_time": False,
}
"""Every setting that may be `auto`, by its option's name, and its value where there is no data to ask."""


def with_values(config: C, values: dict[str, Any], prefix: str = "") -> C:
    """The configuration with `values` for all settings that are `auto`; others, and those without one, stay.

    Args:
        config: a dataclass; the settings in it that are dataclasses themselves are completed, too.
        values: by the option's name, such as "model.dropout".
        prefix: of the names of this dataclass's options, such as "model.".
    """
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = with_values(value, values, f"{name}.")
        elif isinstance(value, str) and value == "auto" and name in values:
            changed[field.name] = values[name]
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def open_settings(config: object, prefix: str = "") -> set[str]:
    """Names of the settings that are `auto` and in `FIXED`."""
    found = set()
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found.update(open_settings(value, f"{name}."))
        elif value == "auto":
            found.add(name)
    return found & FIXED.keys()


def with_fixed(config: C, prefix: str = "") -> C:
    """The configuration with nothing left open: `with_values` of `FIXED`."""
    return with_values(config, FIXED, prefix)


def settled(value: T | Auto) -> T:
    """The value of a setting that is no longer open."""
    if value == "auto":
        raise AssertionError("a setting must be settled before it is used, got 'auto'")
    return value
