"""The settings of the events and their split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hyenarec.config.auto import Auto
from hyenarec.config.checks import require, require_choice, require_count, require_switch

Format = Literal["auto", "text", "csv", "parquet", "inter"]
BadRows = Literal["error", "skip"]
SplitName = Literal["leave-one-out", "temporal"]
TargetKind = Literal["next", "all"]
Windows = Literal["last", "all"]

SYNTHETIC = "synthetic"
"""The `data.path` that stands for the generated default histories instead of a file."""


@dataclass(frozen=True)
class DataConfig:
    """Where the events come from and how they are split.

    Attributes:
        path: a file (SASRec-style text, CSV, Parquet or RecBole `.inter`, gzipped or not), or `synthetic`.
        format: the file's format; `auto` takes it from the file's name.
        user_column: name of the user column, if the format has column names.
        item_column: name of the item column.
        timestamp_column: name of the time column; None means that file order is time order.
        min_user_events: users with fewer events are dropped.
        min_item_events: items with fewer events are dropped.
        on_bad_rows: `error` stops at the first malformed row, `skip` drops and counts them.
        split: `leave-one-out` (the literature's) or `temporal` (global cuts in time, nothing leaks).
        validation_fraction: share of the events, in time order, between the validation and the test cut of
            the temporal split.
        test_fraction: share of the events after the test cut of the temporal split.
        targets: what the temporal split asks for: each user's `next` event after a cut, or `all` events of
            the period as a set.
        windows: `last` trains on each user's last `max_len` events, `all` cuts the whole history into
            windows.
        exclude_history: whether to leave items that are already in the history out of the ranking.
        synthetic_users: number of generated users when `path` is `synthetic`.
    """

    path: str = SYNTHETIC
    format: Format = "auto"
    user_column: str = "user"
    item_column: str = "item"
    timestamp_column: str | None = "timestamp"
    min_user_events: int = 1
    min_item_events: int = 1
    on_bad_rows: BadRows = "error"
    split: SplitName = "leave-one-out"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    targets: TargetKind = "next"
    windows: Windows | Auto = "auto"
    exclude_history: bool | Auto = "auto"
    synthetic_users: int = 3000

    def __post_init__(self) -> None:
        require_count("data.min_user_events", self.min_user_events)
        require_count("data.min_item_events", self.min_item_events)
        require_count("data.synthetic_users", self.synthetic_users)
        require_choice("data.format", Format, self.format)
        require_choice("data.on_bad_rows", BadRows, self.on_bad_rows)
        require_choice("data.split", SplitName, self.split)
        require_choice("data.targets", TargetKind, self.targets)
        if self.exclude_history != "auto":
            require_switch("data.exclude_history", self.exclude_history)
        if self.windows != "auto":
            require_choice("data.windows", Windows, self.windows)
        for name in ("validation_fraction", "test_fraction"):
            require(0 < getattr(self, name) < 1, f"data.{name}", "between 0 and 1", getattr(self, name))
        total = self.validation_fraction + self.test_fraction
        require(total < 1, "data.validation_fraction + data.test_fraction", "below 1", total)
