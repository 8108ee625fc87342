"""After training: counts what the settings ask for, and fits to the validation how it is mixed in.

For each of a few scales β of the network's scores, the weights of `CountMixture` are those of the highest
likelihood of the validation targets; a prior holds the D strengths of a source, and the shifts, near 0. The
scale is the one with the best ranking, which the likelihood, ruled by targets that are ranked low, would not
choose. Each half of the targets is ranked with the weights of the other half: a few targets can be fitted
well by weights that help no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hyenarec.data import Targets
from hyenarec.data.histories import Histories
from hyenarec.evaluation.evaluate import Evaluation
from hyenarec.models.mixture.count_mixture import CountMixture
from hyenarec.models.sequential import SequentialModel
from hyenarec.train.observed import SCALES, Observed, Scaled, observe

FIRST_STEPS, STEPS, LEARNING_RATE = 300, 100, 0.05
"""Of Adam, on all targets, for the first scale and, from its weights, the others; the rate falls to 0."""

FIRST_SHARE = 0.05
"""What a source gets of the probability, roughly, before anything is fitted."""

PRIOR = 1000.0
"""Precision of the normal prior of each strength, in targets."""

SHIFT_PRIOR = 10.0
"""Precision of the normal prior of each shift, likewise."""

MOST_TARGETS = 100_000
"""Rows whose targets weights are fitted to, about."""

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
    evaluate: Callable[[Targets], Evaluation],
    metric: str,
) -> float | None:
    """Gives a trained model the mixture that its settings ask for, if it ranks better with it.

    In distributed training all processes do the same.

    Args:
        model: has no mixture.
        train: the training events, which are counted.
        targets: of the validation.
        max_len: number of latest events of a history that the model sees.
        exclude_history: whether items of the history are never recommended.
        plain: the figure of the model without counts.
        evaluate: evaluates `model` on some of the targets.
        metric: the figure that decides.

    Returns:
        The figure with the mixture, each half of the targets with weights fitted to the other half; None if
        the model stays without one.
    """
    mixture = model.new_mixture()
    if mixture is None or len(targets) < 2:
        return None
    mixture.count(train)
    order = np.random.default_rng(0).permutation(len(targets))
    halves = [targets.select(np.sort(half)) for half in np.array_split(order, 2)]
    observed = [observe(model, mixture, _some(half), max_len, exclude_history) for half in halves]
    if not all(map(len, observed)):
        return None
    model.mixture = mixture
    parameters = [Parameters.first(half) for half in observed]
    figures = []
    for index in range(len(SCALES)):
        figure = 0.0
        for fitted, other in ((0, 1), (1, 0)):
            network = observed[fitted].scaled(index)
            fit(parameters[fitted], observed[fitted], network, STEPS if index > 0 else FIRST_STEPS)
            store(parameters[fitted], network, mixture)
            figure += evaluate(halves[other]).figures[metric].mean * len(halves[other]) / len(targets)
        figures.append(figure)
    best = int(np.argmax(figures))
    if figures[best] <= plain:
        model.mixture = None
        return None
    everything = Observed.joined(observed)
    final = Parameters.first(everything)
    network = everything.scaled(best)
    fit(final, everything, network, FIRST_STEPS)
    store(final, network, mixture)
    return figures[best]


def _some(targets: Targets) -> Targets:
    """At most about half of `MOST_TARGETS` rows, spread evenly."""
    return targets.select(np.arange(0, len(targets), -(-2 * len(targets) // MOST_TARGETS)))


@dataclass(frozen=True, eq=False)
class Parameters:
    """The `Weights` of one source while they are fitted.

    Attributes:
        log_weight: log w, `[K]`.
        log_shrinkage: log κ, scalar.
        strength: a, `[D]`.
        shift: b, `[len(bins)]`.
    """

    log_weight: Tensor
    log_shrinkage: Tensor
    strength: Tensor
    shift: Tensor

    @staticmethod
    def first(observed: Observed) -> list[Parameters]:
        """Gives each source `FIRST_SHARE` of the probability or less, nothing to kinds without evidence."""
        parameters = []
        for amounts, bins in zip(observed.amounts, observed.bins, strict=True):
            log_weight = amounts.new_full(amounts.shape[1:], math.log(FIRST_SHARE / amounts.shape[1]))
            log_weight = log_weight.masked_fill(amounts.sum(0) == 0, -math.inf)
            zeros = (amounts.new_zeros(n) for n in ((), observed.hidden.shape[1], bins))
            parameters.append(Parameters(*(tensor.requires_grad_() for tensor in (log_weight, *zeros))))
        return parameters


def store(parameters: list[Parameters], network: Scaled, mixture: CountMixture) -> None:
    """Copies fitted parameters to the mixture."""
    mixture.scale.fill_(network.scale)
    mixture.offset.copy_(network.offset)
    of_sources = zip(mixture.each_source(), mixture.each_weights(), parameters, strict=True)
    for counted, weights, source in of_sources:
        weights.weight.copy_(source.log_weight.detach().exp())
        weights.shrinkage.copy_(source.log_shrinkage.detach().exp())
        weights.strength.copy_(source.strength.detach())
        weights.shift[counted.bins.start : counted.bins.stop] = source.shift.detach()


def fit(parameters: list[Parameters], observed: Observed, network: Scaled, steps: int) -> None:
    """Brings the parameters to the highest posterior probability with the network at that scale."""
    tensors = [tensor for source in parameters for tensor in vars(source).values()]
    optimizer = torch.optim.Adam(tensors, LEARNING_RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(parameters, observed, network))
        optimizer.step()


def loss_of(parameters: list[Parameters], observed: Observed, network: Scaled) -> Tensor:
    """Minus the log of the posterior probability, a mean over the targets, up to a constant."""
    shift = shift_of_cells(parameters)
    log_total = network.log_total + (network.shares @ shift.exp() + TINY).log()
    target, everything = [network.score + shift[observed.cell]], [log_total[observed.row]]
    prior = shift.new_zeros(())
    sources = zip(parameters, observed.amounts, observed.totals, observed.kept, strict=True)
    for source, amounts, totals, kept in sources:
        each = source.log_weight.exp() / (source.log_shrinkage.exp() + totals)
        log_gain = observed.hidden @ source.strength
        target.append(log_gain + ((each * amounts).sum(1) + TINY).log())
        everything.append(log_gain + ((each * kept).sum(1) + TINY).log())
        prior = prior + PRIOR / 2 * source.strength.square().sum()
        prior = prior + SHIFT_PRIOR / 2 * source.shift.square().sum()
    loss = torch.stack(everything).logsumexp(0) - torch.stack(target).logsumexp(0)
    return loss.mean() + prior / len(loss)


def shift_of_cells(parameters: list[Parameters]) -> Tensor:
    """The sum of the shifts of each cell's bins, `[cells]`."""
    total = parameters[0].shift.new_zeros(1)
    for source in parameters:
        of_bins = torch.cat([source.shift, source.shift.new_zeros(1)])  # the last is that of no bin
        total = (total[:, None] + of_bins).flatten()
    return total
