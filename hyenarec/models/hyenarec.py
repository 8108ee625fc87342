"""HyenaRec, top to bottom: item ids in, one hidden row an event out, scores over the catalogue.

    x   = dropout(sqrt(D) E[items])
    per block:  x = x + dropout(mixer(norm(x)));  x = x + dropout(ffn(norm(x)))
    scores = norm(x_last) · E[item] + bias[item]

No position table: time lives in the convolution kernels. Every sequence starts at index 0 (packed, or
padded on the right), so a history gives the same numbers alone, in a batch, and packed with others.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from hyenarec import ops
from hyenarec.config import BlocksConfig, ModelConfig, SequentialConfig
from hyenarec.models.dropout import Dropout
from hyenarec.models.pretrained import PretrainedModel
from hyenarec.models.stream import Stream

EMBEDDING_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Padding:
    """Packed sequences as a rectangle and back: for the FFT, the one operation that needs one.

    Attributes:
        index: int64 `[total]`, the place of each event among the rectangle's `B * L`.
        shape: B and L, the number of sequences and the longest one's length.
    """

    index: Tensor
    shape: tuple[int, int]

    @staticmethod
    def around(offsets: Tensor, total: int) -> Padding:
        """Finds the places; a GPU has to wait, for the rectangle's size depends on the offsets' values."""
        lengths = offsets.diff()
        shape = (lengths.shape[0], int(lengths.max()) if lengths.shape[0] > 0 else 0)
        first = torch.arange(shape[0], device=offsets.device) * shape[1] - offsets[:-1]
        index = torch.repeat_interleave(first, lengths, output_size=total)
        return Padding(index + torch.arange(total, device=offsets.device), shape)

    def pad(self, x: Tensor) -> Tensor:
        """Packed `[total, C]` -> `[B, L, C]` with zeros behind each sequence's end."""
        batch, length = self.shape
        padded = x.new_zeros(batch * length, x.shape[1]).index_copy(0, self.index, x)
        return padded.view(batch, length, x.shape[1])

    def pack(self, x: Tensor) -> Tensor:
        """`[B, L, C]` -> packed `[total, C]`."""
        return x.flatten(0, 1).index_select(0, self.index)


class LegendreKernel(nn.Module):
    """κ[d, τ] = exp(-decay[d] τ) Σ_n coeffs[d, n] P_n(2τ/(T-1) - 1): N + 1 numbers a channel, any length."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.horizon = config.max_len
        self.coeffs = nn.Parameter(torch.randn(channels, config.num_coeffs))
        self.log_decay = _log_decay(channels, config)
        with torch.no_grad():
            self.coeffs.div_(self(config.max_len).norm(dim=1, keepdim=True))

    @property
    def decay(self) -> Tensor:
        """Rate of the exponential decay per lag, `[channels]`; zeros where none is learned."""
        return _decay(self.log_decay, self.coeffs)

    def forward(self, length: int) -> Tensor:
        """The kernel's first `length` lags, `[channels, length]`; the model never needs them."""
        return ops.legendre_kernel(self.coeffs, self.decay, self.horizon, min(length, self.horizon))


class MLPKernel(nn.Module):
    """Hyena's implicit filter (Poli et al. 2023): a sine MLP on complex exponentials of τ, decaying."""

    BANDS, HIDDEN, FREQUENCY = 8, 64, 10.0

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.horizon = config.max_len
        self.log_decay = _log_decay(channels, config)
        self.hidden = nn.ModuleList(
            [nn.Linear(2 * self.BANDS + 1, self.HIDDEN), nn.Linear(self.HIDDEN, self.HIDDEN)]
        )
        self.out = nn.Linear(self.HIDDEN, channels, bias=False)
        self.frequency = nn.Parameter(torch.full((self.HIDDEN,), self.FREQUENCY))
        self.gain = nn.Parameter(torch.ones(channels))
        with torch.no_grad():
            self.gain.div_(self(config.max_len).norm(dim=1))

    def forward(self, length: int) -> Tensor:
        """The kernel's first `length` lags, `[channels, length]`; in full precision even under autocast."""
        with torch.autocast(self.gain.device.type, enabled=False):
            return self._evaluate(length)

    def _evaluate(self, length: int) -> Tensor:
        lag = torch.arange(min(length, self.horizon), device=self.gain.device, dtype=self.gain.dtype)
        time = lag[:, None] / max(self.horizon - 1, 1)
        angle = (
            2
            * math.pi
            * time
            * torch.linspace(1e-4, self.BANDS - 1, self.BANDS, device=lag.device, dtype=lag.dtype)
        )
        x = torch.cat([time, angle.cos(), angle.sin()], dim=1)
        for layer in self.hidden:
            x = torch.sin(self.frequency * layer(x))
        fade = torch.exp(-_decay(self.log_decay, self.gain)[:, None] * lag)
        kernel: Tensor = self.gain[:, None] * self.out(x).t() * fade
        return kernel


