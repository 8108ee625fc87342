"""The training loop: steps, epochs, validations and checkpoints of one run, in one process or several."""

from __future__ import annotations

import math
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from hyenarec.config import TrainConfig, to_dict
from hyenarec.config.auto import settled, with_fixed
from hyenarec.data import Batch, Split, Targets, TrainingBatches
from hyenarec.evaluation.evaluate import Evaluation, evaluate
from hyenarec.evaluation.scoring import Recommender
from hyenarec.models.registry import make_model
from hyenarec.train.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    Progress,
    data_digest,
    load_checkpoint,
    pack_optimizer,
    random_state,
    reads_the_same,
    require_same_config,
    require_same_data,
    restore_random_state,
    save_checkpoint,
    unpack_optimizer,
)
from hyenarec.train.interrupt import Interrupt, TrainingInterrupted
from hyenarec.train.item_rows import TABLE, ItemRows
from hyenarec.train.loss import NextItemLoss, Sample
from hyenarec.train.negatives import Negatives
from hyenarec.train.optimizer import learning_rate, make_optimizer
from hyenarec.train.run_folder import begin_folder, located, write_settings
from hyenarec.train.run_log import RunLog
from hyenarec.transfer import Readback, to_device

SELECTION_METRIC = "NDCG@10"
"""The validation figure that selects the weights and decides when to stop."""

STEPS_BETWEEN_POINTS = 10
"""Steps between two points of the loss curve in TensorBoard."""


