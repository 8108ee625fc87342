"""Writes the tables of README.md, docs/accuracy.md and docs/results.md from benchmarks/results.

No figure is typed by hand.

python benchmarks/readme_results.py           rewrites what stands between the markers of these pages
python benchmarks/readme_results.py --check   changes nothing; exit status 1 if a page is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from accuracy import WITHOUT_COUNTS, comparison, markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GRIDS = ROOT / "benchmarks" / "grids"
BEGIN, END = "<!-- results: written by benchmarks/readme_results.py -->", "<!-- end of results -->"
FIGURES = ("HR@10", "NDCG@10", "MRR@10")
DIRECTIONS = ("forward", "forward + backward")
OPS = ("legendre_kernel", "short_conv", "fft_conv")
RATIOS = "how many times faster than {} / how many times as long as a copy of the same bytes."
COUNT_BASED = ("Markov", "Popularity")
SETS = {
    "ml1m": "MovieLens-1M",
    "video": "Amazon Video Games",
    "beauty": "Amazon Beauty",
    "toys": "Amazon Toys",
    "retail": "Online Retail",
    "foursquare": "Foursquare",
}
# A row of the runs before there was a recipe, its folder in benchmarks/results and the model's name there.
MODELS = [
    ("HyenaRec", "ml1m", "HyenaRec"),
    ("Hyena", "ml1m_hyena", "Hyena"),
    ("SASRec", "ml1m_sasrec", "SASRec"),
    ("GRU4Rec", "ml1m_gru4rec", "GRU4Rec"),
]
VARIANTS = [
    ("HyenaRec, sampled softmax", "ml1m_sampled", "HyenaRec"),
    ("HyenaRec, whole histories", "ml1m_whole", "HyenaRec"),
    ("Hyena, whole histories", "ml1m_whole_hyena", "Hyena"),
]

Report = dict[str, Any]


def load(name: str) -> Report:
    return json.loads((RESULTS / name).read_text())


def commit(run: Report) -> str:
    """The commit that a run was made from, and whether the tree differed from it."""
    name, changes, _ = run["commit"].partition("+changes")
    return name[:10] + (" with uncommitted changes" if changes else "")


def machine(run: Report) -> str:
    return f"({run['device']}, torch {run['torch']}, commit {commit(run)})"


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(columns)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figures_of(models: list[tuple[str, str, str]]) -> dict[str, list[dict[str, float]]]:
    """FIGURES of each row: first the models that learn, then those that count."""
    runs = [*models, *((name, "ml1m", name) for name in COUNT_BASED)]
    results = {row: load(f"{folder}/report.json")["results"][model] for row, folder, model in runs}
    return {row: [result["figures"][name] for name in FIGURES] for row, result in results.items()}


def protocol(report: Report) -> str:
    ours = report["results"]["HyenaRec"]
    return (
        f"MovieLens-1M, {ours['split']}, {ours['num_users']:,} users, all {ours['num_items']:,} items "
        f"ranked, history excluded, histories of up to {ours['max_len']} events, {report['epochs']} epochs"
    )


def ranking() -> str:
    """The README's ranking: a row a set, and below it one of the networks alone."""
    grid = yaml.safe_load((GRIDS / "recipe.yaml").read_text())
    rows: dict[str, list[list[str]]] = {name: [] for name in SETS}
    for suffix in ("", WITHOUT_COUNTS):
        reference = grid["reference"] + suffix
        found = comparison({**grid, "reference": reference}, RESULTS / "accuracy")
        of = {(row["set"], row["model"]): row for row in found}
        for name, title in SETS.items():
            cells = [ranking_cell(of.get((name, model + suffix))) for model in grid["models"]]
            counted = "{NDCG@10:.4f} {name}".format(**of[name, reference]["counted"])
            rows[name].append(["without counts", *cells, ""] if suffix else [title, *cells, counted])
    return (
        "**Ranking.** NDCG@10 of the next item among all, leave-one-out test, no option but the data and "
        "the model; in brackets the number of runs that a figure is the mean of. A star says that it differs "
        f"from {grid['reference']}'s (p < 0.05; paired by user, users and seeds are both samples).\n\n"
        f"{table(['', *grid['models'], 'best baseline'], (row for pair in rows.values() for row in pair))}"
    )


