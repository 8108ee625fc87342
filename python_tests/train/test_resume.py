from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hyenarec import cli
from hyenarec.config import LossConfig
from hyenarec.train import train, trainer
from hyenarec.train.checkpoint import load_checkpoint, save_checkpoint
from hyenarec.train.interrupt import TrainingInterrupted
from hyenarec.train.optimizer import learning_rate
from hyenarec.train.run_log import read_log
from hyenarec.train.trainer import TrainingRun

# Kills itself without warning as it begins step 9, in the second of three epochs, or as a later checkpoint is
# about to take the place of the one before it.
KILLED_IN_A_STEP = """
step = TrainingRun._step
def kill(run, batch, events):
    if run.progress.total_steps == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(run, batch, events)
TrainingRun._step = kill
"""
KILLED_IN_A_CHECKPOINT = """
replace = os.replace
def kill(source, target):
    if str(target).endswith("checkpoint.safetensors") and os.path.exists(target):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = kill
"""


def run_in_another_process(config, before: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import os, signal, torch
from hyenarec.config import *
from hyenarec.train import train
from hyenarec.train.trainer import TrainingRun
torch.set_num_threads(1)
{before}
train({config!r})
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)


def same_run(one: Path, other: Path) -> bool:
    """Weights, optimiser, random state and figures; not the time that it took."""
    a, b = (load_checkpoint(folder / "checkpoint.safetensors") for folder in (one, other))
    for part in ("model", "best", "optimizer", "random"):
        left, right = getattr(a, part), getattr(b, part)
        if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
            return False
    figures = ("epoch", "step", "loss", "learning_rate", "validation")
    logs = [
        [{name: record[name] for name in figures} for record in read_log(folder)] for folder in (one, other)
    ]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    return logs[0] == logs[1] and weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "steps"), [(KILLED_IN_A_STEP, 6), (KILLED_IN_A_CHECKPOINT, 3)], ids=["step", "checkpoint"]
)
def test_a_killed_run_goes_on_bit_for_bit(make_config, tmp_path, before, steps):
    train(make_config("whole"))
    killed = run_in_another_process(make_config(checkpoint_every=3), before)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert saved.progress.total_steps == steps and not (tmp_path / "run" / "model.safetensors").exists()
    train(make_config(resume=True))
    assert same_run(tmp_path / "run", tmp_path / "whole")


SAMPLED = LossConfig(name="sampled_softmax", negatives=9, distribution="popularity")


@pytest.mark.parametrize(
    ("step", "loss"),
    [(2, LossConfig()), (4, LossConfig()), (7, LossConfig()), (7, SAMPLED), (2, LossConfig(name="bce"))],
)
def test_a_signal_finishes_the_step_and_resuming_is_exact(
    make_config, tmp_path, monkeypatch, capsys, step, loss
):
    make_config = functools.partial(make_config, loss=loss)
    whole = train(make_config("whole"))
    take_step = TrainingRun._step

    def interrupted(run, batch, events):
        if run.progress.total_steps == step:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(run, batch, events)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_step", interrupted)
        with pytest.raises(TrainingInterrupted) as stopped:
            train(make_config())
    assert stopped.value.code == 130 and stopped.value.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is handler
    assert "--resume (instead of --overwrite) continues the run" in capsys.readouterr().out
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert step < saved.progress.total_steps <= step + 2
    resumed = train(make_config(resume=True))
    assert same_run(tmp_path / "run", tmp_path / "whole")
    assert resumed.test.figures == whole.test.figures


