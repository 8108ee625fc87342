"""`hyenarec bench train` on tiny settings, and what its parts add up to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hyenarec import bench, cli
from hyenarec.bench import PARTS, Clock, Cost, Hooks, Step, peak_memory, table
from hyenarec.config import LEARNED_NAMES, BenchConfig
from hyenarec.models.registry import COUNT_BASED, LEARNED

TINY = BenchConfig(batch_events=64, num_items=20, dim=8, repetitions=2, device="cpu")


def cost(model: str, seconds: float, mixer: float) -> Cost:
    parts = dict.fromkeys(PARTS, 0.0) | {"mixer": mixer, "other": seconds - mixer}
    return Cost(model, 200, 1000, seconds, 12.3, parts)


def test_every_model_that_learns_is_measured() -> None:
    assert BenchConfig().models == LEARNED_NAMES == tuple(LEARNED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["markov"]}, "models must be of 'hyenarec', 'sasrec', 'gru4rec', 'hyena', got 'markov'"),
        ({"models": []}, r"models must be at least one of .*, got \[\]"),
        ({"lengths": [200, 0]}, "lengths must be an integer of at least 1, got 0"),
        ({"repetitions": 0}, "repetitions must be an integer of at least 1, got 0"),
        ({"batch_events": 0}, "batch_events must be an integer of at least 1, got 0"),
        ({"precision": "fp16"}, "precision must be one of 'no', 'bf16', got 'fp16'"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    assert "markov" in COUNT_BASED
    with pytest.raises(ValueError, match=message):
        BenchConfig(**settings)


def test_the_command_measures_every_model_and_writes_the_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "peak_memory", lambda *case: 1.0)  # a process each takes seconds
    output = tmp_path / "costs.json"
    words = "bench train --lengths [8,40] --batch_events 64 --num_items 20 --dim 8 --repetitions 1 --output"
    assert cli.main([*words.split(), str(output), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "L = 8, 64 events a step" in printed and "L = 40, 40 events a step" in printed
    found = json.loads(output.read_text())
    assert found["config"]["num_items"] == 20 and found["torch"] == torch.__version__
    assert [(c["model"], c["length"], c["events"]) for c in found["costs"]] == [
        (name, length, events) for length, events in ((8, 64), (40, 40)) for name in LEARNED
    ]
    for each in found["costs"]:
        assert each["seconds"] > 0 and list(each["parts"]) == list(PARTS)
        assert all(seconds > 0 for part, seconds in each["parts"].items() if part not in ("ffn", "other"))
        assert (each["parts"]["ffn"] > 0) == (each["model"] != "gru4rec")


@pytest.mark.parametrize(
    ("device", "has_gpu", "events"),
    [("auto", False, 16384), ("cpu", True, 16384), ("auto", True, 131072)],
)
def test_a_gpu_gets_larger_steps_unless_they_are_given(
    monkeypatch: pytest.MonkeyPatch, device: Any, has_gpu: bool, events: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert bench.events_of_a_step(BenchConfig(device=device)) == events
    assert bench.events_of_a_step(BenchConfig(device=device, batch_events=64)) == 64


@pytest.mark.parametrize("name", LEARNED)
def test_the_parts_are_those_of_one_step_and_leave_it_as_it_was(name: str) -> None:
    hooked, plain = Step(TINY, name, 16), Step(TINY, name, 16)
    calls: list[str] = []

    class Counted(Clock):
        def now(self) -> float:
            calls.append("now")
            return float(len(calls))

    torch.manual_seed(1)
    with Hooks(hooked, Counted(torch.device("cpu"))) as hooks:
        parts = hooks.seconds()
    torch.manual_seed(1)
    plain()
    assert all(map(torch.equal, hooked.model.parameters(), plain.model.parameters()))
    assert not any(module._forward_hooks or module._backward_hooks for module in hooked.model.modules())
    # One tick a moment: each span, forward and backward, is one, and what lies between two spans is other.
    blocks = 1 if name == "gru4rec" else 2
    expected = {"mixer": 2 * blocks, "ffn": 2 * blocks if blocks == 2 else 0, "loss": 2, "optimizer": 1}
    assert {part: parts[part] for part in expected} == expected
    assert sum(parts.values()) == len(calls) - 1


@pytest.mark.slow
def test_peak_memory_is_that_of_this_package_in_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hyenarec").mkdir()
    (tmp_path / "hyenarec" / "__init__.py").write_text("raise ImportError('another package')")
    monkeypatch.chdir(tmp_path)
    assert peak_memory(TINY, "sasrec", 8) > 0


@pytest.mark.slow
def test_peak_memory_grows_with_the_step() -> None:
    peaks = [
        peak_memory(BenchConfig(batch_events=events, num_items=1000, device="cpu"), "sasrec", 50)
        for events in (50, 5000)
    ]
    activations = 5000 * 64 * 4 / 2**20
    assert peaks[1] - peaks[0] > 10 * activations


def test_the_table_has_the_ratio_and_its_limit() -> None:
    lines = table([cost("hyenarec", 0.2, 0.05), cost("sasrec", 0.3, 0.15)]).splitlines()
    assert lines[0] == "L = 200, 1,000 events a step"
    assert lines[1].split()[:4] == ["events/s", "peak", "MiB", "ms"]
    assert lines[2].split() == [
        "HyenaRec",
        "5,000",
        "12",
        "200.0",
        "50.0",
        "0.0",
        "0.0",
        "0.0",
        "150.0",
        "1.00",
        "1.33",
    ]
    assert lines[3].split() == [
        "SASRec",
        "3,333",
        "12",
        "300.0",
        "150.0",
        "0.0",
        "0.0",
        "0.0",
        "150.0",
        "1.50",
        "2.00",
    ]
    assert "HyenaRec" not in table([cost("sasrec", 0.3, 0.15)])


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(bench, "measure", None)
    assert cli.main(["bench", "train", "--plot", "costs.png"]) == 2
    assert capsys.readouterr().err == "hyenarec: plot needs matplotlib: pip install 'hyenarec[plot]'\n"


def test_the_plot_has_a_line_for_each_model(tmp_path: Path) -> None:
    bench.plot([cost("hyenarec", 0.2, 0.05), cost("sasrec", 0.3, 0.15)], tmp_path / "costs.svg")
    drawn = (tmp_path / "costs.svg").read_text()
    assert "HyenaRec" in drawn and "SASRec" in drawn
