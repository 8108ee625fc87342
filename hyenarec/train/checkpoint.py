"""A training run on disk: one safetensors file, never half written, with everything to continue exactly.

Each tensor's name begins with the part of the run that it belongs to (`model.`, `best.`, `optimizer.`,
`random.`); configuration, progress and a digest of the data are in the file's metadata. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenarec.config import TrainConfig, to_dict
from hyenarec.config.auto import FIXED, open_settings, with_fixed, with_values
from hyenarec.config.names import NEW_NAMES, with_new_names
from hyenarec.config.saved import CONFIG_OF_RUN
from hyenarec.data import Split
from hyenarec.files import replacing

CHECKPOINT_FILE = "checkpoint.safetensors"
FORMAT = "hyenarec-checkpoint-4"
"""Format 2 counted a step's windows, 3 its events; models of 4 have post norms unless they say otherwise.

A run of one cannot continue as another."""

MAY_CHANGE = (
    *("recipe", "epochs", "patience", "checkpoint_every", "output_dir", "resume", "overwrite"),
    *("model.repeats", "model.own_followers", "model.followers", "model.repeats_by_time"),
)
"""Settings that a resumed run may change: how long it trains and where it writes, who chose the others, and
what is counted after the last epoch.

Only `epochs` changes what a step computes: the cosine schedule ends with the last epoch, so another number
stretches or shrinks the rest of it, and the run differs from one that had this number from the beginning.
"""


@dataclass
class Progress:
    """How far a run has come, besides its tensors.

    Attributes:
        epoch: finished epochs; the run continues in the epoch of this number (counted from 0).
        step: steps taken of that epoch.
        total_steps: steps taken since the beginning; the learning rate follows from it.
        loss_sum: loss summed over the events of the unfinished epoch, all processes together.
        events: predicted events of the unfinished epoch, all processes together.
        epoch_seconds: time spent in the training steps of the unfinished epoch.
        wall_seconds: time spent in the run before now, validations and checkpoints included.
        best_score: best validation NDCG@10 so far; -1, below all, before the first validation.
        best_epoch: finished epochs at that validation.
        validated_epoch: finished epochs at the last validation.
        loss_scale: state of the gradient scaler; empty unless fp16.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    loss_sum: float = 0.0
    events: int = 0
    epoch_seconds: float = 0.0
    wall_seconds: float = 0.0
    best_score: float = -1.0
    best_epoch: int = 0
    validated_epoch: int = 0
    loss_scale: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Everything of a run: its configuration, its progress and its tensors by part.

    Attributes:
        config: the `TrainConfig` as nested dictionaries.
        progress: position, best score, counters.
        data: the `data_digest` of its training and evaluation data.
        model: the model's state.
        best: the model's state at the best validation; empty before the first.
        optimizer: the optimiser's state, by `<number of the parameter>.<name>`.
        random: states of the random generators, one row a process.
    """

    config: dict[str, Any]
    progress: Progress
    data: str
    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]


PARTS = ("model", "best", "optimizer", "random")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; at any moment `path` holds either the old one or the new one, complete."""
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part in PARTS
        for name, tensor in getattr(checkpoint, part).items()
    }
    metadata = {
        "format": FORMAT,
        "config": json.dumps(checkpoint.config),
        "progress": json.dumps(dataclasses.asdict(checkpoint.progress)),
        "data": checkpoint.data,
    }
    with replacing(path) as partial:
        safetensors.torch.save_file(tensors, partial, metadata)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote, on the CPU.

    Raises:
        ValueError: the file is not a checkpoint of this program.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for name in file.keys():  # noqa: SIM118
                part, _, rest = name.partition(".")
                parts.setdefault(part, {})[rest] = file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} must be a checkpoint of a run, but it cannot be read: {error}") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} must be in the format {FORMAT}, got {metadata.get('format')!r}: resume with the version "
            "that wrote it, or begin anew with --overwrite"
        )
    progress = Progress(**json.loads(metadata["progress"]))
    config = json.loads(metadata["config"])
    return Checkpoint(config, progress, metadata["data"], *(parts[part] for part in PARTS))


