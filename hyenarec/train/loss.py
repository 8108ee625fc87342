"""The training objective: cross-entropy over the whole catalogue or over sampled items of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hyenarec import ops
from hyenarec.config import LossConfig, LossName
from hyenarec.config.auto import settled, with_fixed
from hyenarec.data.times import Times
from hyenarec.models.lag_bias import latest_of_events
from hyenarec.models.sequential import SequentialModel
from hyenarec.train.item_rows import ItemRows
from hyenarec.train.lookahead import lead_of_the_next, targets_ahead


@dataclass(frozen=True, eq=False)
class Sample:
    """The part of the catalogue that a sampled loss uses in one step.

    Attributes:
        rows: the rows of the items that the step has as inputs, targets or negatives.
        negatives: int64 ids 1..V: `[K]`, shared by the step's events, or `[events, K]` for `bce`.
        log_q: `[U]`, log probability of each item of `rows` to be drawn; None if scores are not corrected.
    """

    rows: ItemRows
    negatives: Tensor
    log_q: Tensor | None = None


class NextItemLoss(nn.Module):
    """A model's loss as the forward of a module, which mixed precision and gradient synchronisation can wrap.

    Args:
        model: provides the hidden states and the item vectors.
        config: which loss.
    """

    def __init__(self, model: SequentialModel, config: LossConfig | None = None) -> None:
        super().__init__()
        self.model, self.config = model, with_fixed(config or LossConfig(), "loss.")
        if model.lag_bias is not None and self.config.is_sampled:
            raise ValueError(
                "model.lag_bias must be false unless the loss is the softmax, got true with "
                f"{self.config.name}"
            )
        if model.repeat_head is not None and not self.config.is_plain_softmax:
            raise ValueError(
                "model.repeat_head must be false unless the loss is the softmax without label smoothing, got "
                f"true with {self.config.name}, label_smoothing {self.config.label_smoothing}"
            )
        own_items = model.lag_bias is not None or model.repeat_head is not None
        if own_items and settled(self.config.lookahead) > 1:
            raise ValueError(
                "loss.lookahead must be 1 with model.lag_bias or model.repeat_head, which tell the next item "
                f"from later ones, got {self.config.lookahead}"
            )

    def forward(
        self,
        items: Tensor,
        offsets: Tensor | None,
        targets: Tensor,
        sample: Sample | None = None,
        times: Times | None = None,
    ) -> Tensor:
        """Sum of the loss over all positions with a target; targets of 0 are ignored.

        Packed batches have a target at every position; with padding, scores are computed and then ignored.
        Under autocast, hidden states and item vectors are rounded to its dtype for the products only.

        Args:
            items: int64, `[B, L]` or packed `[total]`, as the model takes them.
            offsets: int64 `[B + 1]` of packed sequences.
            targets: int64 like `items`, the item that came next, 1..V, or 0.
            sample: for a sampled loss only; its rows then receive the gradients of the item table.
            times: of events and questions, like `items`, for a model that uses them.

        Returns:
            A scalar, at least float32.

        Raises:
            ValueError: if `sample` is missing, or the loss is `softmax` and there is one.
        """
        config = self.config
        if (sample is not None) != config.is_sampled:
            given = "none" if sample is None else "one"
            raise ValueError(
                f"sample must be given for every loss but softmax, got {given} for {config.name}"
            )
        if sample is None:
            return self._over_all_items(items, offsets, targets, times)
        rows = sample.rows
        arguments = (rows.renumber(items), offsets, _events(times))
        hidden = self._answers(functional_call(self.model, rows.parameters, arguments), times)
        target, negatives = (rows.renumber(ids) - 1 for ids in (targets.flatten(), sample.negatives))
        compared = Comparison(hidden, rows.weight[1:], rows.bias, target, negatives, sample.log_q)
        return SAMPLED_LOSSES[settled(config.name)](compared, config, self.model.num_items)

    def _over_all_items(
        self, items: Tensor, offsets: Tensor | None, targets: Tensor, times: Times | None
    ) -> Tensor:
        hidden = self._answers(self.model(items, offsets, _events(times)), times)
        arguments = (hidden, self.model.item_weight, self.model.item_bias, targets.flatten() - 1)
        lag_bias, repeats = self.model.lag_bias, self.model.repeat_head
        lookahead = settled(self.config.lookahead)
        if lag_bias is None and repeats is None and lookahead == 1:
            return softmax_sum(*arguments, self.config)
        if offsets is None:
            offsets = torch.arange(len(items) + 1, device=items.device) * items.shape[1]
        if lookahead > 1:
            lead = lead_of_the_next(*arguments[:3], *targets_ahead(targets.flatten(), offsets, lookahead))
            return softmax_sum(*arguments, self.config) + (1 - self.config.label_smoothing) * lead
        items, adjusted = items.flatten(), None
        if lag_bias is not None:
            flat = None if times is None else Times(times.events.flatten(), times.asked.flatten())
            latest = latest_of_events(items, offsets, self.model.in_seconds(flat))
            adjusted = Adjusted(latest.columns, lag_bias(latest))
        if repeats is None:
            return softmax_sum(*arguments, self.config, adjusted=adjusted)
        of_targets = repeats.of_targets(items, offsets, targets.flatten())
        return mixture_sum(*arguments, repeats.log_gain(hidden), *of_targets, adjusted=adjusted)

    def _answers(self, rows: Tensor, times: Times | None) -> Tensor:
        """The rows `[M, D]` of which scores are made."""
        rows = rows.flatten(0, -2)
        return rows if times is None else self.model.ask(rows, times.events.flatten(), times.asked.flatten())


def _events(times: Times | None) -> Tensor | None:
    return None if times is None else times.events


@dataclass(frozen=True, eq=False)
class Comparison:
    """The events of a step and the items that a sampled loss compares them with.

    Attributes:
        hidden: `[M, D]`, one row an event.
        weight: `[U, D]`, one row an item of the sample.
        bias: `[U]`.
        target: `[M]` int64, the row of `weight` that came next; an event with -1 is left out.
        negatives: int64 rows of `weight`: `[K]`, shared by all events, or `[M, K]`.
        log_q: `[U]`, log probability of each row to be drawn; None if scores are not corrected.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    target: Tensor
    negatives: Tensor
    log_q: Tensor | None


