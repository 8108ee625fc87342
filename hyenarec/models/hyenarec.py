"""HyenaRec, from item ids to one hidden row an event and scores over the catalogue.

From top to bottom: the mixer and its parts; a mixer and a block for one event after another; the model. The
block itself is in `blocks.py`, embedding and scores in `sequential.py`.

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
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from hyenarec import ops
from hyenarec.config import ModelConfig
from hyenarec.models.blocks import Block, BlocksModel, branch_gain
from hyenarec.models.kernels import KERNELS, LegendreKernel
from hyenarec.models.layers import linear
from hyenarec.models.stream import Stream


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

    def forward(
        self, items: Tensor, offsets: Tensor | None = None, timestamps: Tensor | None = None
    ) -> Tensor:
        """Ids `[B, L]`, or packed `[total]` with `offsets` -> rows `[B, L, D]` or `[total, D]`."""
        x, padding = self._embed(items, offsets, timestamps), None
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
