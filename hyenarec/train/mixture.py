"""After training: counts what the settings ask for, and fits how it is mixed in to the validation targets.

For each of a few scales β of the network's scores, the weights of `CountMixture` are those of the highest
likelihood; the scale is the one with the best ranking, which the likelihood, ruled by targets that are ranked
low, would not choose. A source has up to 17 weights and a gain for each channel of the hidden rows, which a
prior holds near 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from hyenarec.data import Targets
from hyenarec.data.batches import history_batches
from hyenarec.data.histories import Histories, Int64Array, ragged_indices
from hyenarec.evaluation.evaluate import Evaluation
from hyenarec.evaluation.scoring import TILE_SCORES, Places, places_of_histories, scoring_mode
from hyenarec.models.hyenarec import Encoded, SequentialModel
from hyenarec.models.mixture.count_mixture import CountMixture, Weights
from hyenarec.models.mixture.evidence import Evidence

SCALES = tuple(0.8**power for power in range(7))
"""The values of β that are tried, from 1 to 0.26."""

FIRST_STEPS, STEPS, LEARNING_RATE = 300, 100, 0.05
"""Of Adam, on all targets, for the first scale and, from its weights, the others; the rate falls to 0."""

FIRST_SHARE = 0.05
"""What a source gets of the probability, roughly, before anything is fitted."""

PRIOR = 1000.0
"""Precision of the normal prior of each gain `a`, in targets."""

MOST_TARGETS = 100_000
"""Targets that weights are fitted to."""

BATCH_SIZE = 256
TINY = 1e-30
"""Added to what may be 0 before its logarithm is taken."""


def fit_mixture(
    model: SequentialModel,
    train: Histories,
    targets: Targets,
    *,
    max_len: int,
    exclude_history: bool,
    plain: float,
    evaluate: Callable[[], Evaluation],
    metric: str,
) -> Evaluation | None:
    """Gives a trained model the mixture that its settings ask for, if it ranks better with it.

    Args:
        model: has no mixture yet.
        train: the training events, which are counted.
        targets: of the validation.
        max_len: number of latest events of a history that the model sees.
        exclude_history: whether items of the history are never recommended.
        plain: the figure of the model as it is.
        evaluate: evaluates `model` on `targets`.
        metric: the figure that decides.

    Returns:
        The evaluation with the mixture; None if there is nothing to count. If the model ranks no better with
        what is counted, that has weight 0.
    """
    mixture = model.new_mixture()
    if mixture is None:
        return None
    mixture.count(train)
    observed = observe(model, mixture, _some(targets), max_len, exclude_history)
    model.mixture = mixture
    best, best_score, evaluation = copied(mixture), plain, None
    parameters = [Parameters.first(amounts.shape[1], observed) for amounts in observed.amounts]
    for index, scale in enumerate(SCALES):
        fit(parameters, observed, index)
        mixture.scale.fill_(scale)
        for weights, fitted in zip(mixture.weights.values(), parameters, strict=True):
            fitted.store(cast(Weights, weights))
        mixed = evaluate()
        if mixed.figures[metric].mean > best_score:
            best, best_score, evaluation = copied(mixture), mixed.figures[metric].mean, mixed
    mixture.load_state_dict(best)
    return evaluate() if evaluation is None else evaluation


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _some(targets: Targets) -> Targets:
    """At most about `MOST_TARGETS` of the targets, spread evenly over the rows."""
    step = -(-len(targets.target_items) // MOST_TARGETS)
    return targets.select(np.arange(0, len(targets), step))


@dataclass(frozen=True, eq=False)
class Observed:
    """What the likelihood of n targets depends on, besides the weights; float64.

    Attributes:
        hidden: `[n, D]`, the row of the last event before each target.
        score: `[n]`, the network's score of the target.
        log_total: `[n, len(SCALES)]`, log Σ_j exp(β score[j]) over the items that may be recommended.
        amounts: for each source `[n, K]`, E of the target.
        totals: for each source `[n, K]`, Σ E.
        kept: for each source `[n, K]`, Σ E over the items that may be recommended.
    """

    hidden: Tensor
    score: Tensor
    log_total: Tensor
    amounts: list[Tensor]
    totals: list[Tensor]
    kept: list[Tensor]


def observe(
    model: SequentialModel, mixture: CountMixture, targets: Targets, max_len: int, exclude_history: bool
) -> Observed:
    """Scores the targets' histories with the network alone, and gathers what is counted after them."""
    device = model.item_bias.device
    parts: list[tuple[Tensor, Tensor, Tensor, list[tuple[Tensor, Tensor, Tensor]]]] = []
    with scoring_mode(model):
        for batch in history_batches(targets.offsets, targets.items, max_len, BATCH_SIZE):
            rows = batch.users.numpy()
            batch = batch.to(device)
            left_out = None
            if exclude_history:
                left_out = places_of_histories(rows, targets.offsets, targets.items, device)
            wanted = _wanted(targets, rows, device)
            state = model.encode(batch.items, batch.offsets)
            score, log_total = _network(model, state, wanted, left_out)
            possible = score.isfinite()  # other targets are misses, whatever the weights
            row, score = wanted.row[possible], score[possible]
            keys = row * (model.num_items + 1) + wanted.column[possible] + 1
            counted = [
                _counted(evidence, row, keys, left_out)
                for evidence in mixture.evidence(batch.items, batch.offsets)
            ]
            parts.append((state.hidden[row].double(), score, log_total[row], counted))
    hidden, score, log_total = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
    sources = zip(*(counted for *_, counted in parts), strict=True)
    joined = [tuple(torch.cat(tensors) for tensors in zip(*source, strict=True)) for source in sources]
    return Observed(hidden, score, log_total, *(list(x) for x in zip(*joined, strict=True)))