def sampled_softmax(compared: Comparison, config: LossConfig, num_items: int) -> Tensor:
    """Cross-entropy over each target and the shared negatives."""
    rows = (compared.hidden, compared.weight, compared.bias, compared.target)
    return softmax_sum(*rows, config, candidates=compared.negatives, log_q=compared.log_q)


def bce(compared: Comparison, config: LossConfig, num_items: int) -> Tensor:
    """SASRec's binary cross-entropy."""
    rows = (compared.hidden, compared.weight, compared.bias, compared.target)
    return binary_cross_entropy_sum(*rows, compared.negatives)


def gbce(compared: Comparison, config: LossConfig, num_items: int) -> Tensor:
    """GSASRec's generalised binary cross-entropy, as a mean over the target and its negatives."""
    count = len(compared.negatives)
    rows = (compared.hidden, compared.weight, compared.bias, compared.target)
    beta = gbce_beta(count, num_items, config.calibration)
    return binary_cross_entropy_sum(*rows, compared.negatives, beta) / (count + 1)


SAMPLED_LOSSES: dict[LossName, Callable[[Comparison, LossConfig, int], Tensor]] = {
    "sampled_softmax": sampled_softmax,
    "bce": bce,
    "gbce": gbce,
}
"""The formula of each sampled loss; the last argument is V, the size of the catalogue."""


class Adjusted(NamedTuple):
    """Scores to which something is added, as `ops.linear_cross_entropy` has them.

    Attributes:
        columns: `[M, K]` int64, -1 for none.
        amounts: `[M, K]`.
    """

    columns: Tensor
    amounts: Tensor

    def of(self, target: Tensor) -> Tensor:
        """What is added to the scores of the targets, `[M]`."""
        return self.amounts.masked_fill(self.columns != target[:, None], 0).sum(1)


def softmax_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    config: LossConfig,
    candidates: Tensor | None = None,
    log_q: Tensor | None = None,
    reduction: str = "sum",
    adjusted: Adjusted | None = None,
) -> Tensor:
    """`ops.linear_cross_entropy`, summed, with products in autocast's dtype; arguments as it has them."""
    if torch.is_autocast_enabled(hidden.device.type):
        half = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(half), weight.to(half)
    return ops.linear_cross_entropy(
        hidden,
        weight,
        bias,
        target,
        candidates=candidates,
        log_q=log_q,
        label_smoothing=config.label_smoothing,
        reduction=reduction,
        adjusted=None if adjusted is None else adjusted.columns,
        adjustment=None if adjusted is None else adjusted.amounts,
    )


