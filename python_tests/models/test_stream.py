"""A stream's scores against those of the batch path, event by event."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from devices import needs_gpu
from torch import Tensor

from hyenarec.config import ModelConfig
from hyenarec.models.hyenarec import HyenaRec

DEEP = ModelConfig(num_items=60, dim=24, num_blocks=4, max_len=300, num_coeffs=17)
SMALL = dataclasses.replace(DEEP, dim=6, num_blocks=2, max_len=40, num_coeffs=5)


def make_model(config: ModelConfig, **changes: object) -> HyenaRec:
    torch.manual_seed(0)
    model = HyenaRec(dataclasses.replace(config, **changes))
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias or norm hides behind its initial 0 or 1
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def history(length: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, DEEP.num_items + 1, (length,), generator=generator).tolist()


def batch_scores(model: HyenaRec, items: list[int]) -> Tensor:
    """`[len(items), V]`: row t as `HyenaRec.score` gives it for the first t + 1 items."""
    with torch.no_grad():
        return torch.addmm(model.item_bias, model(torch.tensor([items]))[0], model.item_weight.t())


def stream_scores(model: HyenaRec, items: list[int]) -> Tensor:
    stream = model.stream()
    rows = []
    for item in items:
        stream.append(item)
        rows.append(stream.scores())
    return torch.stack(rows)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"order": 3},
        {"decay": False},
        {"norm": "pre"},
        {"num_coeffs": 33, "short_conv_width": 1},
        {"num_coeffs": 9, "short_conv_width": 8},
        {"num_coeffs": 1, "order": 4},
    ],
    ids=str,
)
def test_equals_the_batch_at_every_event(changes: dict[str, object]) -> None:
    """A whole history through four blocks, up to the horizon."""
    model = make_model(DEEP, **changes)
    items = history(DEEP.max_len)
    assert error(stream_scores(model, items), batch_scores(model, items)) < 1e-5


def test_equals_score_for_every_prefix() -> None:
    """`HyenaRec.score` itself, in float64."""
    model = make_model(SMALL).double()
    items = history(40)
    scores = stream_scores(model, items)
    for length in range(1, 41):
        prefix = torch.tensor(items[:length])
        expected = model.score(prefix, torch.tensor([0, length]))[0]
        torch.testing.assert_close(scores[length - 1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("max_len", [1, 2, 16, 17, 33])
def test_horizons_that_end_with_a_chunk_and_beside_it(max_len: int) -> None:
    model = make_model(SMALL, max_len=max_len)
    items = history(max_len)
    assert error(stream_scores(model, items), batch_scores(model, items)) < 1e-5


def test_many_events_at_once() -> None:
    model = make_model(DEEP, order=3)
    items = history(300)
    expected = batch_scores(model, items)
    stream = model.stream()
    for first, last in [(0, 1), (1, 3), (3, 90), (90, 90), (90, 299), (299, 300)]:
        stream.extend(items[first:last])
        assert len(stream) == last
        assert error(stream.scores(), expected[last - 1]) < 1e-5


def test_streams_and_copies_do_not_know_each_other() -> None:
    model = make_model(SMALL)
    items, others = history(30), history(30, seed=2)
    stream, other = model.stream(), model.stream()
    stream.extend(items[:20])
    other.extend(others[:20])
    copy = stream.copy()
    for item, another in zip(items[20:], others[20:], strict=True):
        stream.append(item)
        other.append(another)
        copy.append(another)
    assert error(stream.scores(), batch_scores(model, items)[-1]) < 1e-5
    assert error(other.scores(), batch_scores(model, others)[-1]) < 1e-5
    assert error(copy.scores(), batch_scores(model, items[:20] + others[20:])[-1]) < 1e-5


def test_dropout_is_off_and_the_mode_stays() -> None:
    model = make_model(SMALL, dropout=0.5)
    items = history(10)
    expected = batch_scores(model, items)
    model.train()
    scores = stream_scores(model, items)
    assert model.training
    assert not scores.requires_grad
    assert error(scores, expected) < 1e-5


@pytest.mark.parametrize("order", [2, 3])
def test_bytes_are_those_of_its_formula_at_any_length(order: int) -> None:
    """num_blocks ((order - 1)(N + C) + (order + 1)(W - 1)) D + D numbers, C = 32 for N = 17."""
    stream = make_model(DEEP, order=order).stream()
    numbers = 4 * ((order - 1) * (17 + 32) + (order + 1) * 3) * 24 + 24
    for count in (0, 1, 100):
        stream.extend(history(count))
        assert stream.nbytes == 4 * numbers


def test_takes_any_integer() -> None:
    model = make_model(SMALL)
    stream = model.stream()
    stream.extend(np.array([3, 5]))
    stream.append(np.int32(7))
    stream.append(torch.tensor(9))
    assert error(stream.scores(), batch_scores(model, [3, 5, 7, 9])[-1]) < 1e-5


def test_wrong_events_change_nothing() -> None:
    model = make_model(SMALL)
    stream = model.stream()
    with pytest.raises(ValueError, match="at least one event before it has scores, got none"):
        stream.scores()
    items = history(39)
    stream.extend(items)
    for wrong in (0, 61, -1, 2.0, "7", None):
        with pytest.raises(ValueError, match=f"item must be an integer in 1..V = 1..60, got {wrong!r}"):
            stream.append(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at most max_len = 40 events, got 41: start a new one"):
        stream.extend([1, 2])
    with pytest.raises(ValueError, match="got 0"):
        stream.extend([1, 0])
    stream.append(7)
    assert len(stream) == 40
    assert error(stream.scores(), batch_scores(model, [*items, 7])[-1]) < 1e-5
    with pytest.raises(ValueError, match=r"at most max_len = 40 events, got 41"):
        stream.append(1)


def test_scores_can_be_masked_in_place() -> None:
    model = make_model(SMALL)
    items = history(10)
    stream = model.stream()
    stream.extend(items)
    scores = stream.scores()
    scores[torch.tensor(items) - 1] = -torch.inf
    assert 1 + int(scores.argmax()) not in items
    assert error(stream.scores(), batch_scores(model, items)[-1]) < 1e-5  # the mask stays outside


def test_an_interrupted_stream_refuses_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two blocks, of which one has taken the event and the other has not."""
    model = make_model(SMALL)
    stream = model.stream()
    stream.extend([1, 2])
    copy = stream.copy()
    with monkeypatch.context() as patch:
        patch.setattr(stream._blocks[1], "_mix", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stream.append(3)
    for use in (lambda: stream.append(3), stream.scores, stream.copy):
        with pytest.raises(RuntimeError, match="was interrupted while it took an event: make another one"):
            use()
    copy.append(3)
    assert error(copy.scores(), batch_scores(model, [1, 2, 3])[-1]) < 1e-5


def interrupt(*_: object) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kernel", ["mlp", "free"])
def test_other_kernels_cannot_be_streamed(kernel: str) -> None:
    with pytest.raises(ValueError, match=f"with kernel 'legendre', got '{kernel}': only polynomials"):
        make_model(SMALL, kernel=kernel).stream()


@needs_gpu
@pytest.mark.parametrize("order", [2, 3])
def test_on_a_gpu(order: int) -> None:
    model = make_model(DEEP, order=order)
    items = history(300)
    expected = batch_scores(model, items)
    assert error(stream_scores(model.cuda(), items).cpu(), expected) < 1e-5
