"""Figures beside reference baselines, for people (plain text, Markdown) and for programs (one JSON file)."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyenarec._extension import __version__
from hyenarec.config import RecommenderConfig
from hyenarec.data import Histories, Targets
from hyenarec.data.histories import offsets_of
from hyenarec.evaluation.evaluate import Evaluation, evaluate
from hyenarec.files import write_atomically
from hyenarec.models.counting import CountingModel, Markov, Personal, PersonalMarkov, Popularity

REPORT_FILE = "report.json"

Bounds = Mapping[str, Mapping[str, float]]
"""What the data allow, where that is known: expected figures by name, by the name of the bound."""


def evaluate_reference_baselines(
    train: Histories,
    targets: Targets,
    *,
    max_len: int,
    exclude_history: bool,
    split: str,
    ks: tuple[int, ...] = (10,),
) -> dict[str, Evaluation]:
    """Evaluates models that count on the same targets by the same protocol.

    They are first-order Markov counts, popularity and, unless the history is excluded, the user's own items
    by frequency and recency, alone and mixed with Markov counts.

    Everything known before the targets of the evaluated users is counted, which includes their validation
    events when the test targets are ranked, as in published baselines, and the training events of all others.
    The targets themselves are never counted.

    Args:
        train: the histories the model learns from.
        targets: as `evaluate` takes them.
        max_len: as `evaluate` takes it.
        exclude_history: as `evaluate` takes it.
        split: as `evaluate` takes it.
        ks: as `evaluate` takes them.

    Returns:
        The evaluations by name.
    """
    known = _known_before(train, targets)
    baselines: list[type[CountingModel]] = [Markov, Popularity]
    if not exclude_history:
        baselines += [Personal, PersonalMarkov]
    return {
        baseline.config_type.title: evaluate(
            baseline.of(known),
            targets,
            max_len=max_len,
            exclude_history=exclude_history,
            split=split,
            ks=ks,
        )
        for baseline in baselines
    }


def beside_reference_baselines(
    model: RecommenderConfig, result: Evaluation, baselines: Mapping[str, Evaluation]
) -> dict[str, Evaluation]:
    """A model's evaluation, then the baselines', by name; the model replaces a baseline of its own name."""
    others = {name: evaluation for name, evaluation in baselines.items() if name != model.title}
    return {model.title: result, **others}


def _known_before(train: Histories, targets: Targets) -> Histories:
    """`train`, with the longer histories of the evaluated users up to their targets."""
    evaluated = np.zeros(train.num_users, dtype=bool)
    evaluated[targets.users] = True
    others = train.select(~evaluated)
    return Histories(
        offsets=offsets_of(np.concatenate([others.lengths, np.diff(targets.offsets)])),
        items=np.concatenate([others.items, targets.items]),
        timestamps=None,
        user_ids=np.arange(len(others) + len(targets)),
        vocabulary=train.vocabulary,
    )


def text_table(results: Mapping[str, Evaluation], bounds: Bounds | None = None) -> str:
    """The figures with 95% intervals, one recommender a line, below their common protocol.

    Args:
        results: the recommenders, by name.
        bounds: further lines, of expected figures without intervals.
    """
    protocol, rows = _protocol(results), _cells(results)
    for name, values in (bounds or {}).items():
        rows.append([name, *(f"{values[figure]:.4f}" for figure in rows[0][1:])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([protocol, *lines])


def markdown_table(results: Mapping[str, Evaluation]) -> str:
    """The same as a Markdown table, above a line with the protocol."""
    protocol = _protocol(results)
    header, *rows = ["| " + " | ".join(row) + " |" for row in _cells(results)]
    rule = "|" + "---|" * (header.count("|") - 1)
    return "\n".join([header, rule, *rows, "", f"95% bootstrap intervals over users; {protocol}."])


def make_report(
    results: Mapping[str, Evaluation], *, leaks: str, config: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """Everything needed to judge and reproduce a result, ready for JSON.

    Args:
        results: the model and the reference baselines, by name; all by one protocol.
        leaks: what the split leaks, in a sentence.
        config: the whole configuration of the run, model included.
        more: further entries, such as the best epoch.
    """
    return {
        "protocol": _protocol(results),
        "leaks": leaks,
        "results": {name: result.to_dict() for name, result in results.items()},
        **more,
        "config": dict(config),
        "versions": {
            "hyenarec": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "commit": git_commit(),
    }


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the report as JSON; the file is never half written.

    Raises:
        ValueError: if the report holds a number that JSON lacks, NaN or an infinity.
    """
    write_atomically(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def device_name(device: torch.device) -> str:
    """The hardware behind a figure: the GPU's name, or the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"


def git_commit() -> str | None:
    """The commit of this package's source tree, with `-dirty` after local changes; None without one."""
    source = Path(__file__).resolve()
    # An installed package may lie within another repository, which then does not track this file.
    if _git("ls-files", "--error-unmatch", source.name, folder=source.parent) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", folder=source.parent)


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cells(results: Mapping[str, Evaluation]) -> list[list[str]]:
    names = list(next(iter(results.values())).figures)
    rows = [[name, *(str(result.figures[figure]) for figure in names)] for name, result in results.items()]
    return [["", *names], *rows]


def _protocol(results: Mapping[str, Evaluation]) -> str:
    """The common protocol of all results; figures by different protocols don't belong in one table."""
    if not results:
        raise ValueError("results must hold at least one evaluation, got none")
    protocols = {result.protocol: name for name, result in results.items()}
    if len(protocols) > 1:
        named = "; ".join(f"{name}: {protocol}" for protocol, name in protocols.items())
        raise ValueError(f"results must share one protocol, got {named}")
    return next(iter(protocols))
