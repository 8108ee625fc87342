"""Layers that all models share, and how they are initialised."""

from __future__ import annotations

from torch import nn

EMBEDDING_STD = 0.02


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer initialised as in all blocks: Xavier-uniform times `gain`, and a bias of zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def embedding(rows: int, dim: int) -> nn.Embedding:
    """An embedding of small normal numbers."""
    layer = nn.Embedding(rows, dim)
    nn.init.normal_(layer.weight, std=EMBEDDING_STD)
    return layer
