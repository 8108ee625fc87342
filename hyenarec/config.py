"""Every setting of the package, one frozen dataclass a subject.

The command line, YAML files and Python all build these same classes; a value is checked here, when the object
is made, before any work is done with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

KernelFamily = Literal["legendre", "mlp", "free"]
Format = Literal["auto", "text", "csv", "parquet", "inter"]
BadRows = Literal["error", "skip"]
SplitName = Literal["leave-one-out", "temporal"]
TargetKind = Literal["next", "all"]
Windows = Literal["last", "all"]
LossName = Literal["softmax", "sampled_softmax", "bce", "gbce"]
Distribution = Literal["uniform", "popularity"]
Schedule = Literal["constant", "cosine"]
Device = Literal["auto", "cpu"]
Precision = Literal["no", "bf16", "fp16"]

SYNTHETIC = "synthetic"
"""The `data.path` that stands for the generated default histories instead of a file."""


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _require_choice(name: str, choices: Any, value: object) -> None:
    options = get_args(choices)
    _require(value in options, name, "one of " + ", ".join(map(repr, options)), value)


def _require_count(name: str, value: object, least: int = 1) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _require(whole and value >= least, name, f"an integer of at least {least}", value)  # type: ignore[operator]


@dataclass(frozen=True)
class DataConfig:
    """Where the events come from and how they are split.

    Attributes:
        path: a file (SASRec-style text, CSV, Parquet or RecBole `.inter`, gzipped or not), or `synthetic`.
        format: the file's format; `auto` goes by its name.
        user_column: name of the user column, where the format has names.
        item_column: name of the item column.
        timestamp_column: name of the time column; None means that file order is time order.
        min_user_events: users with fewer events are dropped.
        min_item_events: items with fewer events are dropped.
        on_bad_rows: `error` stops at the first malformed row, `skip` drops and counts them.
        split: `leave-one-out` (the literature's) or `temporal` (one global cut in time, nothing leaks).
        validation_fraction: share of the events, in time order, between the validation and the test cut of
            the temporal split.
        test_fraction: share of the events after the test cut of the temporal split.
        targets: what the temporal split asks for: each user's `next` event after a cut, or the set of `all`
            in the period.
        windows: `last` trains on each user's last `max_len` events, `all` cuts the whole history into
            windows.
        exclude_history: whether items that are already in the history are left out of the ranking.
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
    windows: Windows = "last"
    exclude_history: bool = False
    synthetic_users: int = 3000

    def __post_init__(self) -> None:
        _require_count("data.min_user_events", self.min_user_events)
        _require_count("data.min_item_events", self.min_item_events)
        _require_count("data.synthetic_users", self.synthetic_users)
        _require_choice("data.format", Format, self.format)
        _require_choice("data.on_bad_rows", BadRows, self.on_bad_rows)
        _require_choice("data.split", SplitName, self.split)
        _require_choice("data.targets", TargetKind, self.targets)
        _require_choice("data.windows", Windows, self.windows)
        for name in ("validation_fraction", "test_fraction"):
            _require(0 < getattr(self, name) < 1, f"data.{name}", "between 0 and 1", getattr(self, name))
        total = self.validation_fraction + self.test_fraction
        _require(total < 1, "data.validation_fraction + data.test_fraction", "below 1", total)


@dataclass(frozen=True)
class RecommenderConfig:
    """What every model has, whether it learns or counts; `MODEL_CONFIGS` holds one class for each of them.

    Attributes:
        name: hyenarec, sasrec, gru4rec, hyena, markov or popularity; the other settings are that model's.
        num_items: V, size of the catalogue; training takes it from the data when it is None.
        max_len: the longest history that the model sees, the latest so many events; for HyenaRec the horizon
            T that its kernels span.
    """

    title: ClassVar[str]
    """How tables call the model."""

    name: str = ""
    num_items: int | None = None
    max_len: int = 200

    def __post_init__(self) -> None:
        if type(self) not in MODEL_CONFIGS.values():
            raise TypeError(f"{type(self).__name__} must be a model's own settings: see MODEL_CONFIGS")
        own = type(self).name
        _require(self.name == own, "model.name", f"{own!r} for a {type(self).__name__}", self.name)
        if self.num_items is not None:
            _require_count("model.num_items", self.num_items)
        _require_count("model.max_len", self.max_len)


@dataclass(frozen=True)
class SequentialConfig(RecommenderConfig):
    """What every model that learns has.

    Attributes:
        dim: D, channels of an event.
        dropout: probability on the embeddings, every residual branch, and between recurrent layers.
    """

    dim: int = 64
    dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_count("model.dim", self.dim)
        _require(0 <= self.dropout < 1, "model.dropout", "at least 0 and below 1", self.dropout)


@dataclass(frozen=True)
class BlocksConfig(SequentialConfig):
    """What every model of residual blocks has.

    Attributes:
        num_blocks: how many mixer + feed-forward blocks.
        ffn_multiple: width of the feed-forward layer in units of `dim`.
    """

    num_blocks: int = 2
    ffn_multiple: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_blocks", "ffn_multiple"):
            _require_count(f"model.{name}", getattr(self, name))


@dataclass(frozen=True)
class ModelConfig(BlocksConfig):
    """The shape of a HyenaRec model; the symbols are those of the paper.

    Attributes:
        order: Hyena's order: `order + 1` projections, `order - 1` gated long convolutions.
        kernel: how a long kernel is made: `legendre` polynomials, Hyena's implicit `mlp`, or `free` lags.
        num_coeffs: N, Legendre coefficients a channel (polynomial degree N - 1).
        decay: whether a learned exp(-decay τ) multiplies each kernel; `free` has none in any case.
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
        _require_count("model.num_coeffs", self.num_coeffs)
        _require_count("model.order", self.order, least=2)
        _require_choice("model.kernel", KernelFamily, self.kernel)
        _require_count("model.short_conv_width", self.short_conv_width)
        _require(self.short_conv_width <= 8, "model.short_conv_width", "from 1 to 8", self.short_conv_width)


@dataclass(frozen=True)
class HyenaConfig(ModelConfig):
    """The shape of a plain Hyena model: HyenaRec's, with Hyena's own kernels.

    Attributes:
        kernel: `mlp`, Hyena's implicit filter.
        num_coeffs: of no use here: an `mlp` kernel has no coefficients.
    """

    title: ClassVar[str] = "Hyena"

    name: str = "hyena"
    kernel: Literal["mlp"] = "mlp"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.kernel == "mlp", "model.kernel", "'mlp' for hyena", self.kernel)
        unused = self.num_coeffs == type(self).num_coeffs
        _require(unused, "model.num_coeffs", "left alone for hyena, whose kernels have none", self.num_coeffs)


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
        _require_count("model.num_heads", self.num_heads)
        _require(
            self.dim % self.num_heads == 0, "model.num_heads", f"a divisor of {self.dim}", self.num_heads
        )


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
            _require_count(f"model.{name}", getattr(self, name))


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


MODEL_CONFIGS: dict[str, type[RecommenderConfig]] = {
    config.name: config
    for config in (ModelConfig, SASRecConfig, GRU4RecConfig, HyenaConfig, MarkovConfig, PopularityConfig)
}
"""The settings of each model, by its name; a class's defaults are the model's own."""

LEARNED_NAMES = tuple(name for name, config in MODEL_CONFIGS.items() if issubclass(config, SequentialConfig))
"""Names of the models that a training loop trains."""


@dataclass(frozen=True)
class LossConfig:
    """What training lowers.

    Attributes:
        name: `softmax` cross-entropy over the whole catalogue; `sampled_softmax` cross-entropy over the
            target and negatives that a step's events share; `bce`, SASRec's binary cross-entropy with
            negatives for each event; `gbce`, gSASRec's generalised one, with negatives that a step's events
            share where gSASRec draws some for each event. All but `softmax` cost the same at any size of the
            catalogue.
        negatives: how many are drawn, with replacement: for a step, or with `bce` for an event. None takes
            1,000 for `sampled_softmax`, 1 for `bce` and 256 for `gbce`.
        distribution: what they are drawn from: `uniform` over the items, or by `popularity` in training. None
            takes `popularity` for `sampled_softmax`, which with `logq` comes closer to `softmax`, and
            `uniform` for `bce` and `gbce`, as their authors do.
        logq: whether `sampled_softmax` corrects its scores for popular items being drawn more often.
        calibration: gSASRec's t: 0 leaves the overconfidence that sampling brings, 1 takes it away; `gbce`
            alone has it.
        label_smoothing: share of the probability that the softmaxes spread over all their classes.
    """

    name: LossName = "softmax"
    negatives: int | None = None
    distribution: Distribution | None = None
    logq: bool = True
    calibration: float = 0.75
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("loss.name", LossName, self.name)
        if self.distribution is not None:
            _require_choice("loss.distribution", Distribution, self.distribution)
        if self.negatives is not None:
            _require_count("loss.negatives", self.negatives)
        full = self.name == "softmax"
        _require(not full or self.negatives is None, "loss.negatives", "null with softmax", self.negatives)
        _require(0 <= self.calibration <= 1, "loss.calibration", "from 0 to 1", self.calibration)
        smoothing = self.label_smoothing
        _require(0 <= smoothing < 1, "loss.label_smoothing", "at least 0 and below 1", smoothing)
        binary = self.name in ("bce", "gbce")
        _require(not binary or smoothing == 0, "loss.label_smoothing", f"0 with {self.name}", smoothing)

    @property
    def num_negatives(self) -> int:
        """Negatives a step, or with `bce` an event; 0 for the full softmax."""
        defaults = {"softmax": 0, "sampled_softmax": 1000, "bce": 1, "gbce": 256}
        return defaults[self.name] if self.negatives is None else self.negatives

    @property
    def negative_distribution(self) -> Distribution:
        """What negatives are drawn from."""
        if self.distribution is not None:
            return self.distribution
        return "popularity" if self.name == "sampled_softmax" else "uniform"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate.

    Attributes:
        learning_rate: peak rate.
        weight_decay: decoupled decay of the matrices; never of biases, norms, kernels or embeddings.
        betas: exponential decay rates of AdamW's two moments.
        warmup_steps: steps of linear growth from 0 to the peak.
        schedule: what follows the warm-up: `constant`, or `cosine` down to `final_rate` x the peak.
        final_rate: where `cosine` ends, as a share of the peak.
        gradient_clip: largest global norm of the gradient; None leaves it alone.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 100
    schedule: Schedule = "cosine"
    final_rate: float = 0.05
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        _require(0 < self.learning_rate < math.inf, "optimizer.learning_rate", "positive", self.learning_rate)
        _require(self.weight_decay >= 0, "optimizer.weight_decay", "at least 0", self.weight_decay)
        pair = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        _require(pair, "optimizer.betas", "two numbers in [0, 1)", self.betas)
        _require_count("optimizer.warmup_steps", self.warmup_steps, least=0)
        _require_choice("optimizer.schedule", Schedule, self.schedule)
        _require(0 <= self.final_rate <= 1, "optimizer.final_rate", "between 0 and 1", self.final_rate)
        clip = self.gradient_clip
        _require(clip is None or clip > 0, "optimizer.gradient_clip", "positive or null", clip)


@dataclass(frozen=True)
class TrainConfig:
    """One training run, from the events to the reported score.

    Attributes:
        data: the events and their split.
        model: the model, by an object of one of `MODEL_CONFIGS`.
        loss: what training lowers; a model that counts has none.
        optimizer: the optimiser and its schedule.
        epochs: passes over the training windows at most; more of them on `resume` stretch the cosine schedule
            from there on.
        batch_tokens: most events a step, over all processes together; a longer window is a step by itself.
        patience: epochs without a better validation NDCG@10 before training stops; None never stops early.
        evaluate_every: epochs between two validations.
        seed: of initial values, order of batches, negatives, dropout and synthetic data.
        device: `auto` takes the GPUs where there are any, `cpu` leaves them alone.
        precision: `no` (float32), `bf16` or `fp16` mixed precision.
        output_dir: folder for checkpoints, logs, the report and the saved model.
        resume: continue the run in `output_dir` from its last checkpoint; start it if there is none yet. With
            the same settings and data it ends as if it had never stopped; with other `epochs` it may not.
        overwrite: begin a new run in an `output_dir` that already has one.
        checkpoint_every: steps between two checkpoints within an epoch; each epoch ends with one anyway.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: RecommenderConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 20
    batch_tokens: int = 8192
    patience: int | None = 10
    evaluate_every: int = 1
    seed: int = 0
    device: Device = "auto"
    precision: Precision = "no"
    output_dir: str = "runs/hyenarec"
    resume: bool = False
    overwrite: bool = False
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_tokens", "evaluate_every"):
            _require_count(name, getattr(self, name))
        for name in ("patience", "checkpoint_every"):
            if getattr(self, name) is not None:
                _require_count(name, getattr(self, name))
        _require_count("seed", self.seed, least=0)
        _require_choice("device", Device, self.device)
        _require_choice("precision", Precision, self.precision)
        _require(self.output_dir != "", "output_dir", "a folder", self.output_dir)
        _require(not (self.resume and self.overwrite), "overwrite", "false with resume", self.overwrite)


@dataclass(frozen=True)
class BenchConfig:
    """Times training steps of the models in turns: events a second, peak memory, and each part's share.

    Attributes:
        models: names of models that learn.
        lengths: events of a sequence, of a model's `max_len` then; None: 200, 1024 and 4096, on a GPU also
            16384.
        batch_tokens: events a step; a longer sequence is a step by itself. None: 16384, on a GPU 131072:
            fewer would measure there how fast Python asks for work.
        num_items: size of the catalogue.
        dim: D, channels of an event; all else of a model is its own default.
        repetitions: steps of each model at each length; the median counts.
        seed: of initial values, batches and dropout.
        device: `auto` takes a GPU where there is one, `cpu` leaves it alone.
        precision: `no` (float32) or `bf16` mixed precision.
        output: JSON file of all figures; None writes none.
        plot: image file (PNG, SVG, PDF) of the cost of an event against the length; needs matplotlib.
    """

    models: Sequence[str] = LEARNED_NAMES
    lengths: Sequence[int] | None = None
    batch_tokens: int | None = None
    num_items: int = 3416
    dim: int = 64
    repetitions: int = 5
    seed: int = 0
    device: Device = "auto"
    precision: Literal["no", "bf16"] = "no"
    output: str | None = None
    plot: str | None = None

    def __post_init__(self) -> None:
        options = ", ".join(map(repr, LEARNED_NAMES))
        _require(len(self.models) > 0, "models", f"at least one of {options}", list(self.models))
        for model in self.models:
            _require(model in LEARNED_NAMES, "models", f"of {options}", model)
        for length in self.lengths or ():
            _require_count("lengths", length)
        for name in ("num_items", "dim", "repetitions"):
            _require_count(name, getattr(self, name))
        if self.batch_tokens is not None:
            _require_count("batch_tokens", self.batch_tokens)
        _require_count("seed", self.seed, least=0)
        _require_choice("device", Device, self.device)
        _require_choice("precision", Literal["no", "bf16"], self.precision)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain nested dictionaries, ready for JSON or YAML."""
    return dataclasses.asdict(config)


def model_config_named(name: object) -> type[RecommenderConfig]:
    """The class of a model's settings.

    Raises:
        ValueError: there is no model of that name.
    """
    _require(
        name in tuple(MODEL_CONFIGS), "model.name", "one of " + ", ".join(map(repr, MODEL_CONFIGS)), name
    )
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
