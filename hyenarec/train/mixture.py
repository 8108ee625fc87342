"""After training: counts what the settings ask for, and mixes it in if the validation ranks better with it.

Each half of the validation targets is ranked with the weights of the other half: a few targets can be fitted
well by weights that help no others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hyenarec.data import Targets
from hyenarec.data.histories import Histories
from hyenarec.evaluation.evaluate import Evaluation
from hyenarec.models.sequential import SequentialModel
from hyenarec.train.candidates import Candidates, candidates_of
from hyenarec.train.mixture_weights import fit

MOST_ROWS = 10_000
"""Histories whose targets weights are fitted to, about."""


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
    candidates = [candidates_of(model, mixture, _some(half), max_len, exclude_history) for half in halves]
    if not all(map(len, candidates)):
        return None
    model.mixture, figure = mixture, 0.0
    for fitted, other in ((0, 1), (1, 0)):
        fit(mixture, candidates[fitted]).store(mixture)
        figure += evaluate(halves[other]).figures[metric].mean * len(halves[other]) / len(targets)
    if figure <= plain:
        model.mixture = None
        return None
    fit(mixture, Candidates.joined(candidates)).store(mixture)
    return figure


def _some(targets: Targets) -> Targets:
    """At most about half of `MOST_ROWS` rows, spread evenly."""
    return targets.select(np.arange(0, len(targets), -(-2 * len(targets) // MOST_ROWS)))
