"""What a training run writes while it runs: `log.jsonl`, TensorBoard, and lines on the terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from hyenarec.files import write_atomically

LOG_FILE = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class RunLog:
    """One record an epoch, in `log.jsonl` (one JSON object a line) and in TensorBoard.

    A run that continues from a checkpoint removes what it had logged after that checkpoint, so that no epoch
    appears twice; a new run removes everything that another one left in the folder.

    Args:
        folder: the run's folder.
        epochs: finished epochs of the run; later records are removed.
        steps: steps that the run has taken.
    """

    def __init__(self, folder: Path, epochs: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        folder.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_log(folder) if record["epoch"] <= epochs]
        path = folder / LOG_FILE
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        if steps == 0:
            shutil.rmtree(folder / TENSORBOARD_FOLDER, ignore_errors=True)
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=steps + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._tensorboard.close()

    def epoch(self, record: dict[str, Any]) -> None:
        """Adds an epoch's record, with its `epoch` and `step`."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if isinstance(value, dict):
                for inner, number in value.items():
                    self.scalar(f"{name}/{inner}", number, record["step"])
            elif name not in ("epoch", "step"):
                self.scalar(f"train/{name}", value, record["step"])
        self._tensorboard.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds one number to TensorBoard only."""
        self._tensorboard.add_scalar(name, value, step)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's `log.jsonl`; a last line cut short by a kill is left out."""
    path = folder / LOG_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]