def with_settings_of(config: TrainConfig, path: Path) -> TrainConfig:
    """The settings for a run that goes on from a checkpoint, if there is one.

    What is still open is as it was, whatever the recipe would choose today; settings that came after the
    version that wrote the checkpoint have the values at which nothing changes. Those in `MAY_CHANGE` are
    still free.
    """
    if not path.exists():
        return config
    known = FIXED | dict(_flatten(with_new_names(load_checkpoint(path).config)))
    return with_values(config, {name: known[name] for name in open_settings(config) - set(MAY_CHANGE)})


def require_same_config(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses to continue a run under settings that would make it a different run.

    Args:
        saved: the checkpoint's settings, as nested dictionaries. A setting that did not exist yet counts as
            its default.
        current: the settings of the run that is to continue it.

    Raises:
        ValueError: names the first setting that differs; those in `MAY_CHANGE` may.
    """
    before, now = (dict(_flatten(json.loads(json.dumps(config)))) for config in (saved, current))
    defaults = dict(_flatten(to_dict(with_fixed(TrainConfig()))))
    before = {name: defaults[name] for name in now if name in defaults} | before
    settings = shlex.quote(os.path.join(now["output_dir"], CONFIG_OF_RUN))
    for name in (*now, *before):
        if name not in MAY_CHANGE and not _same(name, before.get(name), now.get(name)):
            raise ValueError(
                f"{NEW_NAMES.get(name, name)} must be {before.get(name)!r} to resume this run, "
                f"got {now.get(name)!r}; "
                f"hyenarec train --config {settings} --resume continues it under its own settings"
            )


def _same(name: str, before: object, now: object) -> bool:
    """Whether two values of a setting mean the same; paths do if they lead to the same file."""
    if name == "data.path":
        return os.path.realpath(str(before)) == os.path.realpath(str(now))
    return before == now


CHOSEN_FROM_DATA = ("data.windows", "data.exclude_history", "data.path")
"""Settings of the data that don't tell which events there are; a path may be written differently."""


def reads_the_same(saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether two runs' settings lead to the same events, unless the file has changed."""
    before, now = (dict(_flatten({"data": config["data"]})) for config in (saved, current))
    same = all(before.get(name) == now[name] for name in now if name not in CHOSEN_FROM_DATA)
    same = same and saved["model"].get("time_unit") == current["model"].get("time_unit")
    return same and _same("data.path", before["data.path"], now["data.path"])


def require_same_data(saved: str, current: str, path: str) -> None:
    """Refuses to continue a run on different data.

    Args:
        saved: the checkpoint's `data_digest`.
        current: the `data_digest` of the run that is to continue it.
        path: where the data came from, for the message.

    Raises:
        ValueError: the digests differ.
    """
    if saved != current:
        raise ValueError(
            f"data must be the same as when the run began to resume it, but {path} has other events or items "
            f"now (SHA-256 {saved[:12]} then, {current[:12]} now)"
        )


def data_digest(split: Split) -> str:
    """SHA-256 of everything that a run uses of its data: catalogue, training histories, targets, times."""
    digest = hashlib.sha256(json.dumps(split.train.vocabulary.item_ids.tolist()).encode())
    arrays: list[NDArray[Any]] = [split.train.offsets, split.train.items]
    for targets in (split.validation, split.test):
        arrays += [targets.offsets, targets.items, targets.target_offsets, targets.target_items]
    if split.validation.timestamps is not None:  # the times are used, too
        histories = [part.timestamps for part in (split.train, split.validation, split.test)]
        asked = [targets.asked for targets in (split.validation, split.test)]
        arrays += [moments for moments in (*histories, *asked) if moments is not None]
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array.tobytes())
    return digest.hexdigest()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors, without the hyperparameters, which the configuration has."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores the state that `pack_optimizer` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> dict[str, Tensor]:
    """The states of this process's random generators, as byte vectors."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_state(states: Mapping[str, Tensor]) -> None:
    """Restores what `random_state` returned."""
    # Copies: of a view, such as one process's row, torch would read the underlying memory from its start.
    torch.set_rng_state(states["cpu"].clone())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].clone())


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
