from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyenarec.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

MakeConfig = Callable[..., TrainConfig]
STEPS_PER_EPOCH = 5


@pytest.fixture(autouse=True)
def in_one_thread(one_thread: None) -> None:
    """Every run here, in this process and in others, adds up in the same order."""


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """80 users, each walking through 30 items with a stride of its own: quickly learned."""
    choose = random.Random(1)
    lines = []
    for user in range(80):
        start, length = choose.randrange(30), choose.randrange(4, 20)
        lines += [f"{user} {100 + (start + step * (1 + start % 3)) % 30}\n" for step in range(length)]
    path = tmp_path / "events.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture
def timed_events(tmp_path: Path) -> Path:
    """80 users who choose one of 12 items by the hour alone; times are in minutes."""
    choose = random.Random(2)
    lines = []
    for user in range(80):
        minutes = sorted(choose.randrange(60 * 24 * 30) for _ in range(12))
        lines += [f"{user} {100 + minute // 120 % 12} {minute}\n" for minute in minutes]
    path = tmp_path / "timed_events.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture
def make_config(events: Path, timed_events: Path, tmp_path: Path) -> MakeConfig:
    """A run of about 5 steps an epoch in `tmp_path / folder`, with other settings as given.

    With `timed`, the time is an input, and its data the one of `timed_events`.
    """

    def make(
        folder: str = "run",
        *,
        dropout: float = 0.1,
        learning_rate: float = 1e-2,
        timed: bool = False,
        **settings: Any,
    ) -> TrainConfig:
        config = TrainConfig(
            data=DataConfig(path=str(timed_events if timed else events)),
            model=ModelConfig(
                dim=16,
                num_blocks=1,
                max_len=16,
                num_coeffs=5,
                ffn_multiple=2,
                dropout=dropout,
                time_unit="minute" if timed else None,
            ),
            optimizer=OptimizerConfig(warmup_steps=5, learning_rate=learning_rate, weight_decay=0.01),
            recipe="none",
            epochs=3,
            batch_events=150,
            device="cpu",
            output_dir=str(tmp_path / folder),
        )
        return dataclasses.replace(config, **settings)

    return make
