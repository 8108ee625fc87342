"""Writes the README's results from the files in benchmarks/results, so that no figure is typed by hand.

python benchmarks/readme_results.py           rewrites what stands between the README's markers
python benchmarks/readme_results.py --check   only says whether it is up to date, by exit status
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: written by benchmarks/readme_results.py -->", "<!-- end of results -->"
NOT_RUN = "not yet run"
OTHER_MODELS = ("ml1m_hyena", "ml1m_sasrec", "ml1m_gru4rec")
WHOLE_HISTORIES = {"ml1m_whole": "HyenaRec", "ml1m_whole_hyena": "Hyena"}
OPS = ("legendre_kernel", "short_conv", "fft_conv")


def load(name: str) -> dict[str, Any] | None:
    """A results file, or None where there has been no run."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def ranking_table() -> list[str]:
    """MovieLens-1M: ours, other models and the reference baselines, from the reports that training wrote."""
    report = load("ml1m/report.json")
    if report is None:
        return [f"MovieLens-1M: {NOT_RUN}."]
    results = {"HyenaRec": report["results"]["HyenaRec"]}
    sampled = load("ml1m_sampled/report.json")
    if sampled is not None:
        negatives = sampled["config"]["loss"]["negatives"]
        results[f"HyenaRec, {negatives:,} sampled negatives"] = sampled["results"]["HyenaRec"]
    for folder, model in WHOLE_HISTORIES.items():
        whole = load(f"{folder}/report.json")
        if whole is not None:
            result = whole["results"][model]
            results[f"{model}, histories of up to {result['max_len']:,} events"] = result
    for folder in OTHER_MODELS:
        other = load(f"{folder}/report.json")
        results |= {} if other is None else other["results"]
    figures = ["HR@10", "NDCG@10", "MRR@10"]
    any_result = next(iter(results.values()))
    rows = [
        f"MovieLens-1M, {any_result['split']}, {any_result['num_users']:,} users, all "
        f"{any_result['num_items']:,} items ranked, history excluded, 95% bootstrap intervals; "
        f"every model with its default settings, {report['epochs']} epochs, HyenaRec's in "
        f"{report['wall_seconds'] / 60:.0f} minutes on {report['device']}:",
        "",
        "| | " + " | ".join(figures) + " |",
        "|---|" + "---|" * len(figures),
    ]
    for name, result in results.items():
        cells = [
            "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**result["figures"][figure]) for figure in figures
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*rows, "", report["leaks"]]


def ops_table(name: str, title: str) -> list[str]:
    """Each operator against the plain formulation in torch and a copy of the same bytes, at every size."""
    run = load(name)
    if run is None:
        return [f"{title}: {NOT_RUN}."]
    rows = [
        f"{title} ({run['device']}, torch {run['torch']}, commit {run['commit'][:10]}): times faster "
        "than plain torch / how many times as long as a copy of the same bytes.",
        "",
        "| dtype | L | D | "
        + " | ".join(f"{op} {way}" for op in OPS for way in ("forward", "backward"))
        + " |",
        "|---|---|---|" + "---|" * 2 * len(OPS),
    ]
    table: dict[tuple[str, int, int], dict[tuple[str, str], str]] = {}
    for figure in run["figures"]:
        cell = f"{figure['plain_over_ours']:.1f} / {figure['ours_over_copy']:.1f}"
        row = table.setdefault((figure["dtype"], figure["length"], figure["channels"]), {})
        row[figure["op"], figure["direction"]] = cell
    for (dtype, length, channels), cells in table.items():
        columns = [cells.get((op, way), "") for op in OPS for way in ("forward", "backward")]
        rows.append(f"| {dtype} | {length} | {channels} | " + " | ".join(columns) + " |")
    return rows


def scan_table() -> list[str]:
    """legendre_conv with gates and skip against the same function in torch.fft, and a copy of its bytes."""
    run = load("legendre_conv_cpu.json")
    title = "`legendre_conv` on a CPU"
    if run is None:
        return [f"{title}: {NOT_RUN}."]
    directions = ("forward", "forward + backward")
    rows = [
        f"{title} ({run['device']}, float32, D = 64, torch {run['torch']}, commit {run['commit'][:10]}): "
        "times faster than the same function in `torch.fft` / how many times as long as a copy of the same "
        "bytes.",
        "",
        "| N | L | events | " + " | ".join(directions) + " |",
        "|---|---|---|" + "---|" * len(directions),
    ]
    table: dict[tuple[int, int, int], dict[str, str]] = {}
    for figure in run["speed"]:
        row = table.setdefault((figure["num_coeffs"], figure["length"], figure["events"]), {})
        row[figure["direction"]] = f"{figure['plain_over_ours']:.1f} / {figure['ours_over_copy']:.1f}"
    for (num_coeffs, length, events), cells in table.items():
        columns = " | ".join(cells[direction] for direction in directions)
        rows.append(f"| {num_coeffs} | {length:,} | {events:,} | {columns} |")
    return rows


def step_table() -> list[str]:
    """HyenaRec's mixer beside attention, its step beside SASRec's, and an epoch beside plain torch."""
    run = load("training_step_cpu.json")
    title = "Training on a CPU"
    if run is None:
        return [f"{title}: {NOT_RUN}."]
    rows = [
        f"{title} ({run['device']}, float32, D = 64, torch {run['torch']}, commit {run['commit'][:10]}): "
        "causal `scaled_dot_product_attention` with 2 heads over `hyena_mixer`, forward + backward; then a "
        f"whole step with 2 blocks and the softmax over {run['step']['items']:,} items. The last column is "
        "what the one before it would be if HyenaRec's mixers took no time.",
        "",
        "| L | attention / mixer | HyenaRec, events/s | SASRec, events/s | SASRec / HyenaRec, time | limit |",
        "|---|---|---|---|---|---|",
    ]
    mixers = {figure["length"]: figure["times"]["median_ms"] for figure in run["attention"]}
    for figure in run["step"]["figures"]:
        times = mixers.get(figure["length"])
        cells = [f"{figure['length']:,}"]
        cells += ["" if times is None else f"{times['attention, 2 heads'] / times['hyena_mixer']:.1f}"]
        costs = (figure["hyenarec"], figure["sasrec"])
        cells += [f"{cost['events'] / cost['seconds']:,.0f}" for cost in costs]
        cells += [f"{figure['ratio']:.2f}", f"{figure['limit']:.2f}"]
        rows.append("| " + " | ".join(cells) + " |")
    epoch = run["epoch"]
    seconds = epoch["seconds"]
    return [
        *rows,
        "",
        f"One epoch of MovieLens-1M there, {epoch['events']:,} events in windows of up to 200: "
        f"{seconds['ours']:.1f} s. The same model and steps in plain torch (but for our fused norms), in "
        f"turns with it, on padded batches with `torch.fft` and `cross_entropy`: {seconds['plain']:.1f} s.",
    ]


def section() -> str:
    """Everything between the markers."""
    parts = [
        ranking_table(),
        step_table(),
        scan_table(),
        ops_table("ops_cpu.json", "Operators on a CPU"),
        ops_table("ops_cuda.json", "Operators on a GPU"),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the README's results from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if the README is out of date")
    check = parser.parse_args().check
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"README.md must hold the markers {BEGIN} and {END}, but it does not")
    written = f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}"
    if check:
        return int(written != text)
    README.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
