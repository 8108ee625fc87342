"""A run's folder: whether a run may use it, how it is prepared, and the settings in it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from hyenarec.config import SYNTHETIC, TrainConfig, to_dict
from hyenarec.config.saved import CONFIG_OF_RUN
from hyenarec.data.vocabulary import FILE_NAME as VOCABULARY_FILE
from hyenarec.evaluation.report import REPORT_FILE
from hyenarec.files import write_atomically
from hyenarec.models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from hyenarec.train.checkpoint import CHECKPOINT_FILE
from hyenarec.train.run_log import LOG_FILE, TENSORBOARD_FOLDER


def require_usable_folder(config: TrainConfig) -> None:
    """Refuses to overwrite another run without being told to."""
    folder = Path(config.output_dir)
    has_run = any((folder / name).exists() for name in (CHECKPOINT_FILE, WEIGHTS_FILE))
    if has_run and not (config.resume or config.overwrite):
        raise ValueError(
            f"output_dir must be a folder without a run, but {folder} has one: continue it with --resume, "
            "replace it with --overwrite, or choose another folder"
        )


def begin_folder(config: TrainConfig) -> None:
    """Removes everything of an earlier run that a later resume could mistake for this one's."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if config.overwrite:
        shutil.rmtree(folder / TENSORBOARD_FOLDER, ignore_errors=True)
        # The checkpoint goes last: until then the folder holds the earlier run's, not a mixture.
        for name in (WEIGHTS_FILE, CONFIG_FILE, VOCABULARY_FILE, REPORT_FILE, LOG_FILE, CHECKPOINT_FILE):
            (folder / name).unlink(missing_ok=True)
    write_settings(config)


def write_settings(config: TrainConfig) -> None:
    """Writes the settings; they continue this run, or start another, from any working directory."""
    as_new = dataclasses.replace(located(config), resume=False, overwrite=False)
    text = json.dumps(to_dict(as_new), indent=2) + "\n"
    write_atomically(Path(config.output_dir) / CONFIG_OF_RUN, text.encode())


def located(config: TrainConfig) -> TrainConfig:
    """The settings with absolute paths; links are kept, for a file's name may tell its format."""
    data = config.data
    if data.path != SYNTHETIC:
        data = dataclasses.replace(data, path=str(Path(data.path).absolute()))
    return dataclasses.replace(config, data=data, output_dir=str(Path(config.output_dir).absolute()))
