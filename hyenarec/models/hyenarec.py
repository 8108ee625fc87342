"""HyenaRec, from item ids to one hidden row an event and scores over the catalogue.

From top to bottom: the parts of a block, each beside its step for one event after another; the block; the
model.

    x   = dropout(norm(sqrt(D) E[items]))
    per block:  x = norm(x + dropout(mixer(x)));  x = norm(x + dropout(ffn(x)))
    scores = x_last · E[item] + bias[item]

No position table: time lives in the convolution kernels. Every sequence starts at index 0 (packed, or
padded on the right), so a history gives the same numbers alone, in a batch, and packed with others.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from hyenarec import ops
from hyenarec.config import BlocksConfig, ModelConfig, RecommenderConfig, SequentialConfig
from hyenarec.config.auto import settled
from hyenarec.models.dropout import Dropout
from hyenarec.models.kernels import KERNELS, LegendreKernel
from hyenarec.models.mixture.count_mixture import SOURCES, Added, CountMixture
from hyenarec.models.pretrained import PretrainedModel
from hyenarec.models.repeats import RepeatHead, RepeatScores
from hyenarec.models.stream import Stream

EMBEDDING_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Padding:
    """Packs and pads sequences: for the FFT, the only operation that needs a rectangle.

    Attributes:
        index: int64 `[total]`, the place of each event among the rectangle's `B * L`.
        shape: B and L, the number of sequences and the longest one's length.
    """

    index: Tensor
    shape: tuple[int, int]

    @staticmethod
    def around(offsets: Tensor, total: int) -> Padding:
        """Computes the places. A GPU has to wait, for the rectangle's size depends on the offsets."""
        lengths = offsets.diff()
        shape = (lengths.shape[0], int(lengths.max()) if lengths.shape[0] > 0 else 0)
        first = torch.arange(shape[0], device=offsets.device) * shape[1] - offsets[:-1]
        index = torch.repeat_interleave(first, lengths, output_size=total)
        return Padding(index + torch.arange(total, device=offsets.device), shape)

    def pad(self, x: Tensor) -> Tensor:
        """Packed `[total, C]` -> `[B, L, C]` with zeros after each sequence's end."""
        batch, length = self.shape
        padded = x.new_zeros(batch * length, x.shape[1]).index_copy(0, self.index, x)
        return padded.view(batch, length, x.shape[1])

    def pack(self, x: Tensor) -> Tensor:
        """`[B, L, C]` -> packed `[total, C]`."""
        return x.flatten(0, 1).index_select(0, self.index)


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer initialised as in all blocks: Xavier-uniform times `gain`, and a bias of zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def branch_gain(config: BlocksConfig) -> float:
    """The gain of a branch's last layer: the residual stream's variance then doesn't grow with depth."""
    return 1 / math.sqrt(2 * config.num_blocks)


class LongConv(nn.Module):
    """post ⊙ (κ * (pre ⊙ u) + skip ⊙ pre ⊙ u), with the kernel family of the configuration."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kernel = KERNELS[config.kernel](config.dim, config)
        self.skip = nn.Parameter(torch.randn(config.dim))

    def forward(
        self, u: Tensor, pre_gate: Tensor | None, post_gate: Tensor, offsets: Tensor | None
    ) -> Tensor:
        """`u` and gates `[B, L, D]`, or packed for a Legendre kernel `[total, D]` with `offsets`."""
        kernel = self.kernel
        if isinstance(kernel, LegendreKernel):
            return ops.legendre_conv(
                u, kernel.coeffs, kernel.decay, kernel.horizon, self.skip, pre_gate, post_gate, offsets
            )
        return ops.fft_conv(u, kernel(u.shape[1]), self.skip, pre_gate, post_gate)


class Mixer(nn.Module):
    """Hyena operator of order n: n + 1 projections, n - 1 long convolutions between gates."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, width, projections = config.dim, config.short_conv_width, config.order + 1
        self.in_proj = linear(dim, projections * dim)
        self.short_weight = nn.Parameter(
            torch.empty(projections * dim, width).uniform_(-1, 1) / math.sqrt(width)
        )
        self.short_bias = nn.Parameter(torch.zeros(projections * dim))
        self.convs = nn.ModuleList(LongConv(config) for _ in range(config.order - 1))
        self.out_proj = linear(dim, dim, gain=branch_gain(config))

    def forward(self, x: Tensor, offsets: Tensor | None, padding: Padding | None) -> Tensor:
        """`x` `[B, L, D]`, or packed `[total, D]` with `offsets`, and `padding` if a kernel needs it."""
        x = self.in_proj(x)
        conv = cast(LongConv, self.convs[0])
        if len(self.convs) == 1 and isinstance(conv.kernel, LegendreKernel):
            x = ops.hyena_mixer(
                x,
                self.short_weight,
                self.short_bias,
                conv.kernel.coeffs,
                conv.kernel.decay,
                conv.kernel.horizon,
                conv.skip,
                offsets,
            )
        else:
            x = self._step_by_step(x, offsets, padding)
        y: Tensor = self.out_proj(x)
        return y

    def _step_by_step(self, x: Tensor, offsets: Tensor | None, padding: Padding | None) -> Tensor:
        x = ops.short_conv(x, self.short_weight, self.short_bias, offsets)
        if padding is not None:
            x = padding.pad(x)
        *queries, k, v = x.chunk(len(self.convs) + 2, dim=-1)
        pre_gate: Tensor | None = k
        for conv, q in zip(self.convs, reversed(queries), strict=True):
            v, pre_gate = conv(v, pre_gate, q, offsets), None
        return v if padding is None else padding.pack(v)


