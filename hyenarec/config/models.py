"""The settings of each model: a class of its own, registered by its definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hyenarec.config.auto import Auto
from hyenarec.config.checks import require, require_choice, require_count, require_number, require_switch

KernelFamily = Literal["legendre", "mlp", "free"]
NormPlacement = Literal["post", "pre"]
TimeUnit = Literal["nanosecond", "microsecond", "millisecond", "second", "minute", "hour", "day"]

MODEL_CONFIGS: dict[str, type[RecommenderConfig]] = {}
"""The settings of each model, by its name; a class's defaults are the model's own."""


@dataclass(frozen=True)
class RecommenderConfig:
    """The settings of every model, whether it learns or counts; `MODEL_CONFIGS` has one class for each.

    Attributes:
        name: which model; the other settings are that model's.
        num_items: V, size of the catalogue; training takes it from the data when it is None.
        max_len: the number of latest events of a history that the model sees; for HyenaRec the horizon T of
            its kernels.
    """

    title: ClassVar[str]
    """The model's name in tables."""

    name: str = ""
    num_items: int | None = None
    max_len: int | Auto = "auto"

    @property
    def uses_time(self) -> bool:
        """Whether scores follow from when events happened and from the moment that they are asked for."""
        return False

    def __init_subclass__(cls) -> None:
        if "title" in vars(cls):  # a model's own settings, not those that several models share
            MODEL_CONFIGS[cls.name] = cls

    def __post_init__(self) -> None:
        if type(self) not in MODEL_CONFIGS.values():
            raise TypeError(f"{type(self).__name__} must be a model's own settings: see MODEL_CONFIGS")
        own = type(self).name
        require(self.name == own, "model.name", f"{own!r} for a {type(self).__name__}", self.name)
        if self.num_items is not None:
            require_count("model.num_items", self.num_items)
        if self.max_len != "auto":
            require_count("model.max_len", self.max_len)


@dataclass(frozen=True)
class SequentialConfig(RecommenderConfig):
    """The settings of every model that learns.

    Attributes:
        dim: D, channels of an event.
        dropout: probability on the embeddings, every residual branch, and between recurrent layers.
        lag_bias: whether the scores of the 16 latest items have a learned bias by the number of events since,
            and with `time_unit` by the time since, for data in which people come back to items, or not right
            away; by the full softmax only.
        repeat_head: whether a head that is trained with the network, by the full softmax only, adds to the
            scores of the history's items by when they occurred.
        repeats: whether to count how often the history has its items, for data in which people come back to
            them. Counts are mixed into the scores after training, with weights fitted to the validation.
        own_followers: whether to count what followed the last item earlier in the history.
        followers: whether to count what followed the history's latest items in training.
        time_unit: of the timestamps; None leaves them out. With it the scores follow from when events
            happened, and from the moment that they are asked for, which must then be given. Hour and weekday
            are those of moments counted from a midnight.
        repeats_by_time: whether to count the history's items by when it had them, too: at which hours, and
            how long ago; needs `time_unit`.
    """

    dim: int = 64
    dropout: float | Auto = "auto"
    lag_bias: bool | Auto = "auto"
    repeat_head: bool = False
    repeats: bool | Auto = "auto"
    own_followers: bool | Auto = "auto"
    followers: bool | Auto = "auto"
    time_unit: TimeUnit | None = None
    repeats_by_time: bool | Auto = "auto"

    @property
    def uses_time(self) -> bool:
        """Whether there is a `time_unit`."""
        return self.time_unit is not None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("model.dim", self.dim)
        require_switch("model.repeat_head", self.repeat_head)
        for name in ("lag_bias", "repeats", "own_followers", "followers", "repeats_by_time"):
            if getattr(self, name) != "auto":
                require_switch(f"model.{name}", getattr(self, name))
        if self.time_unit is not None:
            require_choice("model.time_unit", TimeUnit, self.time_unit)
        timeless = self.time_unit is None and self.repeats_by_time is True
        require(not timeless, "model.repeats_by_time", "false without model.time_unit", self.repeats_by_time)
        if self.dropout != "auto":
            require_number("model.dropout", self.dropout)
            require(0 <= self.dropout < 1, "model.dropout", "at least 0 and below 1", self.dropout)


@dataclass(frozen=True)
class BlocksConfig(SequentialConfig):
    """The settings of every model of residual blocks.

    Attributes:
        num_blocks: number of blocks, each a mixer and a feed-forward layer.
        ffn_multiple: width of the feed-forward layer in units of `dim`.
        norm: where the layer norms are: `post`, of the embedded events and of every sum of a residual branch
            and its input; or `pre`, of every branch's input and of the result.
    """

    num_blocks: int = 2
    ffn_multiple: int = 4
    norm: NormPlacement = "post"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_blocks", "ffn_multiple"):
            require_count(f"model.{name}", getattr(self, name))
        require_choice("model.norm", NormPlacement, self.norm)


