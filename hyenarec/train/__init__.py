"""Training from the events to the reported score; the other modules here compute, this one conducts.

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

from hyenarec.config import SYNTHETIC, SequentialConfig, TrainConfig, to_dict
from hyenarec.config.auto import settled
from hyenarec.data import Histories, Split, load_histories, split_histories, synthetic_bounds
from hyenarec.data.time_checks import require_timestamps, span
from hyenarec.evaluation.evaluate import Evaluation
from hyenarec.evaluation.report import (
    REPORT_FILE,
    Bounds,
    beside_reference_baselines,
    device_name,
    evaluate_reference_baselines,
    make_report,
    text_table,
    write_report,
)
from hyenarec.models.pretrained import PretrainedModel
from hyenarec.models.registry import COUNT_BASED
from hyenarec.train.beginning import fit_start
from hyenarec.train.checkpoint import CHECKPOINT_FILE, Progress, with_settings_of
from hyenarec.train.mixture import fit_mixture
from hyenarec.train.recipe import complete
from hyenarec.train.run_folder import begin_folder, require_usable_folder
from hyenarec.train.run_log import read_log
from hyenarec.train.trainer import SELECTION_METRIC, TrainingRun, evaluate_as_asked


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished training run.

    Attributes:
        model: the weights of the best validation, with what is counted mixed in, in evaluation mode.
        test: the single evaluation of these weights on the test targets.
        reference_baselines: the same evaluation of models that count, by name; empty in all processes but the
            main one.
        best_epoch: finished epochs at the best validation.
        best_score: validation NDCG@10 there, without counts.
        mixed_score: the same with counts, whose weights were fitted to the other half of the targets each
            time; None if nothing is mixed in.
        log: the records of `log.jsonl`, one an epoch.
        config: the settings, with everything that was left to the data.
    """

    model: PretrainedModel
    test: Evaluation
    reference_baselines: dict[str, Evaluation]
    best_epoch: int
    best_score: float
    mixed_score: float | None
    log: list[dict[str, Any]]
    config: TrainConfig

    @property
    def floors(self) -> dict[str, Evaluation]:
        """The old name of `reference_baselines`."""
        return self.reference_baselines


def train(config: TrainConfig) -> TrainResult:
    """Trains a model, keeps the weights of the best validation, mixes in counts, and tests it once.

    The models `markov` and `popularity` are counted instead of trained; everything else is the same.

    Afterwards `config.output_dir` holds the model (`config.json`, `model.safetensors`,
    `vocabulary.safetensors`), every figure and how it was computed (`report.json`), the learning curves
    (`log.jsonl`, `tensorboard`), the settings (`train_config.json`) and the last checkpoint. This sets
    torch's random seed.

    Raises:
        ValueError: the data, the folder or the checkpoint do not match the configuration.
        FloatingPointError: the loss became infinite or not a number; the message names the step.
        TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint is saved, and `resume` continues from it.
    """
    require_usable_folder(config)
    histories = load_histories(config.data, config.seed)
    if isinstance(config.model, SequentialConfig) and config.model.time_unit is not None:
        require_timestamps(histories.timestamps, config.model.time_unit, config.data.path)
    split = split_histories(histories, config.data, config.model.uses_time)
    config = with_catalogue(config, split.train.num_items)
    # On a machine without GPUs accelerate would otherwise treat each process as a run of its own.
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if cpu and config.precision == "fp16":
        raise ValueError("precision must be no or bf16 on a CPU, got 'fp16'")
    accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu)
    try:
        if config.resume:
            config = with_settings_of(config, Path(config.output_dir) / CHECKPOINT_FILE)
        config, choices = complete(config, split.train)
        if accelerator.is_main_process and choices:
            print("chosen from the training data:", *choices, sep="\n  ", flush=True)
        if accelerator.is_main_process and config.model.uses_time:
            print(f"events run {span_of(config, histories)}", flush=True)
        if config.model.name in COUNT_BASED:
            return count(config, split, accelerator)
        run = TrainingRun(config, split, accelerator)
        run.train()
        return finish(run)
    finally:
        # Otherwise the next run in this process could not choose its own precision and device.
        AcceleratorState._reset_state(reset_partial_state=accelerator.num_processes == 1)


