"""What goes to a GPU goes from page-locked memory, and what comes back waits for no later work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import needs_gpu
from torch import Tensor

from hyenarec.transfer import Readback, to_device


class Traveller(Tensor):
    """Notes what would move it, and stays where it is."""

    journey: list[tuple[Any, ...]]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (Tensor.pin_memory, Tensor.to):
            return super().__torch_function__(func, types, args, kwargs)
        args[0].journey.append((func.__name__, *args[1:], kwargs or {}))
        return args[0]


def traveller(device: str = "cpu") -> Traveller:
    tensor = torch.zeros(3, device=device).as_subclass(Traveller)
    tensor.journey = []
    return tensor


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_to_a_gpu_from_page_locked_memory_without_blocking(device: torch.device | str) -> None:
    tensor = traveller()
    to_device(tensor, device)
    assert tensor.journey == [("pin_memory", {}), ("to", device, {"non_blocking": True})]


def test_what_another_device_has_can_be_read_once_it_is_there() -> None:
    tensor = traveller("meta")
    to_device(tensor, "cpu")
    assert tensor.journey == [("to", "cpu", {"non_blocking": False})]


def test_nothing_is_copied_on_a_cpu() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, "cpu") is tensor


def test_numbers_of_a_cpu_are_read_at_once() -> None:
    assert Readback(torch.tensor([[1.5], [2.0]])).tolist() == [[1.5], [2.0]]


def test_numbers_of_a_gpu_are_copied_at_once_and_read_when_they_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []

    class Event:
        def synchronize(self) -> None:
            happened.append("wait")

    class Stream:
        def record_event(self) -> Event:
            happened.append("record")
            return Event()

    class OnGpu:
        """A GPU's tensor as far as `Readback` looks at it."""

        device, is_cuda = torch.device("cuda", 1), True

        def to(self, device: str, non_blocking: bool) -> OnGpu:
            assert device == "cpu" and non_blocking
            happened.append("copy")
            return self

        def tolist(self) -> list[float]:
            happened.append("read")
            return [1.0]

    def stream_of(device: torch.device) -> Stream:
        assert device == OnGpu.device
        return Stream()

    monkeypatch.setattr(torch.cuda, "current_stream", stream_of)
    readback = Readback(OnGpu())  # type: ignore[arg-type]
    assert happened == ["copy", "record"]
    assert readback.tolist() == [1.0]
    assert happened == ["copy", "record", "wait", "read"]


@needs_gpu
def test_reading_waits_for_no_later_work() -> None:
    values = to_device(torch.arange(3), "cuda")
    readback = Readback(values * 2)
    torch.cuda._sleep(10**9)  # about half a second
    later = torch.cuda.current_stream().record_event()
    assert readback.tolist() == [0, 2, 4]
    assert not later.query()