def ranking_cell(row: Report | None) -> str:
    """The mean over the seeds, whether it differs from the reference's, and the number of seeds."""
    if row is None:
        return "not run"
    difference = row["test"]["difference"]
    star = "\\*" if difference is not None and difference["p"] < 0.05 else ""
    return f"{row['test']['NDCG@10']:.4f}{star} ({len(row['seeds'])})"


def all_rankings() -> str:
    """Every run on MovieLens-1M, with intervals and commits."""
    report, sampled, whole = (load(f"{name}/report.json") for name in ("ml1m", "ml1m_sampled", "ml1m_whole"))
    models = [*MODELS, *VARIANTS]
    cell = "{mean:.4f} [{low:.4f}, {high:.4f}]"
    rows = [[row, *(cell.format(**figure) for figure in each)] for row, each in figures_of(models).items()]
    commits = [f"{row} ({commit(load(f'{folder}/report.json'))})" for row, folder, _ in models]
    return (
        f'{protocol(report)}, every model with its default settings unless its row says otherwise. "Sampled '
        f'softmax" draws {sampled["config"]["loss"]["negatives"]:,} negatives a step; "whole histories" have '
        f"up to {whole['results']['HyenaRec']['max_len']:,} events. One run each; the settings were chosen "
        "for HyenaRec. Markov and Popularity are the reference baselines of its report. In brackets: 95% "
        "bootstrap intervals. "
        f"HyenaRec's first run took {report['wall_seconds'] / 60:.0f} minutes on {report['device']}.\n\n"
        f"{table(['', *FIGURES], rows)}\n\n"
        f"{report['leaks']}\n\nCommits: {', '.join(commits)}."
    )


def training_step() -> str:
    """HyenaRec's mixer beside attention, its step beside SASRec's."""
    run = load("training_step_cpu.json")
    mixers = {figure["length"]: figure["times"]["median_ms"] for figure in run["attention"]}
    rows = []
    for figure in run["step"]["figures"]:
        times = mixers.get(figure["length"])
        ratio = "" if times is None else f"{times['attention, 2 heads'] / times['hyena_mixer']:.1f}"
        speeds = [figure[model]["events"] / figure[model]["seconds"] for model in ("hyenarec", "sasrec")]
        cells = [f"{figure['length']:,}", ratio, *(f"{speed:,.0f}" for speed in speeds)]
        rows.append([*cells, f"{figure['ratio']:.2f}", f"{figure['limit']:.2f}"])
    columns = ["L", "attention / mixer", "HyenaRec, events/s", "SASRec, events/s"]
    return (
        "**Training step against attention**, on a CPU, float32, D = 64 "
        f"{machine(run)}: causal `scaled_dot_product_attention` with 2 heads over `hyena_mixer`, forward + "
        f"backward; then a whole step with 2 blocks and the softmax over {run['step']['items']:,} items. The "
        "limit is what the ratio before it would be if HyenaRec's mixers took no time.\n\n"
        f"{table([*columns, 'SASRec / HyenaRec, time', 'limit'], rows)}"
    )


def epoch() -> str:
    """An epoch of MovieLens-1M beside the same model in plain torch."""
    run = load("training_step_cpu.json")
    seconds = run["epoch"]["seconds"]
    return (
        f"On a CPU {machine(run)} an epoch of MovieLens-1M, {run['epoch']['events']:,} events in windows of "
        f"up to 200, takes {seconds['ours']:.1f} s. The same model and steps in plain torch (except for the "
        "fused norms), on padded batches with `torch.fft` and `cross_entropy`, take "
        f"{seconds['plain']:.1f} s. The two take turns step by step."
    )


def scan_rows(run: Report) -> dict[tuple[int, int, int], list[str]]:
    """The cells of each number of coefficients, length and number of events."""
    rows: dict[tuple[int, int, int], dict[str, str]] = {}
    for figure in run["speed"]:
        row = rows.setdefault((figure["num_coeffs"], figure["length"], figure["events"]), {})
        row[figure["direction"]] = f"{figure['plain_over_ours']:.1f} / {figure['ours_over_copy']:.1f}"
    return {key: [cells[direction] for direction in DIRECTIONS] for key, cells in rows.items()}