class MixerStep:
    """`Mixer.forward` for the next events of one sequence, with the state that earlier events left.

    Args:
        mixer: a mixer with `legendre` kernels. What the convolutions need of its weights is computed once,
            here.
    """

    def __init__(self, mixer: Mixer) -> None:
        convs = cast("list[LongConv]", list(mixer.convs))
        kernels = [cast(LegendreKernel, conv.kernel) for conv in convs]
        # Without the modules' lookups and hooks, which would take a fourth of an event's time.
        self._in_proj, self._out_proj = mixer.in_proj.forward, mixer.out_proj.forward
        self._short_bias = mixer.short_bias
        self._short_weight = mixer.short_weight.t().contiguous().t()  # as short_conv reads it, without a copy
        self._weights = [
            ops.legendre_step_weights(kernel.coeffs, kernel.decay, kernel.horizon, conv.skip)
            for conv, kernel in zip(convs, kernels, strict=True)
        ]
        self._horizon = kernels[0].horizon
        channels, width = mixer.short_weight.shape
        self._rows = mixer.short_weight.new_zeros(width - 1, channels)  # the last events' projections
        self._states = [ops.legendre_step_state(kernel.coeffs, 1) for kernel in kernels]

    def __call__(self, x: Tensor, position: Tensor) -> Tensor:
        """The next events `[L, D]` -> `[L, D]`; `position` `[1]` is the first one's, counted from 0."""
        past, length = self._rows.shape[0], x.shape[0]
        rows = torch.cat([self._rows, self._in_proj(x)])
        self._rows = rows.narrow(0, length, past).clone()
        filtered = ops.short_conv(rows.unsqueeze(0), self._short_weight, self._short_bias)
        filtered = filtered.narrow(1, past, length)
        *queries, k, v = filtered.chunk(len(self._states) + 2, dim=-1)
        pre_gate: Tensor | None = k
        for state, weights, q in zip(self._states, self._weights, reversed(queries), strict=True):
            v, pre_gate = ops.legendre_step(state, v, position, weights, self._horizon, pre_gate, q), None
        return self._out_proj(v.squeeze(0))

    def copy(self) -> MixerStep:
        """An independent copy of the state; the weights are shared."""
        other = copy.copy(self)
        other._rows = self._rows.clone()
        other._states = [state.clone() for state in self._states]
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self._rows.nbytes + sum(state.nbytes for state in self._states)


class FeedForward(nn.Sequential):
    """Linear, GELU, linear, applied to each event by itself."""

    def __init__(self, config: BlocksConfig) -> None:
        inner = config.ffn_multiple * config.dim
        gain = branch_gain(config)
        super().__init__(linear(config.dim, inner), nn.GELU(), linear(inner, config.dim, gain))


