"""Measures training and evaluation on a large catalogue and a small one: does a step's cost depend on V?

    python benchmarks/catalogue.py [--only training memory] [--repetitions 15] [--output figures.json]

training: the default model and batches, sampled softmax with 1,000 shared negatives, on generated histories
    whose items are drawn uniformly from 10,000 or from 1,000,000 items; in the large catalogue hardly any two
    items of a step are the same. The two runs take turns step by step, each step exactly as in training.
    Bound: events per second of the large catalogue over those of the small one.
memory: five steps, the ranks of 1,000 targets and the ten best items of 1,000 histories, among all items. For
    each: a process's peak resident memory beyond the model and the optimiser's moments, and the time, both
    measured once in a process of their own. Bounds: for the large catalogue, against the size of all scores,
    which evaluation without tiles would hold.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from bounds import Section, at_least, at_most, run_sections
from peak_memory import mebibytes
from timing import timed

from hyenarec.config import LossConfig, ModelConfig, TrainConfig
from hyenarec.data import Histories, Vocabulary, leave_one_out
from hyenarec.evaluation.evaluate import evaluate
from hyenarec.evaluation.recommend import recommend
from hyenarec.memory import reset_peak, resident, run_in_subprocess
from hyenarec.train.trainer import TrainingRun

SMALL, LARGE = 10_000, 1_000_000
USERS, LENGTH = 1_000, 202  # two events are held out, the others are a window of 199 with their targets
BLOCK = 256  # users that evaluation scores at one time


def histories_of(num_items: int) -> Histories:
    generator = np.random.default_rng(0)
    return Histories(
        offsets=np.arange(USERS + 1, dtype=np.int64) * LENGTH,
        items=generator.integers(1, num_items + 1, USERS * LENGTH).astype(np.int32),
        timestamps=None,
        user_ids=np.arange(USERS),
        vocabulary=Vocabulary(np.arange(num_items)),
    )


def make_run(num_items: int, folder: str) -> TrainingRun:
    config = TrainConfig(
        model=ModelConfig(num_items=num_items),
        loss=LossConfig(name="sampled_softmax", negatives=1_000),
        device="cpu",
        output_dir=f"{folder}/{num_items}",
    )
    run = TrainingRun(config, leave_one_out(histories_of(num_items)), Accelerator(cpu=True))
    run.loss.train()
    return run


def take_step(run: TrainingRun) -> None:
    progress, batches = run.progress, run.batches
    if progress.step == batches.steps_per_epoch:
        progress.epoch, progress.step = progress.epoch + 1, 0
    batch = next(batches.batches(progress.epoch, progress.step))
    run._step(batch, len(batch.targets))
    progress.step += 1
    progress.total_steps += 1


def training(repetitions: int) -> Section:
    with tempfile.TemporaryDirectory() as folder:
        runs = {str(num_items): make_run(num_items, folder) for num_items in (SMALL, LARGE)}
        times = timed({name: partial(take_step, run) for name, run in runs.items()}, repetitions)
        batches = runs[str(SMALL)].batches
        events = batches.num_windows * (LENGTH - 3) / batches.steps_per_epoch
    rates = {name: 1e3 * events / ms for name, ms in times.median_ms.items()}
    for name, rate in rates.items():
        print(f"V = {int(name):>9,}: {rate:,.0f} events/s")
    places = str(SMALL), str(LARGE)
    ratio, fastest = [times.ratio(*places)], [times.fastest_ratio(*places)]
    bound = at_least("events per second, 1,000,000 items over 10,000", ratio, 0.7, fastest)
    return Section(asdict(times) | {"events_a_step": events, "events_per_second": rates}, [bound])


def peak_of(function: Callable[[], object]) -> dict[str, float]:
    """Seconds of a call, and MiB of peak resident memory beyond what there was before."""
    reset_peak()
    before, start = resident("VmRSS"), time.perf_counter()
    function()
    return {"seconds": time.perf_counter() - start, "peak_mib": resident("VmHWM") - before}


def measure_memory(num_items: int) -> dict[str, dict[str, float]]:
    """To be called once in a process."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(num_items, folder)
        take_step(run)
        for state in run.optimizer.state.values():
            for tensor in state.values():
                tensor.add_(0)  # of the moments only the rows met so far are in memory
        split, model, max_len = run.split, run.model, run.config.model.max_len
        options = {"max_len": max_len, "exclude_history": True, "batch_size": BLOCK}
        table = {"table_mib": mebibytes([model.items.weight, model.item_bias])}
        return {
            "five steps": peak_of(lambda: [take_step(run) for _ in range(5)]) | table,
            "evaluate": peak_of(lambda: evaluate(model, split.test, **options)),
            "recommend": peak_of(lambda: recommend(model, split.train, **options)),
        }


def memory(_: int) -> Section:
    figures = {}
    for num_items in (SMALL, LARGE):
        case = {"items": num_items, "threads": torch.get_num_threads()}
        figures[num_items] = run_in_subprocess([__file__], case)
        for name, figure in figures[num_items].items():
            print(f"V = {num_items:>9,}: {name}: {figure['seconds']:.2f} s, {figure['peak_mib']:,.0f} MiB")
    scores = BLOCK * LARGE * 4 / 2**20
    print(f"a block's scores without tiles: {scores:,.0f} MiB")
    peaks = {name: [figure["peak_mib"]] for name, figure in figures[LARGE].items()}
    bounds = [at_most(f"MiB of {name}, 1,000,000 items", peak, scores / 2) for name, peak in peaks.items()]
    return Section({"by_items": figures, "scores_mib": scores}, bounds)


SECTIONS = {"training": training, "memory": memory}


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        case = json.loads(sys.argv[1])
        torch.set_num_threads(case["threads"])
        print(json.dumps(measure_memory(case["items"])))
    else:
        sys.exit(run_sections("Measures training on a large catalogue; see this file's head.", SECTIONS))
