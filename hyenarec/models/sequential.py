"""What all models that learn share: item vectors as input and output, and what is added to their scores."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from hyenarec.config import RecommenderConfig, SequentialConfig
from hyenarec.config.auto import settled
from hyenarec.data.time_checks import require_questions
from hyenarec.data.times import Times, in_seconds
from hyenarec.models.dropout import Dropout
from hyenarec.models.lag_bias import LagBias, Latest, latest_of_histories
from hyenarec.models.layers import EMBEDDING_STD
from hyenarec.models.mixture.count_mixture import SOURCES, Added, CountMixture
from hyenarec.models.mixture.evidence import Evidence
from hyenarec.models.pretrained import PretrainedModel
from hyenarec.models.repeats import RepeatHead, RepeatScores
from hyenarec.models.time import Moment, Question, seconds_before


class Encoded(NamedTuple):
    """Histories as the scores need them.

    Attributes:
        hidden: `[B, D]`, the row of each history's last event, asked at a moment if the model knows time.
        latest: the items whose scores have a bias by lag; None without one.
        repeats: what the items of the histories score besides; None without a repeat head.
        added: what counts add to some scores; None without a mixture.
    """

    hidden: Tensor
    latest: Latest | None
    repeats: RepeatScores | None
    added: Added | None


QUESTION_MULTIPLE = 4
"""Width of what answers a question, in units of `dim`."""


class SequentialModel(PretrainedModel):
    """What all models that learn share: an item embedding that is also the output layer.

    A model adds its layers in `__init__`, which ends with `_add_norm`, and runs them in `forward`.

    Args:
        config: the shape; `num_items` must be set.

    Attributes:
        start: `[D]`, the row of an empty history; None before the end of training, and in models that were
            saved before there was one: they score no empty history.
        mixture: the counts that `config` asks for; None before the end of training, or if they don't help.
    """

    config: SequentialConfig
    norm: nn.LayerNorm
    start: Tensor | None

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__(config)
        config = self.config
        self.items = nn.Embedding(self.num_items + 1, config.dim, padding_idx=0)
        self.item_bias = nn.Parameter(torch.zeros(self.num_items))
        self.lag_bias = LagBias(config.uses_time) if settled(config.lag_bias) else None
        self.repeat_head: RepeatHead | None = None
        if config.repeat_head:
            self.repeat_head = RepeatHead(config.dim, self.num_items, self.max_len)
        self.mixture: CountMixture | None = None
        self.register_buffer("start", None)
        self.dropout = Dropout(settled(config.dropout))
        self.moment: Moment | None = None
        self.question: Question | None = None
        if config.time_unit is not None:
            self.moment = Moment(config.dim)
            self.question = Question(config.dim, QUESTION_MULTIPLE, settled(config.dropout))

    def _add_norm(self) -> None:
        """Adds the final norm and initialises the item embedding.

        Both must follow the model's own layers: a seed then gives the same weights as ever, and parameters
        keep the order by which a checkpoint numbers them.
        """
        self.norm = nn.LayerNorm(self.config.dim)
        # Small, so that scores start near 0. As input it is scaled by sqrt(D), or the branches drown it.
        with torch.no_grad():
            self.items.weight[1:].normal_(std=EMBEDDING_STD)
            self.items.weight[0].zero_()

    def forward(
        self, items: Tensor, offsets: Tensor | None = None, timestamps: Tensor | None = None
    ) -> Tensor:
        """One hidden row for each event, computed from it and the events before it in its sequence.

        Args:
            items: int64 ids, 1..V (0 = none): `[B, L]` padded on the right, or packed `[total]` with
                `offsets`.
            offsets: `[B + 1]` int64, where each packed sequence begins and ends.
            timestamps: int64 like `items`, when events happened, in `time_unit`; if and only if the model has
                one.

        Returns:
            `[B, L, D]` or `[total, D]`, normalised: the product with an item's row, plus its bias, is its
            score. A model that knows time has scores only of what `ask` makes of the rows.

        Raises:
            ValueError: a shape is wrong, or a sequence has more than `max_len` events. The host does not read
                packed sequences on a GPU; there, one that is too long fails a device-side assertion.
        """
        raise NotImplementedError

    def ask(self, rows: Tensor, timestamps: Tensor, asked: Tensor) -> Tensor:
        """What events' rows say of a moment: `[M, D]` -> `[M, D]`, of which scores are made.

        Args:
            rows: what `forward` gave for the events.
            timestamps: int64 `[M]`, when the events happened, in `time_unit`.
            asked: int64 `[M]`, the moments, none before its event.
        """
        self.require_times(given=True)
        seconds, of_events = self._seconds(asked), self._seconds(timestamps)
        return self.answer(rows, seconds, seconds - of_events)

    def answer(self, rows: Tensor, seconds: Tensor, since: Tensor) -> Tensor:
        """`ask` in seconds: moments `[M]`, each `since` `[M]` after its event, negative without one."""
        assert self.question is not None
        answers: Tensor = self.question(rows, seconds, since)
        return answers

    def in_seconds(self, times: Times | None) -> Times | None:
        """Moments in `time_unit` as seconds; None if there are none."""
        return None if times is None else Times(*map(self._seconds, times))

    def _seconds(self, moments: Tensor) -> Tensor:
        unit = self.config.time_unit
        assert unit is not None
        return in_seconds(moments, unit)

    def _embed(self, items: Tensor, offsets: Tensor | None, timestamps: Tensor | None) -> Tensor:
        """The embedded events, `[..., D]`; takes and raises what `forward` does."""
        self._check(items, offsets, timestamps)
        rows: Tensor = self.items(items) * math.sqrt(self.config.dim)
        if timestamps is None:
            return rows
        assert self.moment is not None
        seconds = self._seconds(timestamps)
        of_moments: Tensor = self.moment(seconds, seconds_before(seconds, offsets))
        return rows + of_moments

    def _check(self, items: Tensor, offsets: Tensor | None, timestamps: Tensor | None) -> None:
        """Raises as `forward` says, without ever making a GPU wait."""
        if not isinstance(items, Tensor) or not (offsets is None or isinstance(offsets, Tensor)):
            raise ValueError(
                f"items and offsets must be tensors, got {type(items).__name__} and {type(offsets).__name__}"
            )
        if offsets is not None and (offsets.dim() != 1 or offsets.shape[0] == 0):
            raise ValueError(f"offsets must be [B + 1] with B >= 0, got {list(offsets.shape)}")
        if items.dim() != (2 if offsets is None else 1):
            raise ValueError(
                f"items must be [B, L], or packed [total] with offsets, got {list(items.shape)} "
                f"{'without' if offsets is None else 'with'} offsets"
            )
        self.require_times(timestamps is not None)
        if timestamps is not None:
            self._check_timestamps(timestamps, items.shape)
        max_len = self.max_len
        if items.shape[-1] <= max_len:  # all packed sequences together, in which case none is too long
            return
        message = f"sequences must have at most max_len = {max_len} events, got one with"
        if offsets is None:
            raise ValueError(f"{message} {items.shape[1]}")
        longest = offsets.diff().max()
        if offsets.device.type == "cpu":
            if longest > max_len:
                raise ValueError(f"{message} {longest}")
        else:
            torch._assert_async(longest <= max_len, f"{message} more events")

    def _check_timestamps(self, timestamps: Tensor, shape: torch.Size) -> None:
        fits = isinstance(timestamps, Tensor) and timestamps.shape == shape
        if not fits or timestamps.dtype != torch.int64:
            got = repr(timestamps)
            if isinstance(timestamps, Tensor):
                got = f"{timestamps.dtype} {list(timestamps.shape)}"
            raise ValueError(f"timestamps must be int64 {list(shape)} as items are, got {got}")

    @property
    def item_weight(self) -> Tensor:
        """The output layer's rows `[V, D]`: row j belongs to item j + 1."""
        return self.items.weight[1:]

    @property
    def scores_empty_histories(self) -> bool:
        """Whether histories without events have scores, too."""
        return self.start is not None

    def encode(self, items: Tensor, offsets: Tensor, times: Times | None = None) -> Encoded:
        """What scores need of each packed history.

        On the CPU, ValueError is raised for an empty history if the model has no `start`, and for a question
        before the last event. On a GPU, where a check would wait for all earlier work, the former gets the
        state of another row, and the latter counts as without an event before it.
        """
        self._check(items, offsets, None if times is None else times.events)
        if self.start is None and offsets.device.type == "cpu" and bool((offsets.diff() < 1).any()):
            raise ValueError(
                "offsets must describe histories of at least one event, got an empty one, "
                "for which this model has no row"
            )
        if times is not None:
            require_questions(times, offsets, self.config.time_unit)
        hidden = self._last_rows(items, offsets, times)
        latest = None
        if self.lag_bias is not None:
            latest = latest_of_histories(items, offsets, self.in_seconds(times))
        head, mixture = self.repeat_head, self.mixture
        repeats = None if head is None else head.of_histories(items, offsets, hidden)
        added = None if mixture is None else mixture.weigh(self.evidence(mixture, items, offsets, times))
        return Encoded(hidden, latest, repeats, added)

    def _last_rows(self, items: Tensor, offsets: Tensor, times: Times | None) -> Tensor:
        """The rows `[B, D]` of which scores are made."""
        empty, last = offsets.diff() < 1, (offsets[1:] - 1).clamp(min=0)
        if len(items) == 0:  # no history has an event
            items, last = items.new_zeros(1), torch.zeros_like(last)
            offsets = offsets.new_tensor([0, 1])
            times = None if times is None else Times(times.events.new_zeros(1), times.asked)
        rows: Tensor = self(items, offsets, None if times is None else times.events)[last]
        if self.start is not None:
            rows = torch.where(empty[:, None], self.start, rows)
        if times is None:
            return rows
        seconds = self._seconds(times.asked)
        since = (seconds - self._seconds(times.events)[last]).masked_fill(empty, -1)
        return self.answer(rows, seconds, since)

    def evidence(
        self, mixture: CountMixture, items: Tensor, offsets: Tensor, times: Times | None
    ) -> list[Evidence]:
        """What a mixture's sources count after packed histories, with moments in the unit of the model."""
        return mixture.evidence(items, offsets, self.in_seconds(times))

    def score_tile(self, state: Encoded, first: int, last: int) -> Tensor:
        """The columns `first` up to `last` of the scores, `[B, last - first]`, from what `encode` gave."""
        scores = torch.addmm(self.item_bias[first:last], state.hidden, self.item_weight[first:last].t())
        if self.lag_bias is not None and state.latest is not None:
            scores = self.lag_bias.add_to(scores, state.latest, first)
        if state.repeats is not None:
            scores = state.repeats.add_to(scores, first)
        if self.mixture is None:
            return scores
        assert state.added is not None
        return self.mixture.mix(scores, state.added, first)

    def new_mixture(self) -> CountMixture | None:
        """What `config` asks to be counted, of no effect until it is; None if that is nothing."""
        names = [name for name in SOURCES if settled(getattr(self.config, name))]
        if not names:
            return None
        return CountMixture(names, self.num_items).to(self.item_bias)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Makes room for what a trained model has besides, as `load_state_dict` asks each module to do."""
        if self.mixture is None and any(name.startswith(f"{prefix}mixture.") for name in state_dict):
            self.mixture = self.new_mixture()
        if self.start is None and f"{prefix}start" in state_dict:
            self.start = torch.zeros_like(self.item_weight[0])
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def _restore(cls, config: RecommenderConfig, tensors: Mapping[str, Tensor]) -> Self:
        model = cls(cast(SequentialConfig, config))
        # A file of format 2 calls the head's tensors so.
        renamed = {re.sub(r"^repeats\.", "repeat_head.", name): tensor for name, tensor in tensors.items()}
        if any(name.startswith("mixture.") and name.endswith(".strength") for name in renamed):
            warnings.warn(
                "counts of a model saved by an earlier version are left out: their weights have another form "
                "now; train again to have them",
                stacklevel=2,
            )
            renamed = {name: x for name, x in renamed.items() if not name.startswith("mixture.")}
        model.load_state_dict(renamed)
        return model