def _wanted(targets: Targets, rows: Int64Array, device: torch.device) -> Places:
    """The known targets of these rows, numbered from 0."""
    counts = targets.target_offsets[rows + 1] - targets.target_offsets[rows]
    item = targets.target_items[ragged_indices(targets.target_offsets[rows], counts)].astype(np.int64)
    row = np.repeat(np.arange(len(rows)), counts)
    order = np.argsort(item, kind="stable")
    order = order[item[order] > 0]
    return Places.of(row[order], item[order] - 1, device)


def _network(
    model: SequentialModel, state: Encoded, wanted: Places, left_out: Places | None
) -> tuple[Tensor, Tensor]:
    """Scores of the targets, -inf for those left out, and `log_total` of the rows, tile by tile."""
    device, rows = state.hidden.device, len(state.hidden)
    log_total = torch.full((rows, len(SCALES)), -torch.inf, dtype=torch.float64, device=device)
    score = torch.empty(len(wanted.row), dtype=torch.float64, device=device)
    width = max(TILE_SCORES.get(device.type, TILE_SCORES["cpu"]) // rows, 1)
    for first in range(0, model.num_items, width):
        last = min(first + width, model.num_items)
        tile = model.score_tile(state, first, last)
        if left_out is not None:
            tile = tile.index_put(left_out.index(first, last), tile.new_full((), -torch.inf))
        score[wanted.within(first, last)] = tile[wanted.index(first, last)].double()
        sums = torch.stack([(scale * tile).logsumexp(1) for scale in SCALES], 1)
        log_total = torch.logaddexp(log_total, sums.double())
    return score, log_total


def _counted(
    evidence: Evidence, row: Tensor, keys: Tensor, left_out: Places | None
) -> tuple[Tensor, Tensor, Tensor]:
    """E of targets (rows and keys `[n]`), Σ E, and Σ E without what is left out: `[n, K]` each."""
    totals = evidence.totals()
    kept = totals
    if left_out is not None:
        excluded = left_out.row * (evidence.shape[2] + 1) + left_out.column + 1
        kept = evidence.where(~torch.isin(evidence.key, excluded)).totals()
    return evidence.of(keys), totals[row], kept[row]


@dataclass(frozen=True, eq=False)
class Parameters:
    """The `Weights` of one source while they are fitted.

    Attributes:
        log_weight: log w, `[K]`.
        log_shrinkage: log κ, scalar.
        strength: a, `[D]`.
    """

    log_weight: Tensor
    log_shrinkage: Tensor
    strength: Tensor

    @staticmethod
    def first(kinds: int, observed: Observed) -> Parameters:
        """Gives the source `FIRST_SHARE` of the probability or less."""
        log_weight = math.log(FIRST_SHARE / kinds) + observed.log_total[:, 0].mean()
        zero, strength = observed.score.new_zeros(()), observed.score.new_zeros(observed.hidden.shape[1])
        return Parameters(
            log_weight.repeat(kinds).requires_grad_(), zero.requires_grad_(), strength.requires_grad_()
        )

    def store(self, weights: Weights) -> None:
        """Copies the values to the mixture."""
        weights.weight.copy_(self.log_weight.detach().exp())
        weights.shrinkage.copy_(self.log_shrinkage.detach().exp())
        weights.strength.copy_(self.strength.detach())


def fit(parameters: list[Parameters], observed: Observed, index: int) -> None:
    """Brings the parameters to the highest posterior probability with the scale `SCALES[index]`."""
    if index > 0:  # the network's share of the probability changes with the scale
        change = (observed.log_total[:, index] - observed.log_total[:, index - 1]).mean()
        for source in parameters:
            source.log_weight.data.add_(change)
    steps = STEPS if index > 0 else FIRST_STEPS
    tensors = [tensor for source in parameters for tensor in vars(source).values()]
    optimizer = torch.optim.Adam(tensors, LEARNING_RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(parameters, observed, index))
        optimizer.step()


def loss_of(parameters: list[Parameters], observed: Observed, index: int) -> Tensor:
    """Minus the log of the posterior probability, a mean over the targets, up to a constant."""
    target, everything = [SCALES[index] * observed.score], [observed.log_total[:, index]]
    prior = observed.score.new_zeros(())
    for source, amounts, totals, kept in zip(
        parameters, observed.amounts, observed.totals, observed.kept, strict=True
    ):
        each = source.log_weight.exp() / (source.log_shrinkage.exp() + totals)
        log_gain = observed.hidden @ source.strength
        target.append(log_gain + ((each * amounts).sum(1) + TINY).log())
        everything.append(log_gain + ((each * kept).sum(1) + TINY).log())
        prior = prior + PRIOR / 2 * source.strength.square().sum()
    loss = torch.stack(everything).logsumexp(0) - torch.stack(target).logsumexp(0)
    return loss.mean() + prior / len(loss)
