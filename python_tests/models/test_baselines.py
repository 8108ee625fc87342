"""What every learned model promises, and each baseline's formulas."""

from __future__ import annotations

import json
import math
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
from hyenarec.models.baselines import HAS_VARLEN, SHORT, Attention, Groups, Packed, SASRec
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.registry import LEARNED, load_model, make_model
from hyenarec.models.sequential import SequentialModel
from hyenarec.train.loss import NextItemLoss

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
