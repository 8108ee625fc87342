"""After training: the row of an empty history, from which new users get their recommendations.

What a learned token before each history would make of an empty one is a constant row. Here it is found by
itself: the row that gives the first events of the training histories the highest likelihood under the
softmax, with the trained item vectors, the trained answer to the moment's question where time is known, and
the normal prior of variance 1 that a normalised row has. Training stays as it is, and as fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hyenarec.data.histories import Histories, Int64Array
from hyenarec.data.times import HOUR, HOURS_OF_WEEK, hour_of_week, in_seconds
from hyenarec.evaluation.scoring import tile_width
from hyenarec.models.sequential import SequentialModel
from hyenarec.transfer import to_device

MOST_STEPS = 100
"""Of L-BFGS, which usually needs twenty."""


def fit_start(model: SequentialModel, train: Histories) -> None:
    """Gives a trained model the row of an empty history, `start`.

    In distributed training all processes do the same. A model keeps none if nothing is known of first events.

    Args:
        model: in evaluation mode.
        train: the training events, with timestamps if the model uses time.
    """
    events = train.offsets[:-1][train.lengths > 0]
    events = events[train.items[events] > 0]
    if len(events) == 0:
        return
    beginnings = Beginnings.of(model, train, events)
    row = model.item_weight.new_zeros(model.item_weight.shape[1]).requires_grad_()
    optimizer = torch.optim.LBFGS([row], max_iter=MOST_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss, row.grad = beginnings.loss(model, row)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    model.start = row.detach()


@dataclass(frozen=True, eq=False)
class Beginnings:
    """The first events of histories, by the hour of the week; all in one hour where time is not known.

    Attributes:
        seconds: int64 `[H]`, a moment of each hour.
        count: `[H]`, how many there are.
        items: `[H, D]`, the sum of their items' vectors.
    """

    seconds: Tensor
    count: Tensor
    items: Tensor

    @staticmethod
    def of(model: SequentialModel, train: Histories, events: Int64Array) -> Beginnings:
        """Of the events at these places of the training events."""
        unit, weight = model.config.time_unit, model.item_weight.detach()
        hours, number = np.zeros(len(events), np.int64), 1
        if unit is not None and train.timestamps is not None:
            hours, number = hour_of_week(in_seconds(train.timestamps[events], unit)), HOURS_OF_WEEK
        hour, item = (
            to_device(torch.from_numpy(ids), weight.device)
            for ids in (hours, train.items[events].astype(np.int64))
        )
        vectors = weight.index_select(0, item - 1)
        return Beginnings(
            seconds=torch.arange(number, device=weight.device) * HOUR,
            count=weight.new_zeros(number).index_add(0, hour, torch.ones_like(vectors[:, 0])),
            items=weight.new_zeros(number, weight.shape[1]).index_add(0, hour, vectors),
        )

    def loss(self, model: SequentialModel, row: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the log of the posterior probability of `row` `[D]`, up to a constant, and its gradient.

        Both are divided by the number of events. Of the scores, one tile exists at a time.
        """
        weight, bias = model.item_weight.detach(), model.item_bias.detach()
        rows = row.expand(len(self.count), -1)
        if model.uses_time:
            nothing_before = torch.full_like(self.seconds, -1)
            rows = model.answer(rows, self.seconds, nothing_before)
        leaf = rows.detach().requires_grad_()
        loss = (row.detach().square().sum() / 2).clone()
        height = tile_width(len(bias), row.device)  # tiles of some hours, each with all items
        parts = (torch.split(tensor, height) for tensor in (leaf, self.count, self.items))
        for hour, count, items in zip(*parts, strict=True):
            part = (count * torch.addmm(bias, hour, weight.t()).logsumexp(1)).sum() - (hour * items).sum()
            torch.autograd.backward(part, inputs=[leaf])
            loss += part.detach()
        assert leaf.grad is not None
        (gradient,) = torch.autograd.grad(rows, row, leaf.grad)
        events = self.count.sum()
        return loss / events, (gradient + row.detach()) / events
