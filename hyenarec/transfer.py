"""Tensors between the host and a GPU, while neither of them waits for the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; what comes from the host is copied when the device comes to it.

    A copy from ordinary memory would make the host wait until a GPU has done all that it was asked for
    before. From page-locked memory the GPU copies by itself, and torch keeps that memory until it has.

    Args:
        tensor: any shape and dtype. One that is on a GPU is copied as usual: it may be read at once.
        device: where it is to be.
    """
    from_host = tensor.device.type == "cpu"
    if from_host and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=from_host)


class Readback:
    """A device's numbers on their way to the host: they wait for no work that is asked for later.

    (`Tensor.tolist` begins its copy only when it is called, and so behind all of that work.)

    Args:
        values: any shape, computed or soon to be.
    """

    def __init__(self, values: Tensor) -> None:
        # Without blocking, torch copies a GPU's tensor to page-locked memory.
        self._values = values.to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def tolist(self) -> Any:
        """The numbers, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
