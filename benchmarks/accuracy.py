"""Trains a grid of data sets, models and seeds, and compares how well the models rank.

python benchmarks/accuracy.py run GRID --data FOLDER       trains what is not there yet
python benchmarks/accuracy.py table GRID                   validation figures, by which settings are chosen
python benchmarks/accuracy.py table GRID --test            test figures beside them, once models are chosen

A grid is a YAML file: `sets` and `models`, each a mapping of names to options of `hyenarec train` (those of a
model win, and may be mappings by set), `seeds`, and `reference`, the model that all others are compared with;
`only` limits a model to some sets. Paths of data are relative to FOLDER.

Each run leaves one JSON file in the output folder and is then done; a run that was interrupted goes on where
it stopped. Several such commands share a grid: each trains what no other one is training.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from paired import Difference, ndcg_of, pack_ranks, paired_difference
from report import machine, save

from hyenarec import cli
from hyenarec.config import TrainConfig, to_dict
from hyenarec.data import Targets, load_histories, split_histories
from hyenarec.evaluation.evaluate import Evaluation
from hyenarec.evaluation.report import REPORT_FILE
from hyenarec.train import TrainResult, train
from hyenarec.train.checkpoint import data_digest
from hyenarec.train.trainer import SELECTION_METRIC, evaluate_as_asked

Options = dict[str, Any]

WITHOUT_COUNTS = ", without counts"
"""Of the network alone, before anything is mixed in: another row from the same run."""


@dataclass(frozen=True)
class Run:
    """One training of the grid.

    Attributes:
        data: name of the data set.
        model: name of the model, which its options may describe further.
        seed: of the run.
        options: those of the set and the model.
    """

    data: str
    model: str
    seed: int
    options: Options

    @property
    def name(self) -> str:
        return f"{self.data}/{self.model}/seed-{self.seed}"

    def config(self, data: Path, folder: Path) -> TrainConfig:
        """The settings of the training, which writes to `folder`."""
        options = {**self.options, "data.path": str(data / self.options["data.path"]), "seed": self.seed}
        options |= {"output_dir": str(folder), "resume": True}
        return cli.train_config([f"--{name}={_word(value)}" for name, value in options.items()])


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def runs_of(grid: dict[str, Any]) -> list[Run]:
    """All runs of a grid: the first seed of every model first."""
    for model, options in grid["models"].items():
        only = (options or {}).get("only", [])
        if isinstance(only, str) or not set(only) <= grid["sets"].keys():
            raise ValueError(f"only of {model} must be a list of the grid's sets, got {only!r}")
    runs = []
    for seed in grid["seeds"]:
        for data, of_set in grid["sets"].items():
            for model, of_model in grid["models"].items():
                options = dict(of_model or {})
                if data in options.pop("only", grid["sets"]):
                    options = {name: _of_set(value, data) for name, value in options.items()}
                    runs.append(Run(data, model, seed, {**of_set, **options}))
    return runs


def _of_set(value: object, data: str) -> object:
    return value[data] if isinstance(value, dict) else value


# --- training ---


def run_all(runs: list[Run], data: Path, output: Path) -> int:
    """Trains every run that is neither done nor in another process's hands; returns how many failed."""
    failed = 0
    for run in runs:
        with only_here(output / f"{run.name}.lock") as ours:
            if not ours or is_done(run, output):
                continue
            try:
                save(output / f"{run.name}.json", train_one(run, data, output / run.name))
            except (ValueError, OSError, FloatingPointError, SystemExit) as error:
                # An option that does not exist has its own message, and ends as if it were a command.
                print(f"{run.name}: {error}", file=sys.stderr)
                failed += 1
            else:
                shutil.rmtree(output / run.name)
    return failed


@contextmanager
def only_here(path: Path) -> Iterator[bool]:
    """Whether this process has the lock of that file; the system frees it when a process ends, however."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_done(run: Run, output: Path) -> bool:
    """Whether the run's file is there.

    Raises:
        ValueError: it is, but the run had other options.
    """
    path = output / f"{run.name}.json"
    if not path.exists():
        return False
    options = json.loads(path.read_text())["options"]
    if options != run.options:
        raise ValueError(f"{path} must be of a run with {run.options}, got {options}: remove or rename it")
    return True


def train_one(run: Run, data: Path, folder: Path) -> dict[str, Any]:
    """Trains, and returns the content of the run's file."""
    print(f"== {run.name}", flush=True)
    result = train(run.config(data, folder))
    report = json.loads((folder / REPORT_FILE).read_text())
    on_gpu = result.config.device == "auto" and torch.cuda.is_available()
    return {
        "set": run.data,
        "model": run.model,
        "seed": run.seed,
        "options": run.options,
        **machine("cuda" if on_gpu else "cpu"),
        "seconds": round(report["wall_seconds"]),
        "settings": portable(to_dict(result.config), run),
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "best_epoch": result.best_epoch,
        "curve": [record["validation"][SELECTION_METRIC] for record in result.log if "validation" in record],
        **outcome(result),
    }


def portable(settings: dict[str, Any], run: Run) -> dict[str, Any]:
    """The settings without what belongs to the machine."""
    settings["data"]["path"] = run.options["data.path"]
    return {name: value for name, value in settings.items() if name not in ("output_dir", "resume")}


