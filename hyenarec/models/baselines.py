"""The models that learn to compare HyenaRec with, with the same interface.

They share HyenaRec's embedding, output layer, loss, batches and optimiser and, if they have
blocks, its norms and feed-forward layers; they differ in how a row sees the events before it. Packed
sequences stay packed, except where rectangles are needed: for attention on a CPU, with bounded padding, and
the FFT.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hyenarec.config import (
    GRU4RecConfig,
    HyenaConfig,
    SASRecConfig,
)
from hyenarec.config.auto import settled
from hyenarec.data.histories import offsets_of, ragged_indices
from hyenarec.models.blocks import Block, BlocksModel, branch_gain
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.layers import embedding, linear
from hyenarec.models.sequential import SequentialModel

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch without it
    HAS_VARLEN = False
else:
    # Its first version, in torch 2.10, took another argument to be causal.
    HAS_VARLEN = "window_size" in inspect.signature(varlen_attn).parameters

SHORT = 16
"""Sequences of at most this many events are padded to one length: they cost little anyway."""


# --- SASRec ---


def causal_attention(x: Tensor, num_heads: int) -> Tensor:
    """Causal attention: queries, keys and values side by side, `[B, L, 3D]` -> `[B, L, D]`."""
    q, k, v = x.view(*x.shape[:2], 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Groups:
    """Packed sequences in rectangles of similar length, for attention where torch has none over packed rows.

    Within a rectangle a sequence of more than `SHORT` events has at least 7/8 of the longest one's length, so
    padded attention costs at most (8/7)² as much as the exact one. Padding is on the right, where a causal
    query never looks.

    Attributes:
        index: int64 `[total]`, the position of each event within all rectangles; None if none moves and there
            is no padding.
        shapes: B and L of each rectangle, in their order.
    """

    index: Tensor | None
    shapes: tuple[tuple[int, int], ...]

    @staticmethod
    def of(offsets: Tensor, total: int) -> Groups:
        """Computes the rectangles. A GPU has to wait, for their sizes depend on the offsets."""
        lengths = offsets.diff().cpu().numpy()
        order = np.argsort(-lengths, kind="stable")
        descending = -lengths[order]  # searchsorted wants rising numbers
        place = np.zeros(len(lengths), dtype=np.int64)
        shapes: list[tuple[int, int]] = []
        begin = size = 0
        while begin < len(order) and descending[begin] < 0:
            longest = int(-descending[begin])
            shortest = longest - longest // 8 if longest > SHORT else 1
            end = int(np.searchsorted(descending, -shortest, side="right"))
            place[order[begin:end]] = size + np.arange(end - begin) * longest
            size += (end - begin) * longest
            shapes.append((end - begin, longest))
            begin = end
        index = ragged_indices(place, lengths)
        stays = size == total and bool((index == np.arange(total)).all())
        return Groups(None if stays else torch.from_numpy(index).to(offsets.device), tuple(shapes))

    def attend(self, x: Tensor, num_heads: int) -> Tensor:
        """`causal_attention` within each packed sequence, `[total, 3D]` -> `[total, D]`."""
        if not self.shapes:  # no events
            return x[:, : x.shape[1] // 3]
        sizes = [batch * length for batch, length in self.shapes]
        spread = x
        if self.index is not None:
            spread = x.new_zeros(sum(sizes), x.shape[1]).index_copy(0, self.index, x)
        y = torch.cat(
            [
                causal_attention(rows.view(*shape, -1), num_heads).flatten(0, 1)
                for rows, shape in zip(torch.split(spread, sizes), self.shapes, strict=True)
            ]
        )
        return y if self.index is None else y.index_select(0, self.index)


@dataclass(frozen=True)
class Packed:
    """Packed sequences for flash attention on a GPU, without padding and without waiting.

    Attributes:
        offsets: int32 `[B + 1]`.
        longest: an upper bound of the sequences' lengths.
    """

    offsets: Tensor
    longest: int

    @staticmethod
    def can_attend(x: Tensor, num_heads: int) -> bool:
        """Whether it supports rows `[total, D]` like `x`: 16 bits, by autocast or not, on Ampere or later."""
        if not (HAS_VARLEN and x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 0)):
            return False
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
        return dtype in (torch.float16, torch.bfloat16) and x.shape[1] // num_heads % 8 == 0

    def attend(self, x: Tensor, num_heads: int) -> Tensor:
        """`causal_attention` within each packed sequence, `[total, 3D]` -> `[total, D]`."""
        q, k, v = x.view(x.shape[0], 3, num_heads, -1).unbind(1)
        bounds = (self.offsets, self.offsets, self.longest, self.longest)
        y = cast(Tensor, varlen_attn(q, k, v, *bounds, window_size=(-1, 0)))
        return y.flatten(1)


class Attention(nn.Module):
    """Multi-head causal self-attention, without dropout on the attention weights."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.in_proj = linear(config.dim, 3 * config.dim)
        self.out_proj = linear(config.dim, config.dim, gain=branch_gain(config))

    def forward(self, x: Tensor, layout: Groups | Packed | None) -> Tensor:
        """`x` `[B, L, D]`, or packed `[total, D]` in a `layout`."""
        x = self.in_proj(x)
        y = causal_attention(x, self.num_heads) if layout is None else layout.attend(x, self.num_heads)
        out: Tensor = self.out_proj(y)
        return out


