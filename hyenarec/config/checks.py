"""Checks of a setting's value; an error names the setting, what was expected and what came."""

from __future__ import annotations

from typing import Any, get_args


def require(holds: bool, name: str, expected: str, value: object) -> None:
    """Raises ValueError unless the condition holds."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def require_choice(name: str, choices: Any, value: object) -> None:
    """Raises ValueError unless the value is one of a `Literal`."""
    options = get_args(choices)
    require(value in options, name, "one of " + ", ".join(map(repr, options)), value)


def require_switch(name: str, value: object) -> None:
    """Raises ValueError unless the value is true or false."""
    require(isinstance(value, bool), name, "true or false", value)


def require_number(name: str, value: object) -> None:
    """Raises ValueError unless the value is a number."""
    require(isinstance(value, int | float) and not isinstance(value, bool), name, "a number", value)


def require_count(name: str, value: object, least: int = 1) -> None:
    """Raises ValueError unless the value is a whole number that is large enough."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= least, name, f"an integer of at least {least}", value)  # type: ignore[operator]
