"""The build backend of pyproject.toml: setuptools, plus torch as a requirement only where there is none.

A torch in pyproject.toml's `requires` would make pip download another one into its isolated environment,
and the extension would be compiled against that one instead of the one that it will run with.
"""

from __future__ import annotations

from typing import Any

from hyenarec_environment import TORCH_REQUIREMENT, find_torch
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (a backend is a module with the hooks of PEP 517 and PEP 660)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """PEP 517 hook: what pip must install before it builds a wheel."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """PEP 660 hook: what pip must install before it builds an editable wheel."""
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def _torch_requirement() -> list[str]:
    return [] if find_torch() else [TORCH_REQUIREMENT]