class Block(nn.Module):
    """Two residual branches, each with dropout and a norm: the mixer, then the feed-forward layer.

    Dropout, addition and norm are one operator. With `post` norms it ends a branch; with `pre` norms it
    begins the next one, so that a block leaves its last branch to be added by what follows.

    Args:
        config: the shape.
        mixer: maps `[..., D]` to `[..., D]`, given the layout of the sequences.
    """

    def __init__(self, config: BlocksConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.norm_first = config.norm == "pre"
        self.mixer_norm = nn.LayerNorm(config.dim)
        self.mixer = mixer
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.ffn = FeedForward(config)
        self.dropout = Dropout(settled(config.dropout))

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None, *layout: object
    ) -> tuple[Tensor, Tensor | None]:
        """One block.

        Args:
            hidden_states: `[..., D]`: with `post` norms the block's input. With `pre` norms not yet added:
                the output of the branch before, or the embedded events.
            residual: with `pre` norms `[..., D]`, the residual stream without `hidden_states`; None at the
                first block, and with `post` norms.
            layout: further arguments of the mixer.

        Returns:
            The same for the next block.
        """
        add_norm = self.dropout.add_norm
        if not self.norm_first:
            x, _ = add_norm(self.mixer(hidden_states, *layout), hidden_states, self.mixer_norm)
            return add_norm(self.ffn(x), x, self.ffn_norm)[0], None
        hidden_states, residual = add_norm(hidden_states, residual, self.mixer_norm)
        hidden_states = self.mixer(hidden_states, *layout)
        hidden_states, residual = add_norm(hidden_states, residual, self.ffn_norm)
        return self.ffn(hidden_states), residual


