"""The model against a second implementation of its formulas, and the equalities that it promises."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import safetensors.torch
import torch
from descent import losses_of_steps
from devices import needs_gpu
from torch import Tensor

from hyenarec import reference
from hyenarec.config import ModelConfig
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.kernels import KERNELS, LegendreKernel
from hyenarec.models.pretrained import CONFIG_FILE, WEIGHTS_FILE
from hyenarec.train.loss import NextItemLoss

SMALL = ModelConfig(num_items=50, dim=8, num_blocks=2, max_len=24, num_coeffs=5, dropout=0.1)
FAMILIES = sorted(KERNELS)


def make_model(config: ModelConfig = SMALL, seed: int = 0, **changes: object) -> HyenaRec:
    torch.manual_seed(seed)
    model = HyenaRec(dataclasses.replace(config, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias or norm hides behind its initial 0 or 1
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def padded(items: Tensor, offsets: Tensor) -> Tensor:
    """Packed `[total]` as `[B, L]` with zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(items.tensor_split(offsets[1:-1])), batch_first=True)


def packed(lengths: list[int], num_items: int = 50, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randint(1, num_items + 1, (int(offsets[-1]),), generator=generator), offsets


def layer_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return centred * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def by_hand(model: HyenaRec, items: Tensor) -> Tensor:
    """The formulas at the top of models/hyenarec.py for one sequence `[L]`, Legendre family -> `[L, D]`."""
    w, config = dict(model.state_dict()), model.config
    pre = config.norm == "pre"
    x = w["items.weight"][items] * math.sqrt(config.dim)
    x = x if pre else layer_norm(x, w, "norm")
    for block in range(config.num_blocks):
        p = f"blocks.{block}."
        h = layer_norm(x, w, p + "mixer_norm") if pre else x
        h = h @ w[p + "mixer.in_proj.weight"].T + w[p + "mixer.in_proj.bias"]
        h = reference.short_conv(h[None], w[p + "mixer.short_weight"], w[p + "mixer.short_bias"])
        *queries, k, v = h.split(config.dim, dim=-1)
        z = k * v
        for i, q in enumerate(reversed(queries)):
            c = f"{p}mixer.convs.{i}."
            kernel = reference.legendre_kernel(
                w[c + "kernel.coeffs"], w[c + "kernel.log_decay"].exp(), config.max_len, config.max_len
            )
            z = q * reference.fft_conv(z, kernel, w[c + "skip"])
        x = x + z[0] @ w[p + "mixer.out_proj.weight"].T + w[p + "mixer.out_proj.bias"]
        x = x if pre else layer_norm(x, w, p + "mixer_norm")
        h = layer_norm(x, w, p + "ffn_norm") if pre else x
        h = h @ w[p + "ffn.0.weight"].T + w[p + "ffn.0.bias"]
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        x = x + h @ w[p + "ffn.2.weight"].T + w[p + "ffn.2.bias"]
        x = x if pre else layer_norm(x, w, p + "ffn_norm")
    return layer_norm(x, w, "norm") if pre else x


@pytest.mark.parametrize("order, norm", [(2, "post"), (3, "post"), (2, "pre")])
def test_equals_its_formulas(order: int, norm: str) -> None:
    model = make_model(order=order, norm=norm)
    items, offsets = packed([24, 1, 7])
    hidden = model(items, offsets)
    expected = torch.cat([by_hand(model, part) for part in items.tensor_split(offsets[1:-1])])
    torch.testing.assert_close(hidden, expected, rtol=1e-9, atol=1e-9)
    scores = expected[offsets[1:] - 1] @ model.items.weight[1:].T + model.item_bias
    torch.testing.assert_close(model.score(items, offsets), scores, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_padded_and_single_sequences_agree(family: str) -> None:
    model = make_model(kernel=family)
    lengths = [5, 24, 1, 13]
    items, offsets = packed(lengths)
    hidden = model(items, offsets)
    rectangle = model(padded(items, offsets))
    for row, part in enumerate(items.tensor_split(offsets[1:-1])):
        mine = hidden[offsets[row] : offsets[row + 1]]
        torch.testing.assert_close(mine, rectangle[row, : len(part)], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mine, model(part[None])[0], rtol=1e-9, atol=1e-9)


def test_they_agree_in_float32() -> None:
    """Rows to 1e-6; gradients, sums over all events through all blocks in another order, to 5e-6."""
    model = make_model(max_len=200, dim=16).float()
    items, offsets = packed([130, 1, 200, 33])
    targets, _ = packed([130, 1, 200, 33], seed=2)
    bounds = offsets.tolist()
    parts = [slice(*pair) for pair in itertools.pairwise(bounds)]

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    loss = NextItemLoss(model)
    rows = model(items, offsets)
    rectangle = model(padded(items, offsets))
    for row, part in enumerate(parts):
        for mine in (rectangle[row, : part.stop - part.start], model(items[part][None])[0]):
            assert relative_error(mine, rows[part]) < 1e-6
    expected = gradients(loss(items, offsets, targets))
    in_rows = gradients(loss(padded(items, offsets), None, padded(targets, offsets)))
    alone = gradients(sum(loss(items[part][None], None, targets[part][None]) for part in parts))
    for others in (in_rows, alone):
        for mine, wanted in zip(others, expected, strict=True):
            assert relative_error(mine, wanted) < 5e-6


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("order", [2, 3])
def test_the_scan_is_the_fft_with_the_same_kernels(order: int) -> None:
    by_scan, by_fft = (make_model(order=order, kernel=kernel, max_len=300) for kernel in ("legendre", "free"))
    lags = {
        f"{name}.kernel": kernel(300).detach()
        for name, kernel in by_scan.named_modules()
        if isinstance(kernel, LegendreKernel)
    }
    shared = {name: w for name, w in by_scan.state_dict().items() if ".kernel." not in name}
    by_fft.load_state_dict(shared | lags)
    items, offsets = packed([300, 1, 170])
    targets, _ = packed([300, 1, 170], seed=2)
    for model in (by_scan, by_fft):
        NextItemLoss(model)(items, offsets, targets).backward()
    torch.testing.assert_close(by_scan(items, offsets), by_fft(items, offsets), rtol=1e-9, atol=1e-9)
    gradients = dict(by_fft.named_parameters())
    for name in shared:
        expected = gradients[name].grad
        torch.testing.assert_close(by_scan.get_parameter(name).grad, expected, rtol=1e-8, atol=1e-9)


def test_saved_models_keep_their_names() -> None:
    """Those of the first saved models; `from_pretrained` must go on reading them."""
    conv = ("kernel.coeffs", "kernel.log_decay", "skip")
    mixer = (
        "in_proj.bias",
        "in_proj.weight",
        "out_proj.bias",
        "out_proj.weight",
        "short_bias",
        "short_weight",
    )
    layers = ("ffn.0", "ffn.2", "ffn_norm", "mixer_norm")
    block = {f"{layer}.{name}" for layer in layers for name in ("weight", "bias")}
    block |= {f"mixer.{name}" for name in mixer} | {f"mixer.convs.0.{name}" for name in conv}
    ends = {"items.weight", "item_bias", "norm.weight", "norm.bias"}
    names = ends | {f"blocks.{number}.{name}" for number in range(2) for name in block}
    assert HyenaRec(SMALL).state_dict().keys() == names


@pytest.mark.parametrize("family", FAMILIES)
def test_the_future_does_not_reach_the_past(family: str) -> None:
    model = make_model(kernel=family)
    items, _ = packed([24])
    changed = items.clone()
    changed[15:] = 1 + changed[15:] % 50
    before, after = model(items[None])[0], model(changed[None])[0]
    torch.testing.assert_close(before[:15], after[:15], rtol=1e-9, atol=1e-9)
    assert (before[15:] - after[15:]).abs().max() > 1e-3


def test_the_oldest_event_reaches_the_newest_score() -> None:
    model = make_model(max_len=24)
    items, offsets = packed([24])
    changed = items.clone()
    changed[0] = 1 + changed[0] % 50
    assert (model.score(items, offsets) - model.score(changed, offsets)).abs().max() > 1e-6


def test_loss_is_the_summed_cross_entropy_of_the_real_targets() -> None:
    model = make_model()
    items, offsets = packed([9, 3])
    targets, _ = packed([9, 3], seed=2)
    targets[[2, 11]] = 0
    scores = model(items, offsets) @ model.items.weight[1:].T + model.item_bias
    expected = torch.nn.functional.cross_entropy(scores, targets - 1, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(NextItemLoss(model)(items, offsets, targets), expected)
    in_rows = NextItemLoss(model)(padded(items, offsets), None, padded(targets, offsets))
    torch.testing.assert_close(in_rows, expected)


@pytest.mark.parametrize("order", [2, 3])
def test_no_value_is_looked_at(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values: whatever would make a GPU wait for one raises."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # both refuse meta devices
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    items, offsets = (torch.ones(n, dtype=torch.int64, device="meta") for n in (90, 6))
    model = make_model(order=order).to("meta")
    NextItemLoss(model)(items, offsets, items).backward()
    assert model.score(items, offsets).shape == (5, 50)
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(RuntimeError, match=r"item\(\)"):  # and it does: a rectangle must know its size
        make_model(kernel="mlp").to("meta")(items, offsets)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decay", [True, False])
def test_fresh_kernels_leave_the_size_of_white_noise(family: str, decay: bool) -> None:
    torch.manual_seed(0)
    kernel = KERNELS[family](16, ModelConfig(max_len=300, kernel=family, decay=decay))
    torch.testing.assert_close(kernel(300).norm(dim=1), torch.ones(16), rtol=1e-3, atol=1e-3)
    assert kernel(7).shape == (16, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_family_without_decay_has_no_decay_parameter(family: str) -> None:
    names = [
        name
        for name, _ in HyenaRec(dataclasses.replace(SMALL, kernel=family, decay=False)).named_parameters()
    ]
    assert not any("decay" in name for name in names)


def test_a_fresh_deep_model_trains_stably() -> None:
    """8 blocks at L = 2,048: sane activations at the start, falling loss, finite gradients."""
    torch.manual_seed(0)
    config = ModelConfig(num_items=20, dim=16, num_blocks=8, max_len=2048, dropout=0.0)
    model = HyenaRec(config)
    items = (torch.arange(2048)[None] * torch.tensor([[1], [3]])) % 20 + 1
    targets = items.roll(-1, dims=1)
    losses = losses_of_steps(model, items, None, targets, steps=25, learning_rate=5e-3)
    assert abs(losses[0] - math.log(20)) < 0.2
    assert losses[-1] < 0.6 * losses[0]
    assert max(losses) <= losses[0] * 1.05


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_models_are_the_same(family: str, tmp_path: Path) -> None:
    model = make_model(kernel=family).float()
    model.save_pretrained(tmp_path / "model")
    loaded = HyenaRec.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    items, offsets = packed([6, 2])
    assert torch.equal(loaded.score(items, offsets), model.score(items, offsets))
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_saved_models_of_the_first_format_had_pre_norms(tmp_path: Path) -> None:
    model = make_model(norm="pre").float()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["format"] == 6
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"format": 7}))
    with pytest.raises(ValueError, match=r"format must be at most 6, .* got 7 in .*config\.json"):
        HyenaRec.from_pretrained(tmp_path)
    del config["format"], config["norm"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    loaded = HyenaRec.from_pretrained(tmp_path)
    items, offsets = packed([6, 2])
    assert torch.equal(loaded.score(items, offsets), model.score(items, offsets))


def test_saved_models_of_the_second_format_call_the_repeat_head_repeats(tmp_path: Path) -> None:
    model = make_model(repeat_head=True).float()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text()) | {"format": 2, "repeats": True}
    for name in ("repeat_head", "own_followers", "followers"):
        del config[name]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS_FILE)
    renamed = {name.replace("repeat_head.", "repeats."): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(renamed, tmp_path / WEIGHTS_FILE)
    loaded = HyenaRec.from_pretrained(tmp_path)
    assert loaded.config.repeat_head and not loaded.config.repeats
    items, offsets = packed([6, 2])
    assert torch.equal(loaded.score(items, offsets), model.score(items, offsets))


def test_a_saved_model_with_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    make_model().float().save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text()) | {"heads": 4}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="unknown key 'heads'"):
        HyenaRec.from_pretrained(tmp_path)


