"""Sees how large the tensors are that a piece of code makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Notes the most bytes of memory that an operation within it has made; views make none."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        before = {x.untyped_storage().data_ptr() for x in _dense(args)}
        for x in _dense(results):
            if x.untyped_storage().data_ptr() not in before:
                self.nbytes = max(self.nbytes, x.untyped_storage().nbytes())
        return results


def _dense(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.layout == torch.strided]
