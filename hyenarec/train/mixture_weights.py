"""The weights of a `CountMixture` that are most probable, given what came after some histories.

They make each target likely among its `Candidates`; priors hold the shifts near 0, and all else loosely where
it begins. Targets that neither the network nor a source ranks high are none of the candidates: the likelihood
would be ruled by them, though nothing can rank them high.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hyenarec.models.mixture.count_mixture import CountMixture
from hyenarec.train.candidates import Candidates

ITERATIONS = 100
"""Of L-BFGS, at most."""

FIRST_SHARE = 0.05
"""What a source gets of the probability, roughly, before anything is fitted."""

PRIOR = 30.0
"""Precision of the normal prior of each shift, in targets."""

LOOSE_PRIOR = 0.1
"""The same of all else, around where it begins: a few targets may want a weight to be infinite."""

LARGEST_LOG = 20.0
"""Of β, w and κ. Steps that are tried on the way may be far too long."""

TINY = 1e-30
"""Added to what may be 0 before its logarithm is taken."""


@dataclass(frozen=True, eq=False)
class OfSource:
    """The `Weights` of one source while they are fitted.

    Attributes:
        log_weight: log w, `[K]`.
        log_shrinkage: log κ, scalar.
        shift: b, `[2, K]`.
    """

    log_weight: Tensor
    log_shrinkage: Tensor
    shift: Tensor

    @property
    def weight(self) -> Tensor:
        """The weights w, `[K]`."""
        return self.log_weight.clamp(max=LARGEST_LOG).exp()

    @property
    def shrinkage(self) -> Tensor:
        """The amount κ."""
        return self.log_shrinkage.clamp(max=LARGEST_LOG).exp()


@dataclass(frozen=True, eq=False)
class Parameters:
    """What is fitted.

    Attributes:
        log_scale: log β, scalar: β < 0 would lift what is none of the candidates above them.
        offset: what comes to c besides β times `center`, scalar.
        sources: the weights of each source.
        center: what makes the network's probabilities, among the candidates, sum up to about 1 at first;
            not fitted.
    """

    log_scale: Tensor
    offset: Tensor
    sources: list[OfSource]
    center: Tensor

    @staticmethod
    def first(mixture: CountMixture, candidates: Candidates) -> Parameters:
        """The network as it is, and `FIRST_SHARE` or less for each source, of kinds that are there."""
        zero, sources = candidates.score.new_zeros(()), []
        for source, counted in zip(mixture.each_source(), candidates.counted, strict=True):
            absent = torch.bincount(counted.kind, minlength=source.kinds) == 0
            log_weight = zero.expand(source.kinds) + _first_log_weight(source.kinds)
            shift = zero.expand(2, source.kinds).clone()
            sources.append(OfSource(log_weight.masked_fill(absent, -math.inf), zero.clone(), shift))
        center = candidates.log_totals(candidates.score)[candidates.row[candidates.target]].mean()
        return Parameters(zero.clone(), zero.clone(), sources, center)

    @property
    def scale(self) -> Tensor:
        """The scale β."""
        return self.log_scale.clamp(max=LARGEST_LOG).exp()

    def tensors(self) -> list[Tensor]:
        """All that is fitted."""
        return [self.log_scale, self.offset, *(x for source in self.sources for x in vars(source).values())]

    def penalty(self) -> Tensor:
        """Minus the log of the prior probability, up to a constant."""
        total = LOOSE_PRIOR / 2 * (self.log_scale.square() + self.offset.square())
        for weights in self.sources:
            log_weight = weights.log_weight[weights.log_weight > -math.inf]
            loose = (log_weight - _first_log_weight(len(weights.log_weight))).square().sum()
            loose = loose + weights.log_shrinkage.square()
            total = total + LOOSE_PRIOR / 2 * loose + PRIOR / 2 * weights.shift.square().sum()
        return total

    def scores(self, candidates: Candidates) -> Tensor:
        """The mixed scores of the candidates, `[n]`."""
        network = self.scale * (candidates.score - self.center) - self.offset
        counts = torch.zeros_like(network)
        for weights, counted in zip(self.sources, candidates.counted, strict=True):
            shift = weights.shift[counted.own, counted.kind] * counted.feature
            network = network.index_add(0, counted.place, shift)
            shares = counted.amount / (weights.shrinkage + counted.total)
            each = weights.weight[counted.kind] * shares
            counts = counts.index_add(0, counted.place, each)
        return torch.logaddexp(network, (counts + TINY).log())

    @torch.no_grad()
    def store(self, mixture: CountMixture) -> None:
        """Copies the parameters to the mixture."""
        mixture.scale.copy_(self.scale)
        mixture.offset.copy_(self.scale * self.center + self.offset)
        for weights, fitted in zip(mixture.each_weights(), self.sources, strict=True):
            weights.weight.copy_(fitted.weight)
            weights.shrinkage.copy_(fitted.shrinkage)
            weights.shift.copy_(fitted.shift)


def _first_log_weight(kinds: int) -> float:
    """Log w of each kind before anything is fitted."""
    return math.log(FIRST_SHARE / kinds)


def fit(mixture: CountMixture, candidates: Candidates) -> Parameters:
    """The parameters of the highest posterior probability."""
    parameters = Parameters.first(mixture, candidates)
    tensors = [tensor.requires_grad_() for tensor in parameters.tensors()]
    optimizer = torch.optim.LBFGS(
        tensors, max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(parameters, candidates)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return parameters


def loss_of(parameters: Parameters, candidates: Candidates) -> Tensor:
    """Minus the log of the posterior probability, a mean over the targets, up to a constant."""
    scores, target = parameters.scores(candidates), candidates.target
    log_probability = scores[target] - candidates.log_totals(scores)[candidates.row[target]]
    return parameters.penalty() / len(candidates) - log_probability.mean()