class FreeKernel(nn.Module):
    """One learned number for each lag and channel: the most general kernel, T numbers a channel."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        fade = torch.exp(-_geometric_decay(channels, config.max_len)[:, None] * torch.arange(config.max_len))
        kernel = torch.randn(channels, config.max_len) * fade
        self.kernel = nn.Parameter(kernel / kernel.norm(dim=1, keepdim=True))

    def forward(self, length: int) -> Tensor:
        """The kernel's first `length` lags, `[channels, length]`."""
        return self.kernel[:, :length]


KERNELS: dict[str, type[LegendreKernel] | type[MLPKernel] | type[FreeKernel]] = {
    "legendre": LegendreKernel,
    "mlp": MLPKernel,
    "free": FreeKernel,
}


def _geometric_decay(channels: int, horizon: int) -> Tensor:
    """Rates spread geometrically over the channels, from bursts (1/2 a step) to the whole horizon (1/T)."""
    return torch.logspace(math.log10(0.5), math.log10(1 / max(horizon, 2)), channels)


def _log_decay(channels: int, config: ModelConfig) -> nn.Parameter | None:
    return nn.Parameter(_geometric_decay(channels, config.max_len).log()) if config.decay else None


def _decay(log_decay: nn.Parameter | None, like: Tensor) -> Tensor:
    return like.new_zeros(like.shape[0]) if log_decay is None else log_decay.exp()


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer as all blocks have it: Xavier-uniform times `gain`, and no bias at first."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def branch_gain(config: BlocksConfig) -> float:
    """Of a branch's last layer: all branches together then add up to one, however many blocks there are."""
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


class FeedForward(nn.Sequential):
    """Linear, GELU, linear, applied to each event by itself."""

    def __init__(self, config: BlocksConfig) -> None:
        inner = config.ffn_multiple * config.dim
        gain = branch_gain(config)
        super().__init__(linear(config.dim, inner), nn.GELU(), linear(inner, config.dim, gain))


class Block(nn.Module):
    """Two residual branches, each normalised before and dropped out after: events mix, then channels.

    Args:
        config: the shape.
        mixer: maps `[..., D]` to `[..., D]`, given how the sequences lie in it.
    """

    def __init__(self, config: BlocksConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.dim)
        self.mixer = mixer
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.ffn = FeedForward(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, branch: Tensor, x: Tensor | None, *layout: object) -> tuple[Tensor, Tensor]:
        """The residual stream before the block -> behind it, each without the branch that came last.

        That branch is dropped out and added by the norm that follows it, in one operator.

        Args:
            branch: `[..., D]`, what is still to be added: the last branch before this block, or the embedded
                events.
            x: `[..., D]`, the stream without it. None: there is nothing else yet.
            layout: the rest as the mixer takes it.
        """
        normed, x = self.dropout.add_norm(branch, x, self.mixer_norm)
        normed, x = self.dropout.add_norm(self.mixer(normed, *layout), x, self.ffn_norm)
        return self.ffn(normed), x


