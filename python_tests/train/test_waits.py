"""A step asks a device for its work and looks at none of it, whatever the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from devices import needs_gpu
from host_reads import HostReads
from torch import Tensor, nn

from hyenarec.config import LossConfig
from hyenarec.data import batches as data_batches
from hyenarec.data import load_histories, split_histories
from hyenarec.data.times import Times
from hyenarec.models.dropout import Dropout
from hyenarec.train import train, trainer, with_catalogue
from hyenarec.train.loss import NextItemLoss, Sample
from hyenarec.train.trainer import Readback, TrainingRun

LOSSES = [
    LossConfig("softmax"),
    LossConfig("softmax", lookahead=3),
    LossConfig("sampled_softmax", 10),
    LossConfig("sampled_softmax", 10, "uniform"),
    LossConfig("bce", 2),
    LossConfig("gbce", 10),
]
every_loss = pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda loss: f"{loss.name}-{loss.negative_distribution}-{loss.lookahead}"
)

MakeRun = Callable[..., TrainingRun]


@pytest.fixture
def make_run(make_config) -> Iterator[MakeRun]:
    def make(
        device: str,
        precision: str = "no",
        max_len: int = 200,
        repeat_head: bool = False,
        lag_bias: bool = False,
        **settings: Any,
    ) -> TrainingRun:
        config = make_config(device=device, precision=precision, **settings)
        heads = {"repeat_head": repeat_head, "lag_bias": lag_bias}
        model = dataclasses.replace(config.model, max_len=max_len, **heads)
        config = dataclasses.replace(config, model=model)
        split = split_histories(load_histories(config.data), config.data)
        config = with_catalogue(config, split.train.num_items)
        run = TrainingRun(config, split, Accelerator(mixed_precision=precision, cpu=device == "cpu"))
        run.loss.train()
        return run

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def take_step(run: TrainingRun) -> Tensor:
    progress = run.progress
    (batch, *_) = run.batches.batches(progress.epoch, progress.step)
    outcome = run._step(batch, len(batch.targets))
    progress.step, progress.total_steps = progress.step + 1, progress.total_steps + 1
    return outcome


@every_loss
def test_a_step_looks_at_no_value(make_run, loss, monkeypatch):
    monkeypatch.setattr(Dropout, "forward", nn.Dropout.forward)  # as on a GPU; on a CPU its seed is read
    run = make_run("cpu", loss=loss)
    assert run.config.optimizer.gradient_clip is not None
    take_step(run)  # makes the moments
    with HostReads() as reads:
        take_step(run)
    assert reads.names == []


@pytest.mark.parametrize("changes", [{"repeat_head": True}, {"lag_bias": True}, {"timed": True}], ids=str)
def test_a_step_of_a_larger_model_looks_at_no_value(make_run, monkeypatch, changes):
    monkeypatch.setattr(Dropout, "forward", nn.Dropout.forward)
    run = make_run("cpu", **changes)
    take_step(run)
    with HostReads() as reads:
        take_step(run)
    assert reads.names == []


@every_loss
@pytest.mark.parametrize("timed", [False, True])
def test_all_that_a_step_reads_goes_to_the_device_in_one_way(make_run, loss, timed, monkeypatch):
    arrived: list[Tensor] = []

    def to_device(tensor: Tensor, device: torch.device) -> Tensor:
        arrived.append(tensor.clone())
        return arrived[-1]

    read: list[Tensor] = []
    forward = NextItemLoss.forward

    def watched(
        self, items: Tensor, offsets: Tensor, targets: Tensor, sample: Sample | None, times: Times | None
    ) -> Tensor:
        read.extend([items, offsets, targets, *(times or ())])
        if sample is not None:
            read.append(sample.negatives)
            read.extend([] if sample.log_q is None else [sample.log_q])
            assert any(torch.equal(sample.rows.ids[1:], tensor) for tensor in arrived)
        return forward(self, items, offsets, targets, sample, times)

    run = make_run("cpu", loss=loss, timed=timed)
    for module in (trainer, data_batches):
        monkeypatch.setattr(module, "to_device", to_device)
    monkeypatch.setattr(NextItemLoss, "forward", watched)
    take_step(run)
    assert len(read) >= (5 if timed else 3) and all(
        any(tensor is other for other in arrived) for tensor in read
    )


def test_a_step_is_read_while_the_next_one_is_computed(make_config, monkeypatch):
    happened: list[str] = []

    class Watched(Readback):
        made = 0

        def __init__(self, values: Tensor) -> None:
            super().__init__(values)
            Watched.made += 1
            self.number = Watched.made
            happened.append(f"step {self.number}")

        def tolist(self) -> Any:
            happened.append(f"read {self.number}")
            return super().tolist()

    monkeypatch.setattr(trainer, "Readback", Watched)
    train(make_config(epochs=1))
    first, last = ["step 1"], ["read 5"]
    between = [what for number in range(2, 6) for what in (f"step {number}", f"read {number - 1}")]
    assert happened == first + between + last


@needs_gpu
@every_loss
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("timed", [False, True])
def test_a_gpu_never_waits(make_run, precision, loss, timed):
    """Not for copies, forward, backward, clipping, the update or what is kept to be read later."""
    run = make_run(  # shorter than the batch: lengths are checked
        "auto", precision, max_len=16, repeat_head=loss == LossConfig("softmax"), loss=loss, timed=timed
    )
    for _ in range(2):
        take_step(run)  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome = Readback(take_step(run))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    loss_sum, asked = outcome.tolist()
    assert loss_sum > 0 and asked == 0
