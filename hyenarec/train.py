"""Training conducted from the events to the reported score; each computation lives in the module of its name.

`hyenarec.train.train(config)`, `hyenarec train` and `python -m hyenarec.train` are the same. Under `torchrun`
or `accelerate launch` the processes share the users of every step; the run is the same but for rounding.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hyenarec.checkpoint import CHECKPOINT_FILE
from hyenarec.config import TrainConfig, to_dict
from hyenarec.data import load_histories, split_histories
from hyenarec.evaluate import Evaluation
from hyenarec.pretrained import WEIGHTS_FILE, PretrainedModel
from hyenarec.report import REPORT_FILE, evaluate_floors, make_report, text_table, write_report
from hyenarec.run_log import read_log
from hyenarec.training_run import CHOICE, TrainingRun


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
        run = TrainingRun(config, split, accelerator)
        run.train()
        return finish(run)
    finally:
        # Else this process's next run could not choose its own precision and device.
        AcceleratorState._reset_state(reset_partial_state=accelerator.num_processes == 1)


def finish(run: TrainingRun) -> TrainResult:
    """Saves the best weights, evaluates them on the test targets, and reports the floors beside them."""
    run.model.load_state_dict(run.best)
    run.model.eval()
    if run.is_main:
        run.model.save_pretrained(run.folder)
        run.split.train.vocabulary.save(run.folder)
    test = run.evaluate(run.split.test, "test")
    floors: dict[str, Evaluation] = {}
    if run.is_main:
        floors = evaluate_floors(
            run.split.train,
            run.split.test,
            max_len=test.max_len,
            exclude_history=test.exclude_history,
            split=test.split,
        )
        report(run, {run.config.model.title: test, **floors})
    run.accelerator.wait_for_everyone()
    progress = run.progress
    return TrainResult(
        run.model, test, floors, progress.best_epoch, progress.best_score, read_log(run.folder)
    )


def report(run: TrainingRun, results: dict[str, Evaluation]) -> None:
    """Writes `report.json` and prints its table."""
    written = make_report(
        results,
        leaks=run.split.leaks,
        config=to_dict(run.config),
        best_epoch=run.progress.best_epoch,
        best_validation={CHOICE: run.progress.best_score},
        epochs=run.progress.epoch,
        steps=run.progress.total_steps,
        wall_seconds=run.progress.wall_seconds,
        processes=run.processes,
        device=device_name(run.accelerator.device),
    )
    write_report(run.folder / REPORT_FILE, written)
    print(text_table(results), run.split.leaks, f"saved in {run.folder}", sep="\n")


def device_name(device: torch.device) -> str:
    """What a reader can compare with: the GPU's name, or the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


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


if __name__ == "__main__":
    from hyenarec.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
