"""What a model's loss asks of the operator. (The operator has tests of its own.)"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenarec.config.loss import LOSSES
from hyenarec.train.loss import SAMPLED_LOSSES, NextItemLoss, binary_cross_entropy_sum, mixture_sum


class GivenHidden(nn.Module):
    """A model whose hidden states are parameters."""

    def __init__(self, events: int, items: int = 37, dim: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(events)
        self.lag_bias = self.repeat_head = None
        self.hidden = nn.Parameter(torch.randn(events, dim, generator=generator))
        self.item_weight = nn.Parameter(torch.randn(items, dim, generator=generator))
        self.item_bias = nn.Parameter(torch.randn(items, generator=generator))

    def forward(self, items: Tensor, offsets: Tensor | None, timestamps: Tensor | None) -> Tensor:
        return self.hidden.view(*items.shape, -1)


@pytest.fixture
def loss() -> NextItemLoss:
    return NextItemLoss(GivenHidden(300))  # type: ignore[arg-type]


def gradients(value: Tensor, loss: NextItemLoss) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, list(loss.parameters()))


@pytest.mark.parametrize("shape", [(300,), (3, 100)])
def test_sums_over_the_events_with_a_target(loss: NextItemLoss, shape: tuple[int, ...]) -> None:
    items = torch.zeros(shape, dtype=torch.int64)
    targets = (torch.arange(300) % 38).view(shape)  # 0: none
    value, model = loss(items, None, targets), loss.model
    scores = F.linear(model.hidden, model.item_weight, model.item_bias)
    expected = F.cross_entropy(scores, targets.flatten() - 1, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(value, expected)
    for mine, theirs in zip(gradients(value, loss), gradients(expected, loss), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_autocast_rounds_the_products_only(loss: NextItemLoss) -> None:
    items, targets = torch.zeros(300, dtype=torch.int64), torch.arange(300) % 38
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(items, None, targets)
    exact = loss(items, None, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=5e-3, atol=0)
    for rounded, wanted in zip(gradients(value, loss), gradients(exact, loss), strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("name", ["binary", "binary, shared negatives", "mixture"])
def test_gradients_are_the_same_every_time(name: str) -> None:
    torch.manual_seed(0)
    rows, items = 40_000, 23  # so many that several threads share the work
    leaves = [torch.randn(n, 4, requires_grad=True) for n in (rows, items)]
    leaves.append(torch.randn(items, requires_grad=True))
    target = torch.randint(0, items, (rows,))
    arguments = {
        "binary": (binary_cross_entropy_sum, torch.randint(0, items, (rows, 2))),
        "binary, shared negatives": (binary_cross_entropy_sum, torch.randint(0, items, (50,))),
        "mixture": (mixture_sum, *torch.randn(3, rows)),
    }
    formula, *others = arguments[name]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = (torch.autograd.grad(formula(*leaves, target, *others), leaves) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, second, strict=True))


def test_every_sampled_loss_has_its_formula() -> None:
    assert list(SAMPLED_LOSSES) == [name for name, traits in LOSSES.items() if traits.negatives > 0]