class SASRec(BlocksModel):
    """Self-attention over the events, with a learned vector for each position: 0 is a sequence's first event.

    Unlike the first implementation, it has HyenaRec's norms, a feed-forward layer of `ffn_multiple` times the
    width with GELU, and is trained by the softmax over the whole catalogue unless `loss.name` asks for its
    one sampled negative (`bce`): all are known to score higher.

    Args:
        config: the shape; `num_items` must be set.

    Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018; the softmax: Klenitskiy
    and Vasilev, "Turning Dross Into Gold Loss: is BERT4Rec really better than SASRec?", RecSys 2023.
    """

    config_type = SASRecConfig
    config: SASRecConfig

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__(config)
        self.positions = embedding(self.max_len, config.dim)
        config = self.config
        self.blocks = nn.ModuleList(Block(config, Attention(config)) for _ in range(config.num_blocks))
        self._add_norm()

    def forward(
        self, items: Tensor, offsets: Tensor | None = None, timestamps: Tensor | None = None
    ) -> Tensor:
        """Ids `[B, L]`, or packed `[total]` with `offsets` -> rows `[B, L, D]` or `[total, D]`."""
        x = self._embed(items, offsets, timestamps)
        position = torch.arange(x.shape[-2], device=x.device)
        if offsets is not None:
            position = position - torch.repeat_interleave(
                offsets[:-1], offsets.diff(), output_size=x.shape[0]
            )
        layout = None if offsets is None else self._layout(x, offsets)
        return self._through_blocks(x + self.positions(position), layout)

    def _layout(self, x: Tensor, offsets: Tensor) -> Groups | Packed:
        if Packed.can_attend(x, self.config.num_heads):
            return Packed(offsets.int(), min(self.max_len, x.shape[0]))
        return Groups.of(offsets, x.shape[0])


# --- plain Hyena ---


class Hyena(HyenaRec):
    """HyenaRec with Hyena's own kernels, an implicit `mlp` through `fft_conv`: what Legendre kernels replace.

    Args:
        config: the shape; `num_items` must be set.

    Source: Poli et al., "Hyena Hierarchy: Towards Larger Convolutional Language Models", ICML 2023.
    """

    config_type = HyenaConfig
    config: HyenaConfig


# --- GRU4Rec ---


class Recurrence(nn.Module):
    """Gated recurrent units along each sequence, and a projection of their states to D channels."""

    def __init__(self, config: GRU4RecConfig) -> None:
        super().__init__()
        hidden, layers = config.hidden_multiple * config.dim, config.num_layers
        dropout = settled(config.dropout) if layers > 1 else 0.0  # torch drops out between layers
        self.gru = nn.GRU(config.dim, hidden, layers, batch_first=True, dropout=dropout)
        self.out_proj = linear(hidden, config.dim)

    def forward(self, x: Tensor, offsets: Tensor | None) -> Tensor:
        """`x` `[B, L, D]`, or packed `[total, D]` with `offsets`."""
        if offsets is None:
            states = self.gru(x)[0]
        elif x.shape[0] == 0:
            states = x.new_zeros(0, self.gru.hidden_size)
        else:
            index, alive = time_major(offsets)
            rows = PackedSequence(x.new_empty(x.shape).index_copy(0, index, x), alive)
            states = self.gru(rows)[0].data.index_select(0, index)
        y: Tensor = self.out_proj(states)
        return y


def time_major(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The order of a `PackedSequence`: all first events, all second ones, ..., longer sequences first.

    A GPU has to wait: the number of sequences alive at each step bounds a loop.

    Returns:
        The position of each packed event, `[total]` on the device of `offsets`, and the number of sequences
        that have a t-th event, `[L]` on the CPU; both int64.
    """
    lengths = offsets.diff().cpu().numpy()
    rank = np.empty_like(lengths)
    rank[np.argsort(-lengths, kind="stable")] = np.arange(len(lengths))
    time = ragged_indices(np.zeros_like(lengths), lengths)
    alive = np.bincount(time)
    index = offsets_of(alive)[time] + np.repeat(rank, lengths)
    return torch.from_numpy(index).to(offsets.device), torch.from_numpy(alive)


class GRU4Rec(SequentialModel):
    """A recurrent network over the events, trained at every event, by default with the softmax.

    Args:
        config: the shape; `num_items` must be set.

    Source: Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016.
    """

    config_type = GRU4RecConfig
    config: GRU4RecConfig

    def __init__(self, config: GRU4RecConfig) -> None:
        super().__init__(config)
        self.mixer = Recurrence(self.config)
        self._add_norm()

    def forward(
        self, items: Tensor, offsets: Tensor | None = None, timestamps: Tensor | None = None
    ) -> Tensor:
        """Ids `[B, L]`, or packed `[total]` with `offsets` -> rows `[B, L, D]` or `[total, D]`."""
        x = self.dropout(self._embed(items, offsets, timestamps))
        rows: Tensor = self.norm(self.mixer(x, offsets))
        return rows
