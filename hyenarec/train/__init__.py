"""Training conducted from the events to the reported score; each computation lives in the module of its name.

`hyenarec.train.train(config)`, `hyenarec train` and `python -m hyenarec.train` are the same. Under `torchrun`
or `accelerate launch` the processes share the users of every step; the run is the same but for rounding.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hyenarec.config import TrainConfig, to_dict
from hyenarec.data import Split, load_histories, split_histories
from hyenarec.evaluation.evaluate import Evaluation
from hyenarec.evaluation.report import (
    REPORT_FILE,
    beside_floors,
    device_name,
    evaluate_floors,
    make_report,
    text_table,
    write_report,
)
from hyenarec.models.pretrained import WEIGHTS_FILE, PretrainedModel
from hyenarec.models.registry import COUNTED
from hyenarec.train.checkpoint import CHECKPOINT_FILE, Progress
from hyenarec.train.run_log import read_log
from hyenarec.train.trainer import CHOICE, TrainingRun, begin_folder, evaluate_as_asked


@dataclass(frozen=True)
class TrainResult:
    """What a finished training gives.

    Attributes:
        model: the weights of the best validation, in evaluation mode.
        test: the one evaluation of these weights on the test targets.
        floors: the same evaluation of recommenders without training, by name; the main process has them.
        best_epoch: finished epochs at the best validation.
        best_score: validation NDCG@10 there.
        log: the records of `log.jsonl`, one an epoch.
    """

    model: PretrainedModel
    test: Evaluation
    floors: dict[str, Evaluation]
    best_epoch: int
    best_score: float
    log: list[dict[str, Any]]


def train(config: TrainConfig) -> TrainResult:
    """Trains a model, keeps the weights of the best validation, and evaluates those once on the test targets.

    A model that counts, markov or popularity, is counted instead; all that follows is the same.

    `config.output_dir` then holds the model (`config.json`, `model.safetensors`, `vocabulary.safetensors`),
    every figure and how it was made (`report.json`), the curves (`log.jsonl`, `tensorboard`), the settings
    (`train_config.json`) and the last checkpoint. Torch's random seed is set.

    Raises:
        ValueError: the data, the folder or the checkpoint do not fit the configuration.
        FloatingPointError: the loss became infinite or not a number; the message names the step.
        TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint is saved, and `resume` continues from it.
    """
    require_usable_folder(config)
    split = split_histories(load_histories(config.data, config.seed), config.data)
    config = with_catalogue(config, split.train.num_items)
    # Without `cpu`, accelerate takes the processes of a machine without GPUs for as many runs of one process.
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if cpu and config.precision == "fp16":
        raise ValueError("precision must be no or bf16 on a CPU, got 'fp16'")
    accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu)
    try:
        if config.model.name in COUNTED:
            return count(config, split, accelerator)
        run = TrainingRun(config, split, accelerator)
        run.train()
        return finish(run)
    finally:
        # Else this process's next run could not choose its own precision and device.
        AcceleratorState._reset_state(reset_partial_state=accelerator.num_processes == 1)


def finish(run: TrainingRun) -> TrainResult:
    """Reports the best weights of a training."""
    run.model.load_state_dict(run.best)
    run.model.eval()
    return conclude(run.config, run.split, run.model, run.progress, run.accelerator)


def count(config: TrainConfig, split: Split, accelerator: Accelerator) -> TrainResult:
    """Makes and reports a model that counts instead of learning.

    The settings of loss, optimiser, steps and epochs are unused. It counts the training events alone, which
    are all that the other models learn from. The floors of a report also count the events between those and
    the targets.
    """
    start = time.perf_counter()
    if accelerator.is_main_process:
        begin_folder(config)
    model = COUNTED[config.model.name].of(split.train, config.model).eval()
    validation = evaluate_as_asked(
        config, model, split.validation, f"{split.name} validation", distributed=accelerator.num_processes > 1
    )
    progress = Progress(best_score=validation.figures[CHOICE].mean)
    progress.wall_seconds = time.perf_counter() - start
    return conclude(config, split, model, progress, accelerator)


def conclude(
    config: TrainConfig, split: Split, model: PretrainedModel, progress: Progress, accelerator: Accelerator
) -> TrainResult:
    """Saves the model, evaluates it on the test targets, and reports the floors beside it."""
    folder, is_main = Path(config.output_dir), accelerator.is_main_process
    if is_main:
        model.save_pretrained(folder)
        split.train.vocabulary.save(folder)
    test = evaluate_as_asked(
        config, model, split.test, f"{split.name} test", distributed=accelerator.num_processes > 1
    )
    floors: dict[str, Evaluation] = {}
    if is_main:
        floors = evaluate_floors(
            split.train,
            split.test,
            max_len=test.max_len,
            exclude_history=test.exclude_history,
            split=test.split,
        )
        results = beside_floors(config.model, test, floors)
        written = make_report(
            results,
            leaks=split.leaks,
            config=to_dict(config),
            best_epoch=progress.best_epoch,
            best_validation={CHOICE: progress.best_score},
            epochs=progress.epoch,
            steps=progress.total_steps,
            wall_seconds=progress.wall_seconds,
            processes=accelerator.num_processes,
            device=device_name(accelerator.device),
        )
        write_report(folder / REPORT_FILE, written)
        print(text_table(results), split.leaks, f"saved in {folder}", sep="\n")
    accelerator.wait_for_everyone()
    return TrainResult(model, test, floors, progress.best_epoch, progress.best_score, read_log(folder))


def with_catalogue(config: TrainConfig, num_items: int) -> TrainConfig:
    """The configuration with the size of the data's catalogue."""
    asked = config.model.num_items
    if asked is not None and asked != num_items:
        raise ValueError(f"model.num_items must be {num_items} as in the data, or null, got {asked}")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_items=num_items))


def require_usable_folder(config: TrainConfig) -> None:
    """Refuses to write over another run without being told to."""
    folder = Path(config.output_dir)
    has_run = any((folder / name).exists() for name in (CHECKPOINT_FILE, WEIGHTS_FILE))
    if has_run and not (config.resume or config.overwrite):
        raise ValueError(
            f"output_dir must be a folder without a run, but {folder} has one: continue it with --resume, "
            "replace it with --overwrite, or choose another folder"
        )
