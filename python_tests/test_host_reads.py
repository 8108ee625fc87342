"""What sees waits sees all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from host_reads import HostReads
from torch import Tensor

READING: list[Callable[[Tensor], object]] = [
    lambda x: x[0].item(),
    lambda x: bool(x[0]),
    lambda x: torch.equal(x, x),
    lambda x: x.nonzero(),
    lambda x: x.nonzero(as_tuple=True),
    lambda x: torch.where(x > 1),
    lambda x: x[x > 1],
    lambda x: x.clone().index_put_((x > 1,), torch.tensor(0)),
    lambda x: x.masked_select(x > 1),
    lambda x: x.unique(),
    lambda x: x.unique_consecutive(),
    lambda x: x.bincount(),
    lambda x: torch.repeat_interleave(x, x),
    lambda x: torch.repeat_interleave(x),
]
OTHERS: list[Callable[[Tensor], object]] = [
    lambda x: x[x],
    lambda x: x[1:],
    lambda x: torch.where(x > 1, x, 0),
    lambda x: x.masked_fill(x > 1, 0),
    lambda x: torch.repeat_interleave(x, x, output_size=3),
    lambda x: x.sort(),
]


@pytest.mark.parametrize("inference", [False, True])
def test_every_look_at_values_is_noted_and_nothing_else(inference: bool) -> None:
    x = torch.tensor([0, 1, 2])
    with torch.inference_mode(inference):
        for number, operation in enumerate(READING + OTHERS):
            with HostReads() as reads:
                operation(x)
            assert bool(reads.names) == (number < len(READING)), number
