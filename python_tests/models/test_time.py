"""Time as an input: what moments mean, batch against padding and stream, and questions at any moment."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from devices import needs_gpu
from torch import Tensor

from hyenarec.config import GRU4RecConfig, HyenaConfig, ModelConfig, SASRecConfig, SequentialConfig
from hyenarec.data.times import DAY, WEEK, Times, in_seconds
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.registry import load_model, make_model
from hyenarec.models.sequential import SequentialModel
from hyenarec.models.time import GAPS, Moment, seconds_before

V = 12
SHAPE = {"num_items": V, "dim": 8, "max_len": 40, "time_unit": "minute"}
COUNTED = {"repeats": True, "own_followers": True, "followers": True, "repeats_by_time": True}
CONFIG = ModelConfig(num_blocks=2, num_coeffs=5, **SHAPE, **COUNTED)
LEARNED = [
    dataclasses.replace(CONFIG, norm="post"),
    dataclasses.replace(CONFIG, norm="pre"),
    SASRecConfig(**SHAPE),
    GRU4RecConfig(**SHAPE),
    HyenaConfig(**SHAPE),
]
LENGTHS = [1, 7, 40, 2, 13]


def model_of(config: SequentialConfig = CONFIG) -> SequentialModel:
    """A model with any weights, and with a mixture of any weights if it counts."""
    torch.manual_seed(0)
    model = make_model(config).double().eval()
    model.mixture = model.new_mixture()
    for weights in model.mixture.each_weights() if model.mixture is not None else ():
        weights.weight.copy_(torch.rand_like(weights.weight) * 30)
        weights.shift.normal_()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def histories(seed: int = 0) -> tuple[Tensor, Tensor, Times]:
    """Packed histories of `LENGTHS` events, with gaps of no time up to weeks, in minutes."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    items = torch.randint(1, V + 1, (int(offsets[-1]),), generator=generator)
    gaps = (torch.rand(len(items) + len(LENGTHS), generator=generator) * 10).exp().long() - 1
    moments, asked = [], []
    for length, row in zip(LENGTHS, gaps.split([length + 1 for length in LENGTHS]), strict=True):
        times = row.cumsum(0) - 5000
        moments.append(times[:length])
        asked.append(times[length])
    return items, offsets, Times(torch.cat(moments), torch.stack(asked))


