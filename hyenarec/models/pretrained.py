"""A model on disk: its settings in `config.json`, its tensors in `model.safetensors`; nothing is pickled."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors
import safetensors.torch
from torch import Tensor, nn

from hyenarec.config import (
    BlocksConfig,
    ModelConfig,
    RecommenderConfig,
    model_config_from_dict,
    model_config_named,
)
from hyenarec.config.auto import settled, with_fixed
from hyenarec.data.times import Times
from hyenarec.files import write_atomically

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = 6
"""Of `config.json`. Format 1 had no number, and its blocks had `pre` norms only; format 2 had `repeat_head`
under the name `repeats`; format 3 had neither time nor a row for empty histories; up to format 5 the
weights of counts had another form, which is not read any more."""


class PretrainedModel(nn.Module):
    """A recommender that is made from a configuration, and can be saved and loaded.

    Args:
        config: its settings, an instance of `config_type`; `num_items` must be set.
    """

    config_type: ClassVar[type[RecommenderConfig]]

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_type):
            raise ValueError(
                f"config must be a {self.config_type.__name__} to make a {type(self).__name__}, "
                f"got a {type(config).__name__}"
            )
        if config.num_items is None:
            raise ValueError(
                "config.num_items must be set to the catalogue's size before a model is made, got None"
            )
        self.config = with_fixed(config, "model.")
        self._num_items = config.num_items

    @property
    def num_items(self) -> int:
        """V, size of the catalogue."""
        return self._num_items

    @property
    def max_len(self) -> int:
        """The number of latest events of a history that the model sees."""
        return settled(self.config.max_len)

    @property
    def uses_time(self) -> bool:
        """Whether scores follow from when events happened and from the moment that they are asked for."""
        return self.config.uses_time

    @property
    def scores_empty_histories(self) -> bool:
        """Whether histories without events have scores, too."""
        return False

    def score(
        self, items: Tensor, offsets: Tensor, timestamps: Tensor | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Scores of the next event after each history; see `hyenarec.evaluation.scoring.Recommender`.

        Args:
            items: int64 `[total]`, ids 1..V, oldest event first.
            offsets: int64 `[B + 1]`; history b is `items[offsets[b]:offsets[b + 1]]`.
            timestamps: int64 `[total]`, when events happened; with `at`, if and only if the model was trained
                with `time_unit`, and in that unit.
            at: int64 `[B]`, the moment that each history is asked for, not before its last event.
        """
        if (timestamps is None) != (at is None):
            given = "at" if timestamps is None else "timestamps"
            raise ValueError(f"timestamps and at must be given together, got only {given}")
        times = None if timestamps is None or at is None else Times(timestamps, at)
        return self.score_tile(self.encode(items, offsets, times), 0, self.num_items)

    def encode(self, items: Tensor, offsets: Tensor, times: Times | None = None) -> Any:
        """What the scores need of each packed history; see `hyenarec.evaluation.scoring.TiledRecommender`."""
        raise NotImplementedError

    def require_times(self, given: bool) -> None:
        """Raises ValueError unless moments are given if and only if the model uses them."""
        if given != self.uses_time:
            raise ValueError(
                "timestamps and at must be given to a model with time_unit, and to no other, "
                f"got {'some for a model without' if given else 'none for a model with it'}"
            )

    def score_tile(self, state: Any, first: int, last: int) -> Tensor:
        """The columns `first` up to `last` of the scores, from what `encode` gave."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `config.json` and `model.safetensors`; neither is ever half written."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self.config)}, indent=2) + "\n"
        write_atomically(folder / WEIGHTS_FILE, safetensors.torch.save(weights))
        write_atomically(folder / CONFIG_FILE, text.encode())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """The model that `save_pretrained` wrote, in evaluation mode on the CPU.

        Raises:
            ValueError: a file is missing or damaged, or holds a model of another class.
        """
        folder = Path(folder)
        config = read_config(folder)
        try:
            model = cls._restore(config, safetensors.torch.load_file(folder / WEIGHTS_FILE))
        except (safetensors.SafetensorError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise ValueError(
                f"{folder / WEIGHTS_FILE} must be what {CONFIG_FILE} describes: {message}"
            ) from None
        return model.eval()

    @classmethod
    def _restore(cls, config: RecommenderConfig, tensors: Mapping[str, Tensor]) -> Self:
        """The model with these settings and tensors; RuntimeError if they don't match."""
        model = cls(config)
        model.load_state_dict(tensors)
        return model


def read_config(folder: str | os.PathLike[str]) -> RecommenderConfig:
    """The settings of the model saved in `folder`.

    Raises:
        ValueError: a file is missing, or a setting is wrong.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"folder must hold {CONFIG_FILE} and {WEIGHTS_FILE}, but {folder} has no {name}")
    values = json.loads((folder / CONFIG_FILE).read_text())
    version = values.pop("format", 1)
    if version not in range(1, FORMAT + 1):
        raise ValueError(
            f"format must be at most {FORMAT}, which this version of hyenarec reads, got {version!r} "
            f"in {folder / CONFIG_FILE}"
        )
    if version == 2:
        values |= {"repeat_head": values.pop("repeats", False)}
    if version == 1 and issubclass(model_config_named(values.get("name", ModelConfig.name)), BlocksConfig):
        values["norm"] = "pre"
    return model_config_from_dict(values)