def finish(run: TrainingRun) -> TrainResult:
    """Restores the weights of the best validation, adds what is fitted afterwards, and reports the model."""
    model, progress = run.model, run.progress
    model.load_state_dict(run.best)
    model.eval()
    fit_start(model, run.split.train)
    mixed = fit_mixture(
        model,
        run.split.train,
        run.split.validation,
        max_len=settled(run.config.model.max_len),
        exclude_history=settled(run.config.data.exclude_history),
        plain=progress.best_score,
        evaluate=lambda targets: run.evaluate(targets, "validation"),
        metric=SELECTION_METRIC,
    )
    if run.is_main and mixed is not None:
        print(f"counts mixed in: validation {SELECTION_METRIC} {progress.best_score:.4f} -> {mixed:.4f}")
    elif run.is_main and model.new_mixture() is not None:
        print(
            f"counts left out: with them validation {SELECTION_METRIC} is not above {progress.best_score:.4f}"
        )
    return conclude(run.config, run.split, model, progress, run.accelerator, mixed)


def count(config: TrainConfig, split: Split, accelerator: Accelerator) -> TrainResult:
    """Makes and reports a model that counts instead of learning.

    The settings of the loss, optimiser, steps and epochs are unused. Only the training events are counted,
    the same that other models learn from; the reference baselines of a report also count the events between
    those and the targets.
    """
    start = time.perf_counter()
    if accelerator.is_main_process:
        begin_folder(config)
    model = COUNT_BASED[config.model.name].of(split.train, config.model).eval()
    validation = evaluate_as_asked(
        config, model, split.validation, f"{split.name} validation", distributed=accelerator.num_processes > 1
    )
    progress = Progress(best_score=validation.figures[SELECTION_METRIC].mean)
    progress.wall_seconds = time.perf_counter() - start
    return conclude(config, split, model, progress, accelerator)


def conclude(
    config: TrainConfig,
    split: Split,
    model: PretrainedModel,
    progress: Progress,
    accelerator: Accelerator,
    mixed: float | None = None,
) -> TrainResult:
    """Saves the model, evaluates it on the test targets, and reports it beside the reference baselines.

    `mixed` is the validation figure with what is counted, which `progress` doesn't know of.
    """
    folder, is_main = Path(config.output_dir), accelerator.is_main_process
    if is_main:
        model.save_pretrained(folder)
        split.train.vocabulary.save(folder)
    test = evaluate_as_asked(
        config, model, split.test, f"{split.name} test", distributed=accelerator.num_processes > 1
    )
    baselines: dict[str, Evaluation] = {}
    if is_main:
        baselines = evaluate_reference_baselines(
            split.train,
            split.test,
            max_len=test.max_len,
            exclude_history=test.exclude_history,
            split=test.split,
        )
        results = beside_reference_baselines(config.model, test, baselines)
        bounds = known_bounds(config)
        written = make_report(
            results,
            leaks=split.leaks,
            config=to_dict(config),
            best_epoch=progress.best_epoch,
            best_validation={SELECTION_METRIC: progress.best_score},
            mixed_validation=None if mixed is None else {SELECTION_METRIC: mixed},
            epochs=progress.epoch,
            steps=progress.total_steps,
            wall_seconds=progress.wall_seconds,
            processes=accelerator.num_processes,
            device=device_name(accelerator.device),
            bounds=bounds,
        )
        write_report(folder / REPORT_FILE, written)
        print(text_table(results, bounds), split.leaks, f"saved in {folder}", sep="\n")
    accelerator.wait_for_everyone()
    best = (progress.best_epoch, progress.best_score, mixed)
    return TrainResult(model, test, baselines, *best, read_log(folder), config)


def span_of(config: TrainConfig, histories: Histories) -> str:
    """What the timestamps are taken for, in words."""
    assert isinstance(config.model, SequentialConfig) and config.model.time_unit is not None
    timestamps = histories.timestamps
    assert timestamps is not None
    return span(int(timestamps.min()), int(timestamps.max()), config.model.time_unit)


def known_bounds(config: TrainConfig) -> Bounds:
    """What the test targets allow, of the generated histories as they are; empty for any other data."""
    data = config.data
    as_generated = data.path == SYNTHETIC and data.min_user_events == data.min_item_events == 1
    if not as_generated or data.split != "leave-one-out" or settled(data.exclude_history):
        return {}
    return synthetic_bounds(data.synthetic_users, config.seed)


def with_catalogue(config: TrainConfig, num_items: int) -> TrainConfig:
    """The configuration, with `model.num_items` taken from the data."""
    asked = config.model.num_items
    if asked is not None and asked != num_items:
        raise ValueError(f"model.num_items must be {num_items} as in the data, or null, got {asked}")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_items=num_items))
