"""Each model is there once, with its settings and its title."""

from __future__ import annotations

from typing import get_args

from hyenarec.config import LEARNED_NAMES, MODEL_CONFIGS, KernelFamily
from hyenarec.models.kernels import KERNELS
from hyenarec.models.registry import COUNT_BASED, LEARNED


def test_every_model_has_settings_and_all_settings_a_model() -> None:
    models = LEARNED | COUNT_BASED
    assert {name: model.config_type for name, model in models.items()} == MODEL_CONFIGS
    assert list(LEARNED_NAMES) == list(LEARNED)


def test_every_kernel_family_is_there() -> None:
    assert tuple(KERNELS) == get_args(KernelFamily)