def outcome(result: TrainResult) -> dict[str, Any]:
    """Figures and ranks on the validation and the test targets, and those of the network without counts."""
    config, model = result.config, result.model
    histories = load_histories(config.data, config.seed)
    split = split_histories(histories, config.data, config.model.uses_time)

    def of(targets: Targets) -> dict[str, Any]:
        evaluation = evaluate_as_asked(config, model, targets, "targets", distributed=False)
        return {**figures(evaluation), "ranks": pack_ranks(evaluation.ranks)}

    outcome = {
        "targets": data_digest(split_histories(histories, config.data)),  # whether or not the time is used
        "validation": of(split.validation),
        "test": {**figures(result.test), "ranks": pack_ranks(result.test.ranks)},
        "reference_baselines": {name: figures(x) for name, x in result.reference_baselines.items()},
    }
    if getattr(model, "mixture", None) is not None:
        model.mixture = None
        outcome["without_counts"] = {"validation": of(split.validation), "test": of(split.test)}
    return outcome


def figures(evaluation: Evaluation) -> dict[str, float]:
    return {name: round(figure.mean, 5) for name, figure in evaluation.figures.items()}


# --- tables ---


def comparison(grid: dict[str, Any], output: Path) -> list[dict[str, Any]]:
    """A row for each set and model that has a finished run, compared with the reference on the same set."""
    done: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs_of(grid):
        if is_done(run, output):
            content = json.loads((output / f"{run.name}.json").read_text())
            done.setdefault((run.data, run.model), []).append(content)
            if alone := content.get("without_counts"):
                done.setdefault((run.data, f"{run.model}{WITHOUT_COUNTS}"), []).append({**content, **alone})
    rows = []
    for (data, model), runs in done.items():
        others = done.get((data, grid["reference"]), []) if model != grid["reference"] else []
        row = {
            "set": data,
            "model": model,
            "seeds": [run["seed"] for run in runs],
            "best_epoch": statistics.fmean(run["best_epoch"] for run in runs),
            "seconds": statistics.fmean(run["seconds"] for run in runs),
            "commits": sorted({run["commit"] for run in runs}),
            "counted": best_counted(runs[0]["reference_baselines"]),
        }
        rows.append({**row, **{part: summary(runs, others, part) for part in ("validation", "test")}})
    return sorted(rows, key=lambda row: list(grid["sets"]).index(row["set"]))


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def best_counted(baselines: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The reference baseline with the highest NDCG@10 on the test targets."""
    name = max(baselines, key=lambda name: baselines[name]["NDCG@10"])
    return {"name": name, "NDCG@10": baselines[name]["NDCG@10"]}


def summary(runs: list[dict[str, Any]], others: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """Means over the seeds, how far single runs deviate, and the difference in NDCG@10 to other runs."""
    values = [run[part]["NDCG@10"] for run in runs]
    return {
        "HR@10": statistics.fmean(run[part]["HR@10"] for run in runs),
        "NDCG@10": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "difference": dataclasses.asdict(difference(runs, others, part)) if others else None,
    }


def difference(runs: list[dict[str, Any]], others: list[dict[str, Any]], part: str) -> Difference:
    """The difference in NDCG@10, if all runs ranked the same targets."""
    if len({run["targets"] for run in (*runs, *others)}) > 1:
        raise ValueError(f"runs of {runs[0]['set']} must have the same data, got different ones")
    first, second = (ndcg_of([run[part]["ranks"] for run in group]) for group in (runs, others))
    return paired_difference(first, second)


def markdown(rows: list[dict[str, Any]], reference: str, *, test: bool) -> str:
    """The rows as a table: NDCG@10 of the validation and, if asked for, HR@10 and NDCG@10 of the test."""
    columns = ["set", "model", "seeds", "validation", f"- {reference}", "p"]
    columns += (
        ["test HR@10", "test NDCG@10", f"- {reference}", "p", "best of those that count"] if test else []
    )
    lines = [[*columns, "best epoch", "minutes"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        cells = [row["set"], row["model"], str(len(row["seeds"])), *_cells(row["validation"])]
        if test:
            counted = f"{row['counted']['NDCG@10']:.4f} {row['counted']['name']}"
            cells += [f"{row['test']['HR@10']:.4f}", *_cells(row["test"]), counted]
        lines.append([*cells, f"{row['best_epoch']:.0f}", f"{row['seconds'] / 60:.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(part: dict[str, Any]) -> list[str]:
    """NDCG@10, its difference to the reference with a 95% interval, and p."""
    mean = f"{part['NDCG@10']:.4f}"
    if part["deviation"] is not None:
        mean += f" ± {part['deviation']:.4f}"
    compared = part["difference"]
    if compared is None:
        return [mean, "", ""]
    return [mean, "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**compared), _p(compared["p"])]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("grid", type=Path)
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the data sets")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/accuracy"), help="folder of the runs' files"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each training")
    parser.add_argument("--only", default="", help="train only runs whose name (set/model/seed-N) holds this")
    parser.add_argument("--test", action="store_true", help="show test figures, too")
    parser.add_argument("--json", type=Path, help="write the table's content here, too")
    arguments = parser.parse_args()
    grid = yaml.safe_load(arguments.grid.read_text())
    try:
        if arguments.action == "run":
            torch.set_num_threads(arguments.threads)
            chosen = [run for run in runs_of(grid) if arguments.only in run.name]
            return min(run_all(chosen, arguments.data, arguments.output), 1)
        rows = comparison(grid, arguments.output)
    except ValueError as error:
        print(f"accuracy.py: {error}", file=sys.stderr)
        return 2
    print(markdown(rows, grid["reference"], test=arguments.test))
    if arguments.json is not None:
        save(arguments.json, {"grid": grid, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