def scan() -> str:
    """The README's rows of the scan: the default 17 coefficients, the larger number of events."""
    run = load("legendre_conv_cpu.json")
    rows = [
        [f"{length:,}", *cells]
        for (num_coeffs, length, events), cells in scan_rows(run).items()
        if num_coeffs == 17 and events >= 131_000
    ]
    return (
        "**The scan.** `legendre_conv` with gates and skip, 17 coefficients, 131,000 events in sequences of "
        f"length L, on a CPU, float32, D = 64 {machine(run)}: "
        f"{RATIOS.format('the same function in `torch.fft`')}\n\n"
        f"{table(['L', *DIRECTIONS], rows)}"
    )


def all_scans() -> str:
    """legendre_conv at every size."""
    run = load("legendre_conv_cpu.json")
    rows = [
        [f"{num_coeffs}", f"{length:,}", f"{events:,}", *cells]
        for (num_coeffs, length, events), cells in scan_rows(run).items()
    ]
    return (
        f"With gates and skip, on a CPU, float32, D = 64 {machine(run)}: "
        f"{RATIOS.format('the same function in `torch.fft`')}\n\n"
        f"{table(['N', 'L', 'events', *DIRECTIONS], rows)}"
    )


def ops(name: str, device: str) -> str:
    """Each operator against the plain formulation in torch and a copy of the same bytes, at every size."""
    if not (RESULTS / name).exists():
        return f"On a {device}: not yet run."
    run = load(name)
    columns = [(op, way) for op in OPS for way in ("forward", "backward")]
    rows: dict[tuple[str, int, int], dict[tuple[str, str], str]] = {}
    for figure in run["figures"]:
        row = rows.setdefault((figure["dtype"], figure["length"], figure["channels"]), {})
        cell = f"{figure['plain_over_ours']:.1f} / {figure['ours_over_copy']:.1f}"
        row[figure["op"], figure["direction"]] = cell
    body = [[*map(str, size), *(cells.get(column, "") for column in columns)] for size, cells in rows.items()]
    return (
        f"On a {device} {machine(run)}: {RATIOS.format('plain torch')}\n\n"
        f"{table(['dtype', 'L', 'D', *map(' '.join, columns)], body)}"
    )


def accuracy(name: str, title: str) -> str:
    """The finished runs of a grid: validation, by which settings are chosen, and test beside it."""
    grid = yaml.safe_load((GRIDS / f"{name}.yaml").read_text())
    rows = comparison(grid, RESULTS / "accuracy")
    commits = sorted({commit({"commit": name}) for row in rows for name in row["commits"]})
    rows_table = markdown(rows, grid["reference"], test=True)
    return f"## {title}\n\n{rows_table}\n\nCommits: {', '.join(commits)}."


def pages() -> dict[Path, list[str]]:
    """What stands between the markers of each page."""
    return {
        ROOT / "README.md": [ranking(), training_step(), scan()],
        ROOT / "docs" / "accuracy.md": [
            accuracy("recipe", "The recipe, without any option"),
            accuracy("time", "The time of the question"),
            accuracy("lag_bias", "The bias of the latest items"),
            accuracy("lookahead", "The next three items as targets"),
            accuracy("search", "The search of a recipe, for HyenaRec and SASRec"),
            accuracy("changes", "One change at a time, with the recipe"),
        ],
        ROOT / "docs" / "results.md": [
            "## Ranking on MovieLens-1M",
            all_rankings(),
            "## An epoch beside plain torch",
            epoch(),
            "## `legendre_conv`",
            all_scans(),
            "## `legendre_kernel`, `short_conv`, `fft_conv`",
            ops("ops_cpu.json", "CPU"),
            ops("ops_cuda.json", "GPU"),
        ],
    }


def filled(page: Path, parts: list[str]) -> str:
    """The page's text with `parts` between its markers."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{page.name} must hold the markers {BEGIN} and {END}, but it does not")
    return "\n\n".join([f"{before}{BEGIN}", *parts, f"{END}{after}"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the pages' tables from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if a page is out of date")
    check = parser.parse_args().check
    written = {page: filled(page, parts) for page, parts in pages().items()}
    outdated = [page for page, text in written.items() if text != page.read_text()]
    if check:
        return int(bool(outdated))
    for page in outdated:
        page.write_text(written[page])
    return 0


if __name__ == "__main__":
    sys.exit(main())
