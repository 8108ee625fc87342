"""The repeat head against sums over all pairs of events, in batch, loss and stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hyenarec.config import LossConfig, ModelConfig, SASRecConfig
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.models.registry import make_model
from hyenarec.models.repeats import RepeatHead
from hyenarec.models.sequential import SequentialModel
from hyenarec.train.loss import NextItemLoss

CONFIG = ModelConfig(
    num_items=12, dim=8, num_blocks=1, max_len=40, num_coeffs=5, repeat_head=True, dropout=0.0
)
HISTORIES = [[3], [1, 2, 1, 1, 5, 2, 1], [4] * 9, [7, 8, 9, 10, 7], list(range(1, 13)) * 3 + [1, 1, 2, 2]]


def model_of(config: ModelConfig | SASRecConfig = CONFIG) -> SequentialModel:
    torch.manual_seed(0)
    model = make_model(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def packed(histories: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([0, *map(len, histories)]).cumsum(0)
    return torch.tensor([item for history in histories for item in history]), offsets


def returning(head: RepeatHead, lag: int) -> Tensor:
    """The formula of w at the top of models/repeats.py."""
    rate, amplitude = head.log_return_rate.exp(), head.return_amplitude
    weights = (torch.exp(-rate * torch.arange(5000)[:, None]) @ amplitude) ** 2
    return weights[lag] / weights.sum()


def added(head: RepeatHead, history: Sequence[int], hidden: Tensor, num_items: int) -> Tensor:
    """g A[j] of every item, `[V]`, after the history."""
    gain = torch.exp(hidden @ head.strength + head.bias)
    rate, mixture = head.log_frequency_rate.exp(), head.frequency_mixture.softmax(0)
    weights = []
    for item in range(1, num_items + 1):
        places = [place for place, other in enumerate(history) if other == item]
        frequency = sum((mixture @ torch.exp(-rate * (places[-1] - place)) for place in places), gain * 0)
        lag = len(history) - 1 - places[-1] if places else 0
        weights.append(gain * frequency * returning(head, lag))
    return torch.stack(weights)


@pytest.mark.parametrize("config", [CONFIG, SASRecConfig(num_items=12, dim=8, max_len=40, repeat_head=True)])
def test_scores_are_the_mixture(config: ModelConfig | SASRecConfig) -> None:
    model = model_of(config)
    items, offsets = packed(HISTORIES)
    scores = model.score(items, offsets)
    hidden = model(items, offsets)[offsets[1:] - 1]
    plain = hidden @ model.item_weight.t() + model.item_bias
    for row, history in enumerate(HISTORIES):
        expected = torch.log(plain[row].exp() + added(model.repeat_head, history, hidden[row], 12))
        torch.testing.assert_close(scores[row], expected, rtol=1e-9, atol=1e-9)
    state = model.encode(items, offsets)
    for first, last in ((0, 5), (5, 6), (6, 12)):
        tile = model.score_tile(state, first, last)
        torch.testing.assert_close(tile, scores[:, first:last], rtol=1e-12, atol=1e-12)
        assert torch.equal(model.score_tile(state, first, last), tile)


def test_the_loss_is_the_mixtures_cross_entropy_with_all_gradients() -> None:
    model = model_of()
    items, offsets = packed(HISTORIES)
    targets = torch.cat([items[1:], items[:1]])
    targets[offsets[1:] - 1] = torch.tensor([3, 6, 4, 0, 12])  # 0: none
    loss = NextItemLoss(model)(items, offsets, targets)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)

    hidden, expected = model(items, offsets), torch.zeros_like(loss)
    for row, history in enumerate(HISTORIES):
        for t in range(len(history)):
            event = int(offsets[row]) + t
            if targets[event] == 0:
                continue
            mass = torch.exp(hidden[event] @ model.item_weight.t() + model.item_bias)
            mass = mass + added(model.repeat_head, history[: t + 1], hidden[event], 12)
            expected = expected - torch.log(mass[targets[event] - 1] / mass.sum())
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-7, atol=1e-9)


def test_padded_batches_have_the_same_loss() -> None:
    loss = NextItemLoss(model_of())
    items, offsets = packed(HISTORIES)
    targets = items.roll(-1)
    rows = [nn.utils.rnn.pad_sequence(list(x.tensor_split(offsets[1:-1])), True) for x in (items, targets)]
    torch.testing.assert_close(loss(rows[0], None, rows[1]), loss(items, offsets, targets))


def test_a_long_history_of_one_item_neither_overflows_nor_forgets() -> None:
    head = RepeatHead(4, 3, 5000)
    items = torch.ones(5000, dtype=torch.int64)
    found, everything = head.of_targets(items, torch.tensor([0, 5000]), items)
    torch.testing.assert_close(found, everything, rtol=1e-9, atol=1e-9)
    assert found.isfinite().all() and (found.diff() >= 0).all()


def test_the_stream_scores_like_the_batch() -> None:
    model = model_of()
    assert isinstance(model, HyenaRec)
    empty = model.stream()
    for history in HISTORIES:
        stream = empty.copy()
        for length, item in enumerate(history, 1):
            stream.append(item)
            items, offsets = packed([history[:length]])
            torch.testing.assert_close(stream.scores(), model.score(items, offsets)[0], rtol=1e-6, atol=1e-6)
        half = empty.copy()
        half.extend(history[: len(history) // 2])
        other = half.copy()
        other.extend(history[len(history) // 2 :])
        torch.testing.assert_close(other.scores(), stream.scores(), rtol=1e-9, atol=1e-9)
        assert len(half) == len(history) // 2


def test_memory_of_a_stream_grows_with_distinct_items_only() -> None:
    stream = model_of().stream()
    stream.extend([1, 2, 3])
    before = stream.nbytes
    stream.extend([1, 2, 3] * 10)
    assert stream.nbytes == before


@pytest.mark.parametrize(
    "loss", [LossConfig("sampled_softmax"), LossConfig("bce"), LossConfig("softmax", label_smoothing=0.1)]
)
def test_other_losses_are_refused(loss: LossConfig) -> None:
    with pytest.raises(ValueError, match=r"model\.repeat_head must be false unless the loss is the softmax"):
        NextItemLoss(model_of(), loss)


def test_it_learns_that_users_keep_to_their_items() -> None:
    """Each user draws from four items of their own: nothing to know about an item, only whose it is."""
    torch.manual_seed(0)
    own = torch.randint(1, 301, (400, 4))
    items = own.gather(1, torch.randint(0, 4, (400, 20)))
    offsets = torch.arange(401) * 19
    losses = []
    for repeats in (True, False):
        torch.manual_seed(1)
        config = dataclasses.replace(CONFIG, num_items=300, dim=16, repeat_head=repeats)
        loss = NextItemLoss(make_model(config))
        optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            mean = loss(items[:, :-1].flatten(), offsets, items[:, 1:].flatten()) / (400 * 19)
            mean.backward()
            optimizer.step()
        losses.append(mean.item())
    assert losses[0] < losses[1] - 0.3


def test_the_gain_is_as_exact_under_autocast() -> None:
    head, hidden = RepeatHead(64, 9, 50), torch.randn(5, 64)
    nn.init.normal_(head.strength)
    exact = head.log_gain(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head.log_gain(hidden), exact)


def test_amplitudes_that_cancel_stay_finite() -> None:
    head = RepeatHead(4, 9, 50)
    nn.init.zeros_(head.return_amplitude)
    items = torch.tensor([1, 2, 1, 1])
    loss = sum(x.sum() for x in head.of_targets(items, torch.tensor([0, 4]), items))
    loss.backward()
    assert loss.isfinite() and head.return_amplitude.grad.isfinite().all()