class BlockStep:
    """`Block.forward` for the next events of one sequence, without dropout.

    Args:
        block: a block whose mixer is a `Mixer` with `legendre` kernels.
    """

    def __init__(self, block: Block) -> None:
        self._norm_first = block.norm_first
        self._mix = MixerStep(cast(Mixer, block.mixer))
        # Without the modules' lookups and hooks, as in `MixerStep`.
        self._mixer_norm, self._ffn_norm = block.mixer_norm.forward, block.ffn_norm.forward
        self._ffn = [layer.forward for layer in block.ffn]

    def __call__(self, x: Tensor, position: Tensor) -> Tensor:
        """The residual stream `[L, D]` before the block -> after it; `position` as for `MixerStep`."""
        if self._norm_first:
            x = x + self._mix(self._mixer_norm(x), position)
            return x + self._feed_forward(self._ffn_norm(x))
        x = self._mixer_norm(x + self._mix(x, position))
        return self._ffn_norm(x + self._feed_forward(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        for layer in self._ffn:
            x = layer(x)
        return x

    def copy(self) -> BlockStep:
        """An independent copy of the state; the weights are shared."""
        other = copy.copy(self)
        other._mix = self._mix.copy()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self._mix.nbytes


class Encoded(NamedTuple):
    """Histories as the scores need them.

    Attributes:
        hidden: `[B, D]`, the row of each history's last event.
        repeats: what the items of the histories score besides; None without a repeat head.
        added: what counts add to some scores; None without a mixture.
    """

    hidden: Tensor
    repeats: RepeatScores | None
    added: Added | None


class SequentialModel(PretrainedModel):
    """What all models that learn share: an item embedding that is also the output layer.

    A model adds its layers in `__init__`, which ends with `_add_norm`, and runs them in `forward`.

    Args:
        config: the shape; `num_items` must be set.

    Attributes:
        mixture: the counts that `config` asks for; None before the end of training, or if they don't help.
    """

    config: SequentialConfig
    norm: nn.LayerNorm

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__(config)
        config = self.config
        self.items = nn.Embedding(self.num_items + 1, config.dim, padding_idx=0)
        self.item_bias = nn.Parameter(torch.zeros(self.num_items))
        self.repeat_head: RepeatHead | None = None
        if config.repeat_head:
            self.repeat_head = RepeatHead(config.dim, self.num_items, self.max_len)
        self.mixture: CountMixture | None = None
        self.dropout = Dropout(settled(config.dropout))

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

    def forward(self, items: Tensor, offsets: Tensor | None = None) -> Tensor:
        """One hidden row for each event, computed from it and the events before it in its sequence.

        Args:
            items: int64 ids, 1..V (0 = none): `[B, L]` padded on the right, or packed `[total]` with
                `offsets`.
            offsets: `[B + 1]` int64, where each packed sequence begins and ends.

        Returns:
            `[B, L, D]` or `[total, D]`, normalised: the product with an item's row, plus its bias, is its
            score.

        Raises:
            ValueError: a shape is wrong, or a sequence has more than `max_len` events. The host does not read
                packed sequences on a GPU; there, one that is too long fails a device-side assertion.
        """
        raise NotImplementedError

    def _embed(self, items: Tensor, offsets: Tensor | None) -> Tensor:
        """The events' scaled rows of the item embedding, `[..., D]`; takes and raises what `forward` does."""
        self._check(items, offsets)
        rows: Tensor = self.items(items) * math.sqrt(self.config.dim)
        return rows

    def _check(self, items: Tensor, offsets: Tensor | None) -> None:
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

    @property
    def item_weight(self) -> Tensor:
        """The output layer's rows `[V, D]`: row j belongs to item j + 1."""
        return self.items.weight[1:]

    def encode(self, items: Tensor, offsets: Tensor) -> Encoded:
        """What scores need of each packed history.

        Every history must have at least one event. An empty one raises ValueError on the CPU; on a GPU, where
        a check would wait for all earlier work, it gives the state of another row.
        """
        self._check(items, offsets)
        if offsets.device.type == "cpu" and bool((offsets.diff() < 1).any()):
            raise ValueError("offsets must describe histories of at least one event, got an empty one")
        hidden: Tensor = self(items, offsets)[offsets[1:] - 1]
        head, mixture = self.repeat_head, self.mixture
        repeats = None if head is None else head.of_histories(items, offsets, hidden)
        added = None if mixture is None else mixture.weigh(mixture.evidence(items, offsets), hidden)
        return Encoded(hidden, repeats, added)

    def score_tile(self, state: Encoded, first: int, last: int) -> Tensor:
        """The columns `first` up to `last` of the scores, `[B, last - first]`, from what `encode` gave."""
        scores = torch.addmm(self.item_bias[first:last], state.hidden, self.item_weight[first:last].t())
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
        return CountMixture(names, self.num_items, self.config.dim).to(self.item_bias)

    @classmethod
    def _restore(cls, config: RecommenderConfig, tensors: Mapping[str, Tensor]) -> Self:
        model = cls(cast(SequentialConfig, config))
        if any(name.startswith("mixture.") for name in tensors):
            model.mixture = model.new_mixture()
        # A file of format 2 calls the head's tensors so.
        renamed = {re.sub(r"^repeats\.", "repeat_head.", name): tensor for name, tensor in tensors.items()}
        model.load_state_dict(renamed)
        return model


class BlocksModel(SequentialModel):
    """What models of residual blocks share: the way from embedded events to hidden rows.

    A model adds its blocks as `blocks`, then calls `_add_norm`. That norm, the only one outside the blocks,
    is of what enters them with `post` norms, and of what leaves them with `pre` norms.
    """

    config: BlocksConfig
    blocks: nn.ModuleList

    def _through_blocks(self, x: Tensor, *layout: object) -> Tensor:
        """Embedded events `[..., D]` -> hidden rows `[..., D]`; `layout` is for the mixers."""
        norm_first = self.config.norm == "pre"
        hidden_states, residual = x if norm_first else self.dropout(self.norm(x)), None
        for block in self.blocks:
            hidden_states, residual = block(hidden_states, residual, *layout)
        if norm_first:
            hidden_states, _ = self.dropout.add_norm(hidden_states, residual, self.norm)
        return hidden_states


class HyenaRec(BlocksModel):
    """The recommender: embedding, blocks, norm, and the embedding again as the output layer.

    Args:
        config: the shape; `num_items` must be set.

    Source: Liu et al., "Hyena Operator for Fast Sequential Recommendation", WWW 2026, arXiv 2603.25027.
    """

    config_type: ClassVar[type[ModelConfig]] = ModelConfig
    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(self.config, Mixer(self.config)) for _ in range(config.num_blocks))
        self._add_norm()

    def forward(self, items: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Ids `[B, L]`, or packed `[total]` with `offsets` -> rows `[B, L, D]` or `[total, D]`."""
        x, padding = self._embed(items, offsets), None
        if offsets is not None and self.config.kernel != "legendre":
            padding = Padding.around(offsets, items.shape[0])
        return self._through_blocks(x, offsets, padding)

    def steps(self) -> list[BlockStep]:
        """The blocks of an empty history, to be advanced event by event."""
        return [BlockStep(cast(Block, block)) for block in self.blocks]

    def stream(self) -> Stream:
        """An empty history to extend event by event, each in constant time and memory; see `Stream`.

        Raises:
            ValueError: if the kernels are not of the `legendre` family.
        """
        return Stream(self)