def test_a_kernel_is_as_exact_under_autocast() -> None:
    torch.manual_seed(0)
    kernel = KERNELS["mlp"](16, ModelConfig(max_len=300, kernel="mlp"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = kernel(300)
    assert torch.equal(rounded, kernel(300))


def test_a_damaged_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    make_model().float().save_pretrained(tmp_path)
    other = json.loads((tmp_path / CONFIG_FILE).read_text()) | {"dim": 16}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"model\.safetensors must be what config\.json describes") as error:
        HyenaRec.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"model\.safetensors must be what config\.json describes"):
        HyenaRec.from_pretrained(tmp_path)


@needs_gpu
def test_a_gpu_never_waits_for_gradients_or_scores() -> None:
    """Of long histories; what a whole step of training does is in `train/test_waits.py`."""
    model = make_model(max_len=4096).cuda()
    loss = NextItemLoss(model)
    items, offsets = (x.cuda() for x in packed([4096, 1, 3000, 1095]))
    loss(items, offsets, items).backward()  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(items, offsets, items).backward()
        model.score(items, offsets)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_on_a_gpu_are_those_of_the_cpu(family: str) -> None:
    model = make_model(kernel=family)
    items, offsets = packed([24, 1, 7])
    targets, _ = packed([24, 1, 7], seed=2)
    loss = NextItemLoss(model)(items, offsets, targets)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    scores = model.score(items, offsets)
    model.zero_grad()
    on_gpu = model.cuda()
    NextItemLoss(on_gpu)(items.cuda(), offsets.cuda(), targets.cuda()).backward()
    torch.testing.assert_close(on_gpu.score(items.cuda(), offsets.cuda()).cpu(), scores, rtol=1e-9, atol=1e-9)
    for name, parameter in on_gpu.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), expected[name], rtol=1e-8, atol=1e-9)


def test_errors_name_the_argument(tmp_path: Path) -> None:
    model = make_model()
    items, offsets = packed([3, 2])
    with pytest.raises(ValueError, match=r"items must be \[B, L\].*got \[5\] without offsets"):
        model(items)
    with pytest.raises(ValueError, match=r"items must be \[B, L\].*got \[1, 5\] with offsets"):
        model(items[None], offsets)
    with pytest.raises(ValueError, match="at most max_len = 24 events, got one with 25"):
        model(*packed([25]))
    with pytest.raises(ValueError, match="at most max_len = 24 events, got one with 25"):
        model(packed([25])[0][None])
    with pytest.raises(ValueError, match=r"offsets must be \[B \+ 1\] with B >= 0, got \[0\]"):
        model.score(items, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="items and offsets must be tensors, got Tensor and list"):
        model(items, [0, 3, 5])
    with pytest.raises(ValueError, match="histories of at least one event, got an empty one"):
        model.score(items, torch.tensor([0, 3, 3, 5]))
    with pytest.raises(ValueError, match="num_items must be set"):
        HyenaRec(ModelConfig())
    with pytest.raises(ValueError, match=f"has no {CONFIG_FILE}"):
        HyenaRec.from_pretrained(tmp_path)
