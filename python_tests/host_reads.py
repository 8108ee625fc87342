"""Sees where a piece of code looks at tensors' values: there it would wait, were they a GPU's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

READS = {
    aten._local_scalar_dense,
    aten.item,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.nonzero_numpy,
    aten.where.default,
    aten.argwhere,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
}
"""Operations whose result is on the host, or whose result's size depends on values."""


class HostReads(TorchDispatchMode):
    """Notes the operations within it that look at values.

    It runs on a CPU, and sees what is asked of torch: not what kernels do, nor copies between devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reads = func in READS or func.overloadpacket in READS
        if reads or _has_mask(func, args) or _has_unknown_size(func, kwargs):
            self.names.append(str(func))
        return func(*args, **kwargs)


def _has_mask(func: Any, args: Any) -> bool:
    """Whether an index is a mask: how many elements it chooses depends on its values."""
    if func.overloadpacket not in (aten.index, aten.index_put, aten.index_put_):
        return False
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in tree_leaves(args[1]))


def _has_unknown_size(func: Any, kwargs: Any) -> bool:
    """Whether an operation adds numbers of repetitions up because nobody says what they add up to."""
    repeats = (aten.repeat_interleave.Tensor, aten.repeat_interleave.self_Tensor)
    return func in repeats and kwargs.get("output_size") is None
