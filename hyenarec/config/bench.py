"""The settings of `hyenarec bench train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hyenarec.config.checks import require, require_choice, require_count
from hyenarec.config.devices import Device
from hyenarec.config.models import LEARNED_NAMES
from hyenarec.config.names import made_with_old_names


@made_with_old_names
@dataclass(frozen=True)
class BenchConfig:
    """Times training steps of the models in turns: events a second, peak memory, and each part's share.

    Attributes:
        models: names of models that learn.
        lengths: events a sequence, also the models' `max_len`; None: 200, 1024, 4096, and on a GPU 16384.
        batch_events: events a step; a longer sequence is a step of its own. None: 16384, on a GPU 131072,
            where fewer would measure how fast Python launches kernels.
        num_items: size of the catalogue.
        dim: D, channels of an event; every other setting of a model is its default.
        repetitions: steps of each model at each length; their median is reported.
        seed: of initial values, batches and dropout.
        device: `auto` uses a GPU if there is one, `cpu` does not.
        precision: `no` (float32) or `bf16` mixed precision.
        output: JSON file of all figures; None writes none.
        plot: image file (PNG, SVG, PDF) of the cost of an event against the length; needs matplotlib.
    """

    models: Sequence[str] = LEARNED_NAMES
    lengths: Sequence[int] | None = None
    batch_events: int | None = None
    num_items: int = 3416
    dim: int = 64
    repetitions: int = 5
    seed: int = 0
    device: Device = "auto"
    precision: Literal["no", "bf16"] = "no"
    output: str | None = None
    plot: str | None = None

    @property
    def batch_tokens(self) -> int | None:
        """The old name of `batch_events`."""
        return self.batch_events

    def __post_init__(self) -> None:
        options = ", ".join(map(repr, LEARNED_NAMES))
        require(len(self.models) > 0, "models", f"at least one of {options}", list(self.models))
        for model in self.models:
            require(model in LEARNED_NAMES, "models", f"of {options}", model)
        for length in self.lengths or ():
            require_count("lengths", length)
        for name in ("num_items", "dim", "repetitions"):
            require_count(name, getattr(self, name))
        if self.batch_events is not None:
            require_count("batch_events", self.batch_events)
        require_count("seed", self.seed, least=0)
        require_choice("device", Device, self.device)
        require_choice("precision", Literal["no", "bf16"], self.precision)