class SequentialModel(PretrainedModel):
    """What all models share that learn: the item embedding, and the same once more as the output layer.

    A model adds its own layers in `_make_layers` and runs them, and the last norm, in `_run_layers`.

    Args:
        config: the shape; `num_items` must be set.
    """

    config: SequentialConfig

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__(config)
        self.items = nn.Embedding(self.num_items + 1, config.dim, padding_idx=0)
        self.item_bias = nn.Parameter(torch.zeros(self.num_items))
        self.dropout = Dropout(config.dropout)
        self._make_layers()
        self.norm = nn.LayerNorm(config.dim)
        # Small, so that scores start near 0. As an input it is scaled by sqrt(D), else the branches drown it.
        with torch.no_grad():
            self.items.weight[1:].normal_(std=EMBEDDING_STD)
            self.items.weight[0].zero_()

    def _make_layers(self) -> None:
        """Adds what lies between the embedding and the last norm."""
        raise NotImplementedError

    def _run_layers(self, x: Tensor, offsets: Tensor | None) -> Tensor:
        """Embedded events, `[B, L, D]` or packed `[total, D]` with `offsets`, to normalised rows."""
        raise NotImplementedError

    def _run_blocks(self, blocks: nn.ModuleList, x: Tensor, *layout: object) -> Tensor:
        """Embedded events through dropout, `blocks` and the last norm; `layout` as the mixers take it."""
        branch, residual = x, None
        for block in blocks:
            branch, residual = block(branch, residual, *layout)
        return self.dropout.add_norm(branch, residual, self.norm)[0]

    def forward(self, items: Tensor, offsets: Tensor | None = None) -> Tensor:
        """One hidden row for each event, which has seen that event and those before it in its own sequence.

        Args:
            items: int64 ids, 1..V (0 = none): `[B, L]` padded on the right, or packed `[total]` with
                `offsets`.
            offsets: `[B + 1]` int64, where each packed sequence begins and ends.

        Returns:
            `[B, L, D]` or `[total, D]`, normalised: its product with an item's row is that item's score.

        Raises:
            ValueError: a shape is wrong, or a sequence has more than `max_len` events. Packed sequences on
                a GPU are not looked at before they are used: too long a one is a device-side assertion there.
        """
        self._check(items, offsets)
        x = self.items(items) * math.sqrt(self.config.dim)
        return self._run_layers(x, offsets)

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
        max_len = self.config.max_len
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

    def encode(self, items: Tensor, offsets: Tensor) -> Tensor:
        """The hidden row of each packed history's last event, `[B, D]`.

        Every history must hold at least one event; an empty one raises ValueError on the CPU, and on a GPU,
        where a check would wait for all earlier work, gives another row's state.
        """
        self._check(items, offsets)
        if offsets.device.type == "cpu" and bool((offsets.diff() < 1).any()):
            raise ValueError("offsets must describe histories of at least one event, got an empty one")
        last: Tensor = self(items, offsets)[offsets[1:] - 1]
        return last

    def score_tile(self, state: Tensor, first: int, last: int) -> Tensor:
        """The columns `first` up to `last` of the scores, `[B, last - first]`, from what `encode` gave."""
        return torch.addmm(self.item_bias[first:last], state, self.item_weight[first:last].t())


class HyenaRec(SequentialModel):
    """The recommender: embedding, blocks, norm, and the embedding once more as the output layer.

    Args:
        config: the shape; `num_items` must be set.

    Source: Liu et al., "Hyena Operator for Fast Sequential Recommendation", WWW 2026, arXiv 2603.25027.
    """

    config_type: ClassVar[type[ModelConfig]] = ModelConfig
    config: ModelConfig

    def _make_layers(self) -> None:
        config = self.config
        self.blocks = nn.ModuleList(Block(config, Mixer(config)) for _ in range(config.num_blocks))

    def _run_layers(self, x: Tensor, offsets: Tensor | None) -> Tensor:
        padding = None
        if offsets is not None and self.config.kernel != "legendre":
            padding = Padding.around(offsets, x.shape[0])
        return self._run_blocks(self.blocks, x, offsets, padding)

    def stream(self) -> Stream:
        """An empty history that grows event by event, with the scores of `score` in constant time and memory.

        Raises:
            ValueError: if the kernels are not `legendre` ones.
        """
        return Stream(self)
