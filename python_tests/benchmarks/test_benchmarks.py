"""What the benchmarks compare is the same function, and what they call is all there is."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hyenarec import ops
from hyenarec.config import ModelConfig
from hyenarec.data import Batch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("convolutions")


def test_formulations_agree_forward_and_backward(convolutions: ModuleType) -> None:
    torch.manual_seed(0)
    sequences = convolutions.Sequences.equal(100, 200)
    convolution, mixer = convolutions.Convolution(sequences, 5), convolutions.Mixer(sequences, 5)
    for calls in (
        (convolution.legendre_conv(), convolution.fft_conv(), convolution.plain()),
        (mixer.hyena_mixer(), mixer.separate()),
    ):
        for direction in convolutions.DIRECTIONS:
            results = [call.run(direction)() for call in calls]
            for result in results[1:]:
                torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-4)


def test_movielens_lengths_are_like_movielens(convolutions: ModuleType) -> None:
    lengths = torch.tensor(convolutions.movielens_lengths(2277, 1 << 20).lengths)
    assert lengths.sum() <= 1 << 20
    assert lengths.min() == 20
    assert lengths.max() == 2277
    assert lengths.median() == pytest.approx(96, rel=0.05)
    assert lengths.double().mean() == pytest.approx(165.6, rel=0.05)
    assert max(convolutions.movielens_lengths(200, 1 << 15).lengths) == 200


def test_compute_sanitizer_sees_every_operator() -> None:
    calls = (FOLDER / "small_cases.py").read_text()
    public = [name for name, value in vars(ops).items() if inspect.isfunction(value)]
    assert "legendre_step" in public
    assert [name for name in public if f"ops.{name}(" not in calls] == []


def test_losses_are_the_same_function(convolutions: ModuleType) -> None:
    problem = importlib.import_module("linear_cross_entropy").Problem(300, 50)
    expected = problem.run(problem.plain)()
    functions = [problem.ours]
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        functions += [problem.chunked(None), problem.chunked(128)]
    for function in functions:
        torch.testing.assert_close(problem.run(function)(), expected, rtol=1e-4, atol=1e-6)
    problem.products()()


@pytest.mark.parametrize("branch_type", [torch.float32, torch.bfloat16])
def test_norms_are_the_same_function(convolutions: ModuleType, branch_type: torch.dtype) -> None:
    problem = importlib.import_module("dropout_add_layer_norm").Problem(30, 24, 0.0, branch_type)
    for run in (problem.forward, problem.forward_backward):
        torch.testing.assert_close(run("ours"), run("parts"), rtol=1e-4, atol=1e-4)


def test_plain_model_is_the_same_function(convolutions: ModuleType) -> None:
    script = importlib.import_module("training_step")
    torch.manual_seed(0)
    trainings = script.both_trainings(ModelConfig(num_items=30, max_len=12, dim=8, dropout=0.0))
    with torch.no_grad():
        trainings["ours"].loss.model.items.weight[1:] *= 20  # at first all scores are near 0
    script.copy_parameters(trainings["ours"].loss, trainings["plain"].loss)
    items = torch.randint(1, 31, (2, 20))
    batch = Batch(items[0], torch.tensor([0, 12, 13, 20]), items[1], torch.arange(3))
    losses, gradients = [], []
    for training in trainings.values():
        losses.append(training.loss(*training.prepare(batch)))
        gradients.append(torch.autograd.grad(losses[-1], [*training.loss.parameters()]))
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)
