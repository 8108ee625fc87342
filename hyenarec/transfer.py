"""Copies between the host and a GPU for which neither waits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; a copy from the host is queued like the device's other work.

    A copy from ordinary memory would make the host wait for all earlier work of a GPU. From page-locked
    memory the GPU copies by itself, and torch keeps that memory until it is done.

    Args:
        tensor: any shape and dtype. A tensor on a GPU is copied as usual and may be read at once.
        device: the target.
    """
    from_host = tensor.device.type == "cpu"
    if from_host and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=from_host)


class Readback:
    """Numbers on their way from a device to the host, ahead of all work that is queued later.

    (`Tensor.tolist` starts its copy only when called, so after all that work.)

    Args:
        values: any shape; they may still be being computed.
    """

    def __init__(self, values: Tensor) -> None:
        # Without blocking, torch copies a GPU's tensor to page-locked memory.
        self._values = values.to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def tolist(self) -> Any:
        """The numbers; waits until they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
