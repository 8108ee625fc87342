"""Arguments and settings that were renamed: the old names go on working, and files keep them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

NEW_NAMES = {"batch_tokens": "batch_events"}
"""The present name of each setting that was renamed, by its old one."""

OLD_NAMES = {new: old for old, new in NEW_NAMES.items()}
"""The reverse: the keys of such settings in files, which programs already read."""

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


def with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values by the present names of their settings.

    If both names are given, the old one counts: `dataclasses.replace` adds every present name itself.
    """
    current = {name: value for name, value in values.items() if name not in NEW_NAMES}
    return current | {NEW_NAMES[name]: value for name, value in values.items() if name in NEW_NAMES}


def takes_old_names(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function whose arguments may be given by their old names."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **with_new_names(kwargs))

    return call


def made_with_old_names(config: type[C]) -> type[C]:
    """Decorates a dataclass that may be made with the old names of its fields."""
    config.__init__ = takes_old_names(config.__init__)  # type: ignore[method-assign]
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dictionaries, ready for JSON or YAML, by the names that files have."""
    return {OLD_NAMES.get(name, name): value for name, value in dataclasses.asdict(config).items()}
