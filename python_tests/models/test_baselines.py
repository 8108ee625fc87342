"""What every learned model promises, each baseline's formulas, and counts against counts made by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from descent import losses_of_steps
from devices import needs_gpu
from torch import Tensor

from hyenarec.config import MODEL_CONFIGS, MarkovConfig, SASRecConfig
from hyenarec.data import Histories, Vocabulary
from hyenarec.evaluation.scoring import Recommender
from hyenarec.models.baselines import HAS_VARLEN, SHORT, Attention, Groups, Markov, Packed, Popularity, SASRec
from hyenarec.models.hyenarec import HyenaRec, SequentialModel
from hyenarec.models.registry import LEARNED, load_model, make_model
from hyenarec.train.loss import NextItemLoss

# --- those that learn ---

LENGTHS = [130, 1, 200, 0, 33, 17, 15, 199, 180, 3]


def fresh(name: str, **settings: object) -> SequentialModel:
    """Without a parameter that hides behind its initial 0 or 1."""
    torch.manual_seed(0)
    model = make_model(MODEL_CONFIGS[name](num_items=50, dim=16, max_len=200, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def packed(lengths: Sequence[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randint(1, 51, (sum(lengths),), generator=torch.Generator().manual_seed(seed)), offsets


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("name", LEARNED)
def test_packed_padded_and_single_sequences_agree(name: str) -> None:
    model = fresh(name)
    (items, offsets), (targets, _) = packed(LENGTHS), packed(LENGTHS, seed=2)
    parts = list(zip(*(x.tensor_split(offsets[1:-1]) for x in (items, targets)), strict=True))
    rectangle, in_rows = (
        torch.nn.utils.rnn.pad_sequence(x, batch_first=True) for x in zip(*parts, strict=True)
    )
    rows, padded = model(items, offsets), model(rectangle)
    for row, (begin, end) in enumerate(pairwise(offsets.tolist())):
        if begin < end:
            assert relative_error(padded[row, : end - begin], rows[begin:end]) < 1e-5
            assert relative_error(model(items[begin:end][None])[0], rows[begin:end]) < 1e-5

    def gradients(*batches: tuple[Tensor, Tensor | None, Tensor]) -> list[Tensor]:
        loss = sum(NextItemLoss(model)(*batch) for batch in batches)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    expected = gradients((items, offsets, targets))
    alone = gradients(*((item[None], None, target[None]) for item, target in parts if len(item)))
    for others in (gradients((rectangle, None, in_rows)), alone):
        assert all(relative_error(*pair) < 1e-5 for pair in zip(others, expected, strict=True))


@pytest.mark.parametrize("name", LEARNED)
def test_the_future_does_not_reach_the_past(name: str) -> None:
    model = fresh(name)
    items, offsets = packed([40, 24, 7])
    changed = items.clone()
    changed[40 + 15] = 1 + changed[40 + 15] % 50
    before, after = model(items, offsets), model(changed, offsets)
    same = torch.ones(71, dtype=torch.bool)
    same[40 + 15 : 64] = False
    assert relative_error(after[same], before[same]) < 1e-6
    assert (after - before)[~same].abs().amax(1).min() > 1e-5


@pytest.mark.parametrize("name", LEARNED)
def test_no_events_have_no_rows(name: str) -> None:
    assert fresh(name)(*packed([0, 0])).shape == (0, 16)


@pytest.mark.parametrize("name", LEARNED)
def test_every_parameter_learns_and_the_loss_falls(name: str) -> None:
    torch.manual_seed(0)
    model = make_model(MODEL_CONFIGS[name](num_items=20, dim=16, max_len=64, dropout=0.1))
    lengths = [64, 30, 1, 50]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    items = torch.cat([(3 * torch.arange(n) + n) % 20 + 1 for n in lengths])
    targets = (items + 2) % 20 + 1
    losses = losses_of_steps(model, items, offsets, targets, steps=30, learning_rate=1e-2)
    assert abs(losses[0] - math.log(20)) < 0.2
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", LEARNED)
def test_mixed_precision_rounds_and_no_more(name: str) -> None:
    model, (items, offsets) = fresh(name), packed([40, 24, 7])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, loss = model(items, offsets), NextItemLoss(model)(items, offsets, items)
    loss.backward()
    assert relative_error(rows.float(), model(items, offsets)) < 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", LEARNED)
def test_saved_and_loaded_models_are_the_same(name: str, tmp_path: Path) -> None:
    model = fresh(name)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model) and loaded.config == model.config and not loaded.training
    items, offsets = packed([6, 2])
    assert torch.equal(loaded.score(items, offsets), model.score(items, offsets))


def test_a_saved_model_without_a_name_is_hyenarec(tmp_path: Path) -> None:
    model = fresh("hyenarec", norm="pre")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["name"], config["format"], config["norm"]  # as the first version wrote it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path).config == model.config


def test_a_class_refuses_another_models_settings(tmp_path: Path) -> None:
    message = "config must be a ModelConfig to make a HyenaRec, got a SASRecConfig"
    with pytest.raises(ValueError, match=message):
        HyenaRec(SASRecConfig(num_items=5))
    fresh("sasrec").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        HyenaRec.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config must be that of a model that learns, got a MarkovConfig"):
        make_model(MarkovConfig(num_items=5))


def test_attention_equals_its_formula() -> None:
    torch.manual_seed(0)
    layer = Attention(SASRecConfig(dim=8, num_heads=2)).double()
    offsets = torch.tensor([0, 5, 5, 23, 24, 64])
    x = torch.randn(64, 8, dtype=torch.float64)
    expected = []
    for part in x.tensor_split(offsets[1:-1]):
        q, k, v = (m.view(len(part), 2, 4).transpose(0, 1) for m in layer.in_proj(part).chunk(3, dim=-1))
        scores = q @ k.transpose(1, 2) / math.sqrt(4)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        expected.append(layer.out_proj(y.transpose(0, 1).flatten(1)))
    torch.testing.assert_close(layer(x, Groups.of(offsets, 64)), torch.cat(expected))


def test_sasrec_counts_positions_from_a_sequences_first_event() -> None:
    model = fresh("sasrec")
    assert isinstance(model, SASRec)
    items, offsets = packed([7, 4])
    before = model(items, offsets)
    with torch.no_grad():
        model.positions.weight[4] += torch.randn(16)
    changed = (model(items, offsets) - before).abs().amax(1) > 1e-6
    assert changed.nonzero().flatten().tolist() == [4, 5, 6]


@pytest.mark.parametrize("longest", [200, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_groups_pad_little(longest: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = np.minimum(generator.lognormal(np.log(longest) - 1, 1.2, 400).astype(np.int64), longest)
    offsets = torch.from_numpy(np.cumsum([0, *lengths]))
    groups = Groups.of(offsets, int(offsets[-1]))
    assert groups.index is not None and len(groups.index.unique()) == len(groups.index)
    allowed = np.where(lengths > SHORT, lengths * 8 / 7, np.minimum(lengths, 1) * SHORT)
    batch, length = np.array(groups.shapes).T
    assert (batch * length).sum() <= allowed.sum()
    assert (batch * length**2).sum() <= (allowed**2).sum()
    assert len(groups.shapes) <= 2 + math.log(longest / SHORT) / math.log(8 / 7)


def test_equal_lengths_and_falling_groups_are_not_moved() -> None:
    assert Groups.of(torch.tensor([0, 20, 40, 60]), 60) == Groups(None, ((3, 20),))
    assert Groups.of(torch.tensor([0, 30, 50, 70]), 70) == Groups(None, ((1, 30), (2, 20)))
    assert Groups.of(torch.tensor([0, 20, 50]), 50).shapes == ((1, 30), (1, 20))


def test_the_layout_is_made_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made, of = [], Groups.of
    monkeypatch.setattr(Groups, "of", lambda *arguments: made.append(arguments) or of(*arguments))
    fresh("sasrec", num_blocks=3)(*packed([5, 9]))
    assert len(made) == 1


@pytest.mark.skipif(not torch.cuda.is_available() or not HAS_VARLEN, reason="needs a GPU and varlen_attn")
def test_packed_attention_on_a_gpu_is_that_of_the_cpu() -> None:
    model = fresh("sasrec").cuda()
    items, offsets = (x.cuda() for x in packed(LENGTHS))
    x = model.items(items)
    assert not Packed.can_attend(x, 2)
    exact = model(items, offsets)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert Packed.can_attend(x, 2)
        model(items, offsets)  # what is made once may wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            rows = model(items, offsets)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        NextItemLoss(model)(items, offsets, items).backward()
    assert relative_error(rows, exact) < 0.05
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@needs_gpu
@pytest.mark.parametrize("name", LEARNED)
def test_scores_on_a_gpu_are_those_of_the_cpu(name: str) -> None:
    model, (items, offsets) = fresh(name).double(), packed([24, 1, 7])
    scores = model.score(items, offsets)
    on_gpu = model.cuda().score(items.cuda(), offsets.cuda())
    torch.testing.assert_close(on_gpu.cpu(), scores, rtol=1e-9, atol=1e-9)


# --- those that count ---


def histories_of(rows: Sequence[Sequence[int]], num_items: int) -> Histories:
    return Histories(
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        timestamps=None,
        user_ids=np.arange(len(rows), dtype=np.int64),
        vocabulary=Vocabulary(np.arange(100, 100 + num_items)),
    )


def score(recommender: Recommender, *rows: list[int]) -> torch.Tensor:
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return recommender.score(torch.tensor([item for row in rows for item in row]), offsets)


def best(recommender: Recommender, *rows: list[int]) -> list[list[int]]:
    return (score(recommender, *rows).argsort(dim=1, descending=True) + 1).tolist()


# Item 3 is followed by 1 twice and by 2 once, item 1 by 3 once.
TRAIN = [[3, 1, 3, 1], [3, 2], [], [1], [2], [4]]


def test_popularity_by_hand() -> None:
    scores = score(Popularity.of(histories_of(TRAIN, 5)), [1, 2], [5])
    assert scores.tolist() == [[3, 2, 3, 1, 0]] * 2


def test_markov_by_hand() -> None:
    # Events: 1 five times, 4 four times, 3 three times, 2 twice, 5 never.
    markov = Markov.of(histories_of([*TRAIN, [1], [1], [4], [4], [4]], 5))
    after_3, after_1, after_4 = best(markov, [4, 3], [5, 1], [4])
    assert after_3 == [1, 2, 4, 3, 5]  # 1 came twice and 2 once
    assert after_1 == [3, 1, 4, 2, 5]  # only 3 came
    assert after_4 == [1, 4, 3, 2, 5]  # nothing came: popularity alone
    assert score(markov, [4]).max() < 1


def test_no_pair_reaches_from_one_user_to_the_next() -> None:
    markov = Markov.of(histories_of([[1, 2], [3, 4], [], [5], [1]], 5))
    assert (score(markov, [2], [4], [5]) < 1).all()
    assert score(markov, [1])[0, 1] >= 1
    assert score(markov, [3])[0, 3] >= 1


def test_unknown_events_are_left_out() -> None:
    train = histories_of([[1, 0, 2], [0, 1], [2, 0]], 2)
    assert Popularity.of(train).counts.tolist() == [2, 2]
    assert (score(Markov.of(train), [1], [2]) < 1).all()


def test_markov_equals_plain_python_counts() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(1, 31, size=generator.integers(0, 40)).tolist() for _ in range(60)]
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    events = Counter(item for row in rows for item in row)
    markov = Markov.of(histories_of(rows, 30))
    scores = score(markov, *([item] for item in range(1, 31)))
    assert len(markov.counts) == len(pairs)
    for last in range(1, 31):
        for item in range(1, 31):
            assert scores[last - 1, item - 1].floor() == pairs[last, item]
        order = sorted(range(1, 31), key=lambda item: (pairs[last, item], events[item]), reverse=True)
        keys = [
            (pairs[last, item], events[item])
            for item in (scores[last - 1].argsort(descending=True) + 1).tolist()
        ]
        assert keys == [(pairs[last, item], events[item]) for item in order]


def test_histories_score_the_same_alone_and_together() -> None:
    markov = Markov.of(histories_of(TRAIN, 5))
    together = score(markov, [1, 3], [3, 1], [2])
    alone = torch.cat([score(markov, row) for row in ([1, 3], [3, 1], [2])])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("kind", [Markov, Popularity])
def test_tiles_are_columns_of_the_scores(kind: type[Markov | Popularity]) -> None:
    recommender = kind.of(histories_of([*TRAIN, [1, 5, 4, 5], [2, 2, 1]], 5))
    items, offsets = torch.tensor([3, 1, 4, 5, 2]), torch.arange(6)
    whole = recommender.score(items, offsets)
    state = recommender.encode(items, offsets)
    for first in range(6):
        for last in range(first, 6):
            assert torch.equal(recommender.score_tile(state, first, last), whole[:, first:last])


def test_empty_training_scores_zero() -> None:
    empty = histories_of([[]], 3)
    assert score(Popularity.of(empty), [1]).tolist() == [[0, 0, 0]]
    assert score(Markov.of(empty), [1]).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("kind", [Markov, Popularity])
def test_counts_are_saved_and_loaded(kind: type[Markov | Popularity], tmp_path: Path) -> None:
    model = kind.of(histories_of(TRAIN, 5))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is kind and loaded.config == model.config
    assert torch.equal(score(loaded, [1, 3], [2]), score(model, [1, 3], [2]))
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_items": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"must be what config\.json describes: counts must be"):
        load_model(tmp_path)


@needs_gpu
@pytest.mark.parametrize("kind", [Markov, Popularity])
def test_counts_on_a_gpu_are_those_of_the_cpu(kind: type[Markov | Popularity]) -> None:
    model = kind.of(histories_of(TRAIN, 5))
    items, offsets = torch.tensor([1, 3, 2]), torch.tensor([0, 2, 3])
    expected = model.score(items, offsets)
    assert torch.equal(model.cuda().score(items.cuda(), offsets.cuda()).cpu(), expected)


def test_scores_are_the_callers_to_change() -> None:
    markov = Markov.of(histories_of(TRAIN, 5))
    before = score(markov, [3]).clone()
    score(markov, [3]).zero_()
    assert torch.equal(score(markov, [3]), before)