def rows_of(items: Tensor, offsets: Tensor, times: Times) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Items, moments and question of each history."""
    bounds = itertools.pairwise(offsets.tolist())
    return [(items[a:b], times.events[a:b], at) for (a, b), at in zip(bounds, times.asked, strict=True)]


def test_what_a_moment_means() -> None:
    """Rows that say which ones were chosen, against calendar and logarithm in plain Python."""
    moment = Moment(1)
    with torch.no_grad():
        moment.gap.weight.copy_(torch.arange(GAPS)[:, None])
        moment.hour.weight.copy_(torch.arange(24)[:, None] * 100)
        moment.weekday.weight.copy_(torch.arange(7)[:, None] * 10_000)
    gaps = {-5: 0, -1: 0, 0: 1, 1: 2, 2: 3, 3: 3, 4: 4, 1023: 11, 1024: 12, 2**28: 30, 2**50: 30}
    for second in (0, 3599, 3600, DAY - 1, DAY, 10 * DAY + 7200, -1, -WEEK, 1_700_000_000):
        for since, gap in gaps.items():
            hour, weekday = divmod(second % DAY, 3600)[0], second // DAY % 7
            row = moment(torch.tensor([second]), torch.tensor([since]))
            assert row.item() == gap + 100 * hour + 10_000 * weekday


def test_seconds_before_with_empty_sequences_and_padding() -> None:
    seconds = torch.tensor([3, 5, 9, 4, 4, 8])
    assert seconds_before(seconds, torch.tensor([0, 0, 3, 3, 5, 6, 6])).tolist() == [-1, 2, 4, -1, 0, -1]
    assert seconds_before(seconds.view(2, 3), None).tolist() == [[-1, 2, 4], [-1, 0, 4]]
    assert seconds_before(seconds[:0], torch.tensor([0, 0])).tolist() == []


def test_units() -> None:
    assert in_seconds(7, "hour") == 7 * 3600
    assert in_seconds(-1, "nanosecond") == -1  # rounded down
    assert in_seconds(torch.tensor([1999, -1]), "millisecond").tolist() == [1, -1]


@pytest.mark.parametrize("config", LEARNED, ids=lambda config: f"{config.name}-{getattr(config, 'norm', '')}")
def test_a_history_scores_the_same_alone_and_in_a_batch(config: SequentialConfig) -> None:
    model = model_of(config)
    items, offsets, times = histories()
    scores = model.score(items, offsets, *times)
    for row, (of_items, moments, at) in enumerate(rows_of(items, offsets, times)):
        alone = model.score(of_items, torch.tensor([0, len(of_items)]), moments, at[None])[0]
        torch.testing.assert_close(alone, scores[row], rtol=1e-9, atol=1e-9)
        padded, when = (torch.nn.functional.pad(x, (0, 2))[None] for x in (of_items, moments))
        if padded.shape[1] <= 40:
            rows = model(padded, None, when)[0, : len(of_items)]
            expected = model(of_items, torch.tensor([0, len(of_items)]), moments)
            torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", LEARNED, ids=lambda config: f"{config.name}-{getattr(config, 'norm', '')}")
def test_moments_matter_and_only_up_to_a_week(config: SequentialConfig) -> None:
    model = model_of(config)
    items, offsets, times = histories()
    scores = model.score(items, offsets, *times)
    weeks = 3 * WEEK // 60  # hours and weekdays are the same again
    shifted = model.score(items, offsets, times.events + weeks, times.asked + weeks)
    torch.testing.assert_close(shifted, scores, rtol=1e-12, atol=1e-12)
    for change in (90, 24 * 60, weeks):  # minutes: another hour, weekday, gap
        later = model.score(items, offsets, times.events, times.asked + change)
        assert ((later - scores).abs().amax(1) > 1e-6).any()
    earlier = times.events.clone()
    earlier[0] -= 90
    assert (model.score(items, offsets, earlier, times.asked)[0] - scores[0]).abs().max() > 1e-6


def test_a_row_knows_no_later_moment() -> None:
    model = model_of()
    items, offsets, times = histories()
    rows = model(items, offsets, times.events)
    later = times.events.clone()
    later[20:48] += 12_345  # the end of the third history, which begins at 8
    changed = model(items, offsets, later)
    torch.testing.assert_close(changed[:20], rows[:20], rtol=1e-12, atol=1e-12)
    assert (changed[20:48] - rows[20:48]).abs().amax(1).min() > 1e-9


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("counted", [True, False])
def test_a_stream_answers_at_any_moment_like_the_batch(norm: str, counted: bool) -> None:
    changes = {} if counted else dict.fromkeys(COUNTED, False)
    model = model_of(dataclasses.replace(CONFIG, norm=norm, **changes))
    assert isinstance(model, HyenaRec)
    for items, moments, at in rows_of(*histories()):
        stream = model.stream()
        for length, (item, moment) in enumerate(zip(items.tolist(), moments.tolist(), strict=True), 1):
            stream.append(item, moment)
            for asked in (moment, moment + 1, moment + 700, moment + 50_000):
                expected = model.score(
                    items[:length], torch.tensor([0, length]), moments[:length], torch.tensor([asked])
                )
                torch.testing.assert_close(stream.scores(at=asked), expected[0], rtol=1e-6, atol=1e-6)
        half = model.stream()
        middle = len(items) // 2
        half.extend(items[:middle].tolist(), moments[:middle].tolist())
        other = half.copy()
        other.extend(items[middle:].tolist(), moments[middle:].tolist())
        torch.testing.assert_close(other.scores(int(at)), stream.scores(int(at)), rtol=1e-9, atol=1e-9)
        assert len(half) == middle


def test_a_stream_refuses_moments_that_do_not_fit() -> None:
    model = model_of()
    assert isinstance(model, HyenaRec)
    stream = model.stream()
    stream.append(3, 100)
    before = stream.scores(200)
    for call, message in (
        (lambda: stream.append(4), "timestamps must be given if and only if .* got none"),
        (lambda: stream.append(4, 99), "timestamps must not be before the event before, 100, got 99"),
        (lambda: stream.extend([4, 5], [101]), "timestamps must be 2, one for each item, got 1"),
        (
            lambda: stream.extend([4, 5], [102, 101]),
            "timestamps must not be before the event before, 102, got 101",
        ),
        (lambda: stream.append(4, "x"), "timestamps must be whole numbers, got 'x'"),
        (lambda: stream.append(4, True), "timestamps must be whole numbers, got True"),
        (lambda: stream.extend([4, 5], 7), "timestamps must be whole numbers, one for each item, got 7"),
        (lambda: stream.append(4, 2**63), "timestamps must be in minutes, the model's time_unit, and within"),
        (lambda: stream.scores(), "at must be given if and only if"),
        (lambda: stream.scores(at=99), "at must not be before the event before, 100, got 99"),
        (lambda: stream.scores(at=1.5), "at must be whole numbers, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    stream.extend([])
    assert len(stream) == 1 and torch.equal(stream.scores(200), before)
    timeless = HyenaRec(ModelConfig(num_items=V, dim=8, max_len=9)).stream()
    with pytest.raises(ValueError, match=r"timestamps must be given if and only if .* got some"):
        timeless.append(1, 5)
    timeless.append(1)
    with pytest.raises(ValueError, match=r"at must be given if and only if .* got some"):
        timeless.scores(at=5)


def test_order_is_that_of_moments_also_within_a_second() -> None:
    model = model_of(dataclasses.replace(CONFIG, time_unit="millisecond"))
    assert isinstance(model, HyenaRec)
    stream = model.stream()
    stream.append(3, 1900)
    with pytest.raises(ValueError, match="timestamps must not be before the event before, 1900, got 1100"):
        stream.append(4, 1100)
    with pytest.raises(ValueError, match="at must not be before the event before, 1900, got 1899"):
        stream.scores(at=1899)


def test_moments_are_given_if_and_only_if_they_are_used() -> None:
    items, offsets, times = histories()
    model = model_of()
    timeless = make_model(SASRecConfig(num_items=V, dim=8, max_len=40))
    for call, message in (
        (lambda: model.score(items, offsets), "got none for a model with it"),
        (lambda: model(items, offsets), "got none for a model with it"),
        (lambda: timeless.score(items, offsets, *times), "got some for a model without"),
        (lambda: timeless.ask(torch.zeros(1, 8), *times), "got some for a model without"),
        (lambda: model.score(items, offsets, [1], [1]), r"timestamps must be int64 \[63\] .*, got \[1\]"),
        (lambda: model.score(items, offsets, times.events, [1]), r"at must be int64 \[5\], .* got \[1\]"),
        (lambda: model.score(items, offsets, -times.events, times.asked), "timestamps must not fall within"),
        (lambda: model.score(items, offsets, times.events), "timestamps and at must be given together"),
        (
            lambda: model.score(items, offsets, times.events[1:], times.asked),
            r"timestamps must be int64 \[63\]",
        ),
        (lambda: model.score(items, offsets, times.events.double(), times.asked), "got torch.float64"),
        (lambda: model.score(items, offsets, times.events, times.asked[:2]), r"at must be int64 \[5\]"),
        (
            lambda: model.score(items, offsets, times.events, times.asked - 10**6),
            "at must not be before the last",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_saved_model_knows_time(tmp_path: Path) -> None:
    model = model_of().float()
    model.save_pretrained(tmp_path)
    items, offsets, times = histories()
    loaded = load_model(tmp_path)
    assert loaded.uses_time
    assert torch.equal(loaded.score(items, offsets, *times), model.score(items, offsets, *times))


def test_without_time_nothing_changes() -> None:
    """No parameter, and the same weights for a seed."""
    timeless = dataclasses.replace(CONFIG, time_unit=None, repeats_by_time=False)
    torch.manual_seed(0)
    model = make_model(timeless)
    assert not any(name.startswith(("moment", "question")) for name in model.state_dict())
    with pytest.raises(ValueError, match=r"repeats_by_time must be false without model.time_unit, got True"):
        dataclasses.replace(CONFIG, time_unit=None)
    with pytest.raises(ValueError, match=r"model.time_unit must be one of 'nanosecond'.*, got 'fortnight'"):
        dataclasses.replace(CONFIG, time_unit="fortnight")


@needs_gpu
def test_on_a_gpu() -> None:
    model = model_of()
    assert isinstance(model, HyenaRec)
    items, offsets, times = histories()
    expected = model.score(items, offsets, *times).detach()
    model = model.cuda()
    on_gpu = [x.cuda() for x in (items, offsets, *times)]
    torch.testing.assert_close(model.score(*on_gpu).cpu(), expected, rtol=1e-6, atol=1e-6)
    for (of_items, moments, at), scores in zip(rows_of(items, offsets, times), expected, strict=True):
        stream = model.stream()
        stream.extend(of_items.tolist(), moments.tolist())
        torch.testing.assert_close(stream.scores(int(at)).cpu(), scores, rtol=1e-6, atol=1e-6)
