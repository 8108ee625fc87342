"""All models by name; a new one is added here."""

from __future__ import annotations

import os
from typing import TypeVar

from hyenarec.config import RecommenderConfig, SequentialConfig
from hyenarec.models.baselines import GRU4Rec, Hyena, SASRec
from hyenarec.models.counting import CountingModel, Markov, Personal, PersonalMarkov, Popularity
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.pretrained import PretrainedModel, read_config
from hyenarec.models.sequential import SequentialModel

M = TypeVar("M", bound=PretrainedModel)


def _by_name(*models: type[M]) -> dict[str, type[M]]:
    return {model.config_type.name: model for model in models}


LEARNED: dict[str, type[SequentialModel]] = _by_name(HyenaRec, SASRec, GRU4Rec, Hyena)
"""The models that a training loop trains, by the names in their settings."""

COUNT_BASED: dict[str, type[CountingModel]] = _by_name(Markov, Popularity, Personal, PersonalMarkov)
"""The models that are made from counts."""


def make_model(config: RecommenderConfig) -> SequentialModel:
    """A freshly initialised model for a configuration.

    Raises:
        ValueError: the configuration belongs to a model that counts instead of learning.
    """
    if not isinstance(config, SequentialConfig):
        raise ValueError(f"config must be that of a model that learns, got a {type(config).__name__}")
    return LEARNED[config.name](config)


def load_model(folder: str | os.PathLike[str]) -> PretrainedModel:
    """The model that `save_pretrained` wrote, of any class, in evaluation mode on the CPU.

    Raises:
        ValueError: a file is missing or damaged.
    """
    models: dict[str, type[PretrainedModel]] = {**LEARNED, **COUNT_BASED}
    return models[read_config(folder).name].from_pretrained(folder)
