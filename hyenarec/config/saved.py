"""The settings that a training run leaves in its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hyenarec.config.data import DataConfig
from hyenarec.config.names import to_dict

CONFIG_OF_RUN = "train_config.json"
"""Their file in the run's folder; `hyenarec train --config` takes it, too."""


def saved_defaults(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Data and seed of the run in `folder`, as defaults of `evaluate` and `recommend`; empty without a run.

    Raises:
        ValueError: the run's settings are damaged; the message names the file.
    """
    path = Path(folder, CONFIG_OF_RUN)
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text())
        seed, data = int(saved["seed"]), DataConfig(**saved["data"])
    except KeyError as error:
        raise ValueError(f"{path} must hold the settings of a run, but it has no {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold the settings of a run, but it cannot be read: {error}") from None
    return {"seed": seed, **{f"data.{name}": value for name, value in to_dict(data).items()}}
