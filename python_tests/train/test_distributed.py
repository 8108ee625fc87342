from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from hyenarec.config import LossConfig, to_dict
from hyenarec.train import train
from hyenarec.train.checkpoint import load_checkpoint
from hyenarec.train.run_log import read_log

# Two processes: a run stopped by a signal to the second one and resumed; the same whole; one by the command.
PROGRAM = """
import os, signal, sys, torch
from dataclasses import replace
from hyenarec.cli import main
from hyenarec.config import *
from hyenarec.train.interrupt import TrainingInterrupted
from hyenarec.train import train
from hyenarec.train.trainer import TrainingRun

torch.set_num_threads(1)
config, folder = {config!r}, {folder!r}

step = TrainingRun._step
def interrupted(run, batch, events):
    if run.progress.total_steps == 6 and run.accelerator.process_index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(run, batch, events)
TrainingRun._step = interrupted
try:
    train(replace(config, output_dir=folder + "/cut", model=replace(config.model, dropout=0.2)))
except TrainingInterrupted as stopped:
    assert stopped.code == 143, stopped.code
TrainingRun._step = step
train(replace(config, output_dir=folder + "/cut", model=replace(config.model, dropout=0.2), resume=True))
train(replace(config, output_dir=folder + "/whole", model=replace(config.model, dropout=0.2)))
sampled = dict(optimizer=replace(config.optimizer, gradient_clip=0.05))
for loss in (LossConfig("sampled_softmax", 9), LossConfig("gbce", 9)):
    train(replace(config, output_dir=folder + "/two_" + loss.name, loss=loss, **sampled))
assert main(["train", "--config", folder + "/settings.json", "--output_dir", folder + "/two"]) == 0
assert not torch.distributed.is_initialized()
"""


@pytest.fixture
def two_processes(make_config, tmp_path):
    """The folders of the runs of `PROGRAM`, and what it printed."""
    config = make_config(dropout=0.0)
    (tmp_path / "settings.json").write_text(json.dumps(to_dict(config)))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(config=config, folder=str(tmp_path)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return tmp_path, done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one(two_processes, make_config):
    folder, printed = two_processes
    one = train(make_config("one", dropout=0.0))
    two = read_log(folder / "two")
    assert [record["loss"] for record in two] == pytest.approx(
        [record["loss"] for record in one.log], rel=1e-5
    )
    for got, expected in zip(two, one.log, strict=True):
        assert got["step"] == expected["step"] and got["learning_rate"] == expected["learning_rate"]
        assert got["validation"] == pytest.approx(expected["validation"], abs=0.02)
    reports = [json.loads((folder / name / "report.json").read_text()) for name in ("one", "two")]
    assert [report["processes"] for report in reports] == [1, 2]
    assert reports[0]["protocol"] == reports[1]["protocol"]
    # One process speaks: each line is there once for each of the runs that printed it.
    assert printed.count("epoch 1/3 ") == 5 and printed.count("saved in") == 5

    # Of a sampled loss both processes have the same rows, and their gradients add up before they are clipped.
    for loss in (LossConfig("sampled_softmax", 9), LossConfig("gbce", 9)):
        optimizer = dataclasses.replace(make_config().optimizer, gradient_clip=0.05)
        train(make_config(f"one_{loss.name}", dropout=0.0, loss=loss, optimizer=optimizer))
        weights = [
            load_checkpoint(folder / f"{name}_{loss.name}" / "checkpoint.safetensors").model
            for name in ("one", "two")
        ]
        for name, weight in weights[0].items():
            torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4, msg=name)

    # Both stopped at the same step, each left its own random state, and together they went on exactly.
    assert printed.count("stopped after 8 steps") == 1 and printed.count("resumed") == 1
    stopped, whole = (load_checkpoint(folder / name / "checkpoint.safetensors") for name in ("cut", "whole"))
    assert stopped.random["cpu"].shape[0] == 2 and not torch.equal(*stopped.random["cpu"])
    assert all(torch.equal(stopped.model[name], whole.model[name]) for name in whole.model)

    with pytest.raises(ValueError, match="processes must be 2 to resume this run, got 1"):
        train(make_config("two", dropout=0.0, resume=True))