@dataclass(frozen=True)
class ModelConfig(BlocksConfig):
    """The shape of a HyenaRec model; the symbols are those of the paper.

    Attributes:
        order: Hyena's order: `order + 1` projections, `order - 1` gated long convolutions.
        kernel: family of the long kernels: `legendre` polynomials, Hyena's implicit `mlp`, or `free` lags.
        num_coeffs: N, Legendre coefficients a channel (polynomial degree N - 1).
        decay: whether a learned exp(-decay τ) multiplies each kernel; `free` kernels never have one.
        short_conv_width: taps of the depthwise convolution before the gates.
    """

    title: ClassVar[str] = "HyenaRec"

    name: str = "hyenarec"
    order: int = 2
    kernel: KernelFamily = "legendre"
    num_coeffs: int = 17
    decay: bool = True
    short_conv_width: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("model.num_coeffs", self.num_coeffs)
        require_count("model.order", self.order, least=2)
        require_choice("model.kernel", KernelFamily, self.kernel)
        require_count("model.short_conv_width", self.short_conv_width)
        require(self.short_conv_width <= 8, "model.short_conv_width", "from 1 to 8", self.short_conv_width)


@dataclass(frozen=True)
class SASRecConfig(BlocksConfig):
    """The shape of a SASRec model: causal self-attention with learned positions.

    Attributes:
        num_heads: attention heads; `dim` is a multiple of it.
    """

    title: ClassVar[str] = "SASRec"

    name: str = "sasrec"
    num_heads: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("model.num_heads", self.num_heads)
        require(self.dim % self.num_heads == 0, "model.num_heads", f"a divisor of {self.dim}", self.num_heads)


@dataclass(frozen=True)
class GRU4RecConfig(SequentialConfig):
    """The shape of a GRU4Rec model: gated recurrent units, one event after another.

    Attributes:
        num_layers: recurrent layers on top of each other.
        hidden_multiple: width of the recurrent state in units of `dim`.
    """

    title: ClassVar[str] = "GRU4Rec"

    name: str = "gru4rec"
    num_layers: int = 1
    hidden_multiple: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_layers", "hidden_multiple"):
            require_count(f"model.{name}", getattr(self, name))


@dataclass(frozen=True)
class HyenaConfig(ModelConfig):
    """The shape of a plain Hyena model: HyenaRec's, with Hyena's own kernels.

    Attributes:
        kernel: `mlp`, Hyena's implicit filter.
        num_coeffs: unused: an `mlp` kernel has no coefficients.
    """

    title: ClassVar[str] = "Hyena"

    name: str = "hyena"
    kernel: Literal["mlp"] = "mlp"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kernel == "mlp", "model.kernel", "'mlp' for hyena", self.kernel)
        unused = self.num_coeffs == type(self).num_coeffs
        require(
            unused,
            "model.num_coeffs",
            "left at its default for hyena",
            self.num_coeffs,
        )


@dataclass(frozen=True)
class MarkovConfig(RecommenderConfig):
    """How often each item came right after the last one; counted, not learned, in the training events."""

    title: ClassVar[str] = "Markov"

    name: str = "markov"


@dataclass(frozen=True)
class PopularityConfig(RecommenderConfig):
    """How often each item occurs in the training events; counted, not learned."""

    title: ClassVar[str] = "Popularity"

    name: str = "popularity"


@dataclass(frozen=True)
class PersonalConfig(RecommenderConfig):
    """How often the user had each item, fading with the number of events since; counted, not learned."""

    title: ClassVar[str] = "Personal"

    name: str = "personal"


@dataclass(frozen=True)
class PersonalMarkovConfig(RecommenderConfig):
    """The user's own items, as `personal` counts them, mixed with Markov counts; counted, not learned."""

    title: ClassVar[str] = "Personal + Markov"

    name: str = "personal_markov"


LEARNED_NAMES = tuple(name for name, config in MODEL_CONFIGS.items() if issubclass(config, SequentialConfig))
"""Names of the models that a training loop trains."""


def model_config_named(name: object) -> type[RecommenderConfig]:
    """The class of a model's settings.

    Raises:
        ValueError: there is no model of that name.
    """
    require(name in tuple(MODEL_CONFIGS), "model.name", "one of " + ", ".join(map(repr, MODEL_CONFIGS)), name)
    return MODEL_CONFIGS[str(name)]


def model_config_from_dict(values: Mapping[str, Any]) -> RecommenderConfig:
    """A model's settings from a mapping such as a parsed `config.json`; an unknown key is an error.

    Without a name they are HyenaRec's, as in the files of the versions that had no other model.
    """
    config = model_config_named(values.get("name", ModelConfig.name))
    known = {f.name for f in dataclasses.fields(config)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"model config has the unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    return config(**values)