class TrainingRun:
    """The state of one run and the loop that advances it.

    Each process of a distributed run has one, and all make the same decisions at the same step; only the main
    process writes files and prints.

    Args:
        config: the settings, including `model.num_items`; what is still open gets its fixed value.
        split: training histories and evaluation targets.
        accelerator: device, precision and processes.

    Attributes:
        model: the current weights, not wrapped.
        progress: where the run stands.
        best: the weights of the best validation so far, on the CPU.
    """

    def __init__(self, config: TrainConfig, split: Split, accelerator: Accelerator) -> None:
        config = with_fixed(config)
        self.config, self.split, self.accelerator = config, split, accelerator
        self.folder = Path(config.output_dir)
        self._data = data_digest(split)
        self.is_main, self.processes = accelerator.is_main_process, accelerator.num_processes
        self.batches = TrainingBatches(
            split.train,
            settled(config.model.max_len),
            settled(config.batch_events),
            config.seed,
            settled(config.data.windows),
            rank=accelerator.process_index,
            world_size=self.processes,
            with_times=config.model.uses_time,
        )
        torch.manual_seed(config.seed)
        self.model = make_model(config.model)
        optimizer = make_optimizer(self.model.to(accelerator.device), config.optimizer)
        loss = NextItemLoss(self.model, config.loss)
        self._negatives: Negatives | None = None
        if config.loss.is_sampled:
            self._negatives = Negatives(
                split.train, config.loss, config.seed, accelerator.process_index, self.processes
            )
            table = [f"model.{name}" for name in TABLE]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, table)  # type: ignore[no-untyped-call]
        # The batches are not prepared: ours are equally many on every process, and resume exactly.
        self.loss, self.optimizer = accelerator.prepare(loss, optimizer)
        torch.manual_seed(config.seed + 1 + accelerator.process_index)  # each process has its own dropout
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self._interrupt = Interrupt()
        self._stopping = False
        self._unread: tuple[Readback, int] | None = None
        self._log: RunLog | None = None
        self._clock = time.perf_counter()
        if config.resume:
            self._resume()
        elif self.is_main:
            begin_folder(self.config)

    def train(self) -> None:
        """Trains until the last epoch or early stopping.

        Raises:
            FloatingPointError: the loss became infinite or not a number; the message names the step.
            TrainingInterrupted: SIGINT or SIGTERM came; the last step is finished and a checkpoint saved.
        """
        progress = self.progress
        with self._open_log() as self._log, self._interrupt:
            while progress.epoch < settled(self.config.epochs) and not self._out_of_patience():
                self._train_epoch()
                record = self._finish_epoch()
                if self._log is not None:
                    self._log.epoch(record)
                self._say(self._describe(record))
                self._save()
                asked = torch.tensor(float(self._interrupt.number), device=self.accelerator.device)
                if self._over_processes(asked).item() > 0:
                    self._leave()
        self._log = None
        if not self.best:  # resumed for no further epochs, and none of the earlier ones was validated
            self._keep_if_best(self.evaluate(self.split.validation, "validation"))

    def evaluate(self, targets: Targets, name: str) -> Evaluation:
        """Evaluates the current weights; `name` says what the targets are."""
        title = f"{self.split.name} {name}"
        return evaluate_as_asked(self.config, self.model, targets, title, distributed=self.processes > 1)

    # --- steps ---

    def _train_epoch(self) -> None:
        """Takes the remaining steps of the current epoch."""
        progress, steps = self.progress, self.batches.steps_per_epoch
        title = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        quiet = None if self.is_main else True  # None: no bar where there is no terminal
        self.loss.train()
        clock = time.perf_counter()
        with tqdm(total=steps, initial=progress.step, desc=title, disable=quiet, leave=False) as bar:
            for batch in self.batches.batches(progress.epoch, progress.step):
                events = self.batches.global_targets(progress.epoch, progress.step)
                outcome = Readback(self._step(batch, events))
                self._read()
                self._unread = outcome, events
                progress.step += 1
                progress.total_steps += 1
                progress.epoch_seconds += time.perf_counter() - clock
                bar.update()
                if self._stopping or self._checkpoint_is_due():
                    self._save()
                if self._stopping:
                    self._leave()
                clock = time.perf_counter()
            self._read()

    def _step(self, batch: Batch, events: int) -> Tensor:
        """One step of the optimiser.

        Args:
            batch: this process's share of the step.
            events: real targets of the step, over all processes.

        Returns:
            `[2]`, summed over all processes: the loss, and a number above 0 if one of them was asked to stop.
        """
        sample = self._sample(events, len(batch.targets))
        batch = batch.to(self.accelerator.device)
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(batch.items, batch.offsets, batch.targets, sample, batch.times)
        # Gradients are averaged over the processes, whose shares of the events differ.
        self.accelerator.backward(loss * (self.processes / events))
        trained: dict[str, Tensor] = dict(self.model.named_parameters())
        if sample is not None:
            self._finish_gradients(sample.rows)
            trained |= sample.rows.parameters
        if self.config.optimizer.gradient_clip is not None:
            self.accelerator.clip_grad_norm_(trained.values(), self.config.optimizer.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = loss.detach()
        return self._over_processes(torch.stack([loss, torch.full_like(loss, self._interrupt.number)]))

    def _sample(self, events: int, own_events: int) -> Sample | None:
        """What a sampled loss needs for the current step; every process has the same rows.

        Args:
            events: real targets of the step, over all processes.
            own_events: those of this process.
        """
        if self._negatives is None:
            return None
        epoch, step, device = self.progress.epoch, self.progress.step, self.accelerator.device
        drawn = self._negatives.draw(epoch, step, events)
        ids = torch.from_numpy(np.union1d(self.batches.step_items(epoch, step), drawn))
        log_q = self._negatives.log_q(ids)
        return Sample(
            rows=ItemRows(self.model, to_device(ids, device)),
            negatives=to_device(self._negatives.share(drawn, own_events), device),
            log_q=None if log_q is None else to_device(log_q, device),
        )

    def _finish_gradients(self, rows: ItemRows) -> None:
        """Averages the rows' gradients over the processes and hands them to the item table."""
        if self.processes > 1:
            for leaf in (rows.weight, rows.bias):
                leaf.grad = self.accelerator.reduce(leaf.grad, "mean")
        rows.give_gradients(self.model)

    def _read(self) -> None:
        """Reads the last step's result one step late, so that a GPU computes while the next is prepared."""
        if self._unread is None:
            return
        progress, (outcome, events) = self.progress, self._unread
        loss, asked = outcome.tolist()
        self._unread = None
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"loss must stay finite, got {loss} at step {progress.total_steps} "
                f"(epoch {progress.epoch + 1}): lower optimizer.learning_rate or optimizer.gradient_clip"
            )
        progress.loss_sum += loss
        progress.events += events
        self._stopping = self._stopping or asked > 0
        if self._log is not None and progress.total_steps % STEPS_BETWEEN_POINTS == 0:
            self._log.scalar("train/loss_of_step", loss / events, progress.total_steps)

    def _learning_rate(self) -> float:
        total = settled(self.config.epochs) * self.batches.steps_per_epoch
        return learning_rate(self.progress.total_steps, total, self.config.optimizer)

    def _over_processes(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        return values if self.processes == 1 else self.accelerator.reduce(values, "sum")

    # --- validation ---

    def _finish_epoch(self) -> dict[str, Any]:
        """Validates if it is due, and returns the epoch's record for the log."""
        progress, config = self.progress, self.config
        record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "step": progress.total_steps,
            "loss": progress.loss_sum / progress.events,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "events_per_second": progress.events / progress.epoch_seconds,
        }
        progress.epoch += 1
        progress.step, progress.loss_sum, progress.events, progress.epoch_seconds = 0, 0.0, 0, 0.0
        if progress.epoch % config.evaluate_every == 0 or progress.epoch == config.epochs:
            validation = self.evaluate(self.split.validation, "validation")
            record["validation"] = {name: figure.mean for name, figure in validation.figures.items()}
            self._keep_if_best(validation)
        self._count_time()
        record["wall_seconds"] = progress.wall_seconds
        return record

    def _keep_if_best(self, validation: Evaluation) -> None:
        progress, score = self.progress, validation.figures[SELECTION_METRIC].mean
        progress.validated_epoch = progress.epoch
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch
            weights = self.model.state_dict()
            self.best = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}

    def _out_of_patience(self) -> bool:
        patience = settled(self.config.patience)
        return patience is not None and self.progress.validated_epoch - self.progress.best_epoch >= patience

    # --- the run on disk ---

    def _checkpoint_is_due(self) -> bool:
        """Whether a checkpoint is due within the epoch; its end always has one, after the validation."""
        every, progress = self.config.checkpoint_every, self.progress
        within = progress.step < self.batches.steps_per_epoch
        return every is not None and progress.total_steps % every == 0 and within

    def _save(self) -> None:
        """Writes the checkpoint with the random state of every process; all wait until it is written."""
        self._read()
        self._count_time()
        scaler = self.accelerator.scaler
        self.progress.loss_scale = {} if scaler is None else scaler.state_dict()
        random = {name: self._of_all_processes(state) for name, state in random_state().items()}
        if self.is_main:
            save_checkpoint(
                self.folder / CHECKPOINT_FILE,
                Checkpoint(
                    config=to_dict(located(self.config)),
                    progress=self.progress,
                    data=self._data,
                    model=self.model.state_dict(),
                    best=self.best,
                    optimizer=pack_optimizer(self.optimizer),
                    random=random,
                ),
            )
        self.accelerator.wait_for_everyone()

    def _of_all_processes(self, state: Tensor) -> Tensor:
        """`[n]` of each process as `[processes, n]`; NCCL needs it on the device."""
        if self.processes == 1:
            return state[None]
        rows: Tensor = self.accelerator.gather(state.to(self.accelerator.device)[None])
        return rows

    def _resume(self) -> None:
        """Continues from the folder's checkpoint; without one the run starts at the beginning."""
        path = self.folder / CHECKPOINT_FILE
        if not path.exists():
            self._say(f"{self.folder} has no checkpoint yet: starting at the beginning")
            if self.is_main:
                begin_folder(self.config)
            return
        saved = load_checkpoint(path)
        current = to_dict(located(self.config))
        if reads_the_same(saved.config, current):  # other data may have led to other settings
            require_same_data(saved.data, self._data, self.config.data.path)
        require_same_config(saved.config, current)
        require_same_data(saved.data, self._data, self.config.data.path)
        processes = len(saved.random["cpu"])
        if processes != self.processes:
            raise ValueError(f"processes must be {processes} to resume this run, got {self.processes}")
        self.model.load_state_dict(saved.model)
        unpack_optimizer(self.optimizer, saved.optimizer)
        self.progress, self.best = saved.progress, saved.best
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved.progress.loss_scale)
        mine = self.accelerator.process_index
        restore_random_state({name: states[mine] for name, states in saved.random.items()})
        if self.is_main:
            write_settings(self.config)  # it may have other epochs now
        at = f"after {self.progress.total_steps} steps, in epoch {self.progress.epoch + 1}"
        self._say(f"resumed {self.folder} {at}")

    def _leave(self) -> NoReturn:
        """Ends the run after a signal; its checkpoint has been written."""
        where = f"after {self.progress.total_steps} steps"
        self._say(f"stopped {where}; --resume (instead of --overwrite) continues the run in {self.folder}")
        raise TrainingInterrupted(self._interrupt.number or signal.SIGTERM)

    # --- what the user sees ---

    def _open_log(self) -> RunLog | nullcontext[None]:
        """The log; only the main process has one."""
        if not self.is_main:
            return nullcontext()
        return RunLog(self.folder, self.progress.epoch, self.progress.total_steps)

    def _describe(self, record: dict[str, Any]) -> str:
        """An epoch's record in one line."""
        parts = [f"epoch {record['epoch']}/{self.config.epochs}", f"loss {record['loss']:.4f}"]
        if "validation" in record:
            best = f"best {self.progress.best_score:.4f} in epoch {self.progress.best_epoch}"
            score = record["validation"][SELECTION_METRIC]
            parts.append(f"validation {SELECTION_METRIC} {score:.4f} ({best})")
        parts += [f"{record['events_per_second']:,.0f} events/s", f"{record['wall_seconds']:,.0f} s"]
        return "  ".join(parts)

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.progress.wall_seconds += now - self._clock
        self._clock = now

    def _say(self, text: str) -> None:
        if self.is_main:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


def evaluate_as_asked(
    config: TrainConfig, model: Recommender, targets: Targets, title: str, *, distributed: bool
) -> Evaluation:
    """Evaluates a model by the protocol in the settings; `title` says what the targets are."""
    return evaluate(
        model,
        targets,
        max_len=settled(config.model.max_len),
        exclude_history=settled(config.data.exclude_history),
        split=title,
        distributed=distributed,
    )
