"""Models of residual blocks: the block, whatever its mixer, and the way through a stack of them."""

from __future__ import annotations

import math

from torch import Tensor, nn

from hyenarec.config import BlocksConfig
from hyenarec.config.auto import settled
from hyenarec.models.dropout import Dropout
from hyenarec.models.layers import linear
from hyenarec.models.sequential import SequentialModel


def branch_gain(config: BlocksConfig) -> float:
    """The gain of a branch's last layer: the residual stream's variance then doesn't grow with depth."""
    return 1 / math.sqrt(2 * config.num_blocks)


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