def mixture_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    log_gain: Tensor,
    log_repeats: Tensor,
    log_all_repeats: Tensor,
    adjusted: Adjusted | None = None,
) -> Tensor:
    """Cross-entropy, summed, of scores to which a `RepeatHead` adds.

    -log p = log(Σ exp(score) + g Σ A) - log(exp(score[target]) + g A[target]).

    Args:
        hidden: `[M, D]`, with the three arguments after it as `ops.linear_cross_entropy` takes them.
        weight: `[V, D]`.
        bias: `[V]`.
        target: `[M]`; rows with -1 are left out.
        log_gain: `[M]`, how much repeats count.
        log_repeats: `[M]`, log A of the targets, which may be -inf.
        log_all_repeats: `[M]`, log Σ A, over all items.
        adjusted: what else is added to some scores.

    Returns:
        A scalar, at least float32.
    """
    loss = softmax_sum(
        hidden, weight, bias, target, LossConfig(name="softmax"), reduction="none", adjusted=adjusted
    )
    rows = F.embedding(target.clamp(min=0), weight)
    score = (hidden * rows).sum(-1, dtype=loss.dtype) + gathered(bias, target)
    if adjusted is not None:
        score = score + adjusted.of(target)
    repeats, everything = log_gain + log_repeats, log_gain + log_all_repeats
    loss = torch.logaddexp(loss + score, everything) - torch.logaddexp(score, repeats)
    return loss.masked_fill(target < 0, 0).sum()


def binary_cross_entropy_sum(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, negatives: Tensor, beta: float = 1.0
) -> Tensor:
    """Sum over the events of `-beta log p(target) - sum log(1 - p(negative))`, p being the score's sigmoid.

    A negative that is the event's target is left out; one that was drawn twice counts twice. Memory is
    O(M K), for negatives of each event's own O(M K D).

    Args:
        hidden: `[M, D]`, one row an event.
        weight: `[V, D]`, one row an item.
        bias: `[V]`.
        target: `[M]` int64, the row of `weight` that came next, in `[0, V)`; an event with -1 is left out.
        negatives: int64 in `[0, V)`: `[K]`, shared by all events, or `[M, K]`.
        beta: weight of the targets; `gbce_beta` gives gBCE's.

    Returns:
        A scalar, at least float32.

    Source: Kang and McAuley, "Self-attentive sequential recommendation", ICDM 2018, for one negative an
    event and a beta of 1. (There it is none of the user's items; here it is another than the target.)
    """
    positive = (hidden * F.embedding(target.clamp(min=0), weight)).sum(-1) + gathered(bias, target)
    if negatives.dim() == 1:
        scores = torch.addmm(gathered(bias, negatives), hidden, F.embedding(negatives, weight).t())
    else:
        scores = (F.embedding(negatives, weight) @ hidden[..., None]).squeeze(-1) + gathered(bias, negatives)
    loss = F.softplus(scores).masked_fill(negatives == target[:, None], 0).sum(-1)
    loss = loss + beta * F.softplus(-positive)
    return loss.masked_fill(target < 0, 0).sum()


def gathered(bias: Tensor, target: Tensor) -> Tensor:
    """`bias[target]`, any number where the target is -1.

    Indexing would sum up the gradients of many targets in an order of chance, with several threads.
    """
    return F.embedding(target.clamp(min=0), bias[:, None]).squeeze(-1)


def gbce_beta(negatives: int, num_items: int, calibration: float) -> float:
    """The power of the target's probability in gBCE, 1 - t (1 - a) for a sampling rate of a.

    Args:
        negatives: number of negatives that an event is compared with.
        num_items: V; a is `negatives / (V - 1)`, the share of the other items, 1 at most.
        calibration: t, from 0 (plain binary cross-entropy) to 1 (the power is a: fully calibrated).

    Source: Petrov and Macdonald, "gSASRec: reducing overconfidence in sequential recommendation trained with
    negative sampling", RecSys 2023.
    """
    return 1 - calibration * (1 - min(negatives / max(num_items - 1, 1), 1))