def test_a_signal_during_a_validation_is_not_lost(make_config, tmp_path, monkeypatch):
    evaluate = trainer.evaluate

    def interrupted(*arguments, **settings):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **settings)

    train(make_config("whole", epochs=1))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", interrupted)
        with pytest.raises(TrainingInterrupted) as stopped:
            train(make_config(epochs=1))
    assert stopped.value.code == 143
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").progress.epoch == 1
    train(make_config(epochs=1, resume=True))
    assert same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_saves_and_leaves_with_the_status_of_the_signal(events, tmp_path, number, status):
    folder = tmp_path / "run"
    module = ["hyenarec", "train"] if number == signal.SIGINT else ["hyenarec.train"]
    options = (
        f"--epochs 100000 --patience null --model.dim 8 --batch_events 150 --device cpu --output_dir {folder}"
    )
    command = [sys.executable, "-m", *module, "--data.path", str(events), *options.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 300
    while (
        not (folder / "checkpoint.safetensors").exists()
        and process.poll() is None
        and time.monotonic() < give_up
    ):
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    assert (
        "--resume (instead of --overwrite) continues the run" in out.splitlines()[-1]
        and "Traceback" not in err
    )
    assert load_checkpoint(folder / "checkpoint.safetensors").progress.total_steps > 0


def test_resuming_under_other_settings_is_refused(make_config):
    train(make_config(epochs=1))
    with pytest.raises(ValueError, match="batch_events must be 150 to resume this run, got 80"):
        train(make_config(batch_events=80, resume=True))


def test_a_run_can_be_made_longer(make_config, tmp_path):
    train(make_config(epochs=1))
    result = train(make_config(epochs=2, resume=True))
    assert [record["epoch"] for record in result.log] == [1, 2]
    # The cosine of one epoch had come to its end; that of two goes on from its own middle.
    settings = make_config().optimizer
    ends = [learning_rate(4, 5, settings), learning_rate(9, 10, settings)]
    assert [record["learning_rate"] for record in result.log] == ends
    assert json.loads((tmp_path / "run" / "train_config.json").read_text())["epochs"] == 2


def test_settings_that_came_after_a_checkpoint_change_nothing(make_config, events, tmp_path):
    events.write_text("".join(f"{user} {item}\n" for user in range(30) for item in [1, 2, 1, 3, 2, 1] * 3))
    config = make_config(epochs=1, recipe="data")
    given = dataclasses.replace(config, model=dataclasses.replace(config.model, lag_bias=False))
    train(given)
    path = tmp_path / "run" / "checkpoint.safetensors"
    written = load_checkpoint(path)
    del written.config["model"]["lag_bias"]  # as a version without it would have written it
    save_checkpoint(path, written)
    open_model = dataclasses.replace(config.model, lag_bias="auto")
    resumed = dataclasses.replace(config, epochs=2, resume=True, model=open_model)
    assert train(resumed).config.model.lag_bias is False
    begun = dataclasses.replace(resumed, resume=False, output_dir=str(tmp_path / "new"))
    assert train(begun).config.model.lag_bias is True  # the recipe's choice


def test_resuming_on_other_data_is_refused(make_config, events):
    train(make_config(epochs=1))
    first, *others = events.read_text().splitlines(keepends=True)
    events.write_text("".join([*others, first]))
    with pytest.raises(
        ValueError, match=r"data must be the same as when the run began to resume it, but .*events"
    ):
        train(make_config(epochs=2, resume=True))


def test_data_that_grew_are_named_before_the_settings_that_follow_from_them(make_config, events):
    config = make_config(epochs=1)
    train(config)
    with events.open("a") as file:
        file.writelines(f"99 {item}\n" for item in range(200, 240))  # longer, and new items
    open_settings = dataclasses.replace(config.model, max_len="auto")
    for resumed in (config, dataclasses.replace(config, recipe="data", model=open_settings)):
        with pytest.raises(ValueError, match="data must be the same as when the run began to resume it"):
            train(dataclasses.replace(resumed, resume=True))


def test_the_error_names_a_command_that_resumes_from_anywhere(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = make_config("a run", epochs=1)
    data = dataclasses.replace(config.data, path="events.txt")
    config = dataclasses.replace(config, data=data, output_dir="a run")
    train(config)
    with pytest.raises(
        ValueError, match="batch_events must be 150 to resume this run, got 80; hyenarec"
    ) as refused:
        train(dataclasses.replace(config, batch_events=80, resume=True))
    command = re.search(r"hyenarec (train --config .* --resume) ", str(refused.value))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert cli.main(shlex.split(command[1])) == 0
    assert f"resumed {tmp_path / 'a run'} after 5 steps" in capsys.readouterr().out
    assert cli.main(["evaluate", "--model", str(tmp_path / "a run"), "--device", "cpu"]) == 0
    assert list(elsewhere.iterdir()) == []


def test_resuming_a_finished_run_changes_nothing(make_config, tmp_path):
    first = train(make_config(epochs=2))
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    again = train(make_config(epochs=2, resume=True))
    assert again.test.figures == first.test.figures and again.log == first.log
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_resuming_where_nothing_is_begins(make_config, capsys):
    result = train(make_config(epochs=1, resume=True))
    assert (
        len(result.log) == 1 and "has no checkpoint yet: starting at the beginning" in capsys.readouterr().out
    )
