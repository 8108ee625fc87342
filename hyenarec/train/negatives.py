"""Negatives: the items drawn for each step that a sampled loss compares the targets with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyenarec.config import LossConfig
from hyenarec.data.histories import Histories


class Negatives:
    """The negatives of every step, drawn with replacement and determined by (seed, epoch, step).

    So a run resumes exactly, and all processes draw the same ones without communicating. A draw costs the
    same at any size of the catalogue; one by popularity is the item of a random training event. A negative
    may happen to be an event's target; the loss then leaves it out.

    Args:
        train: the training histories, without unknown items.
        config: number and distribution of the negatives.
        seed: any integer >= 0.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self, train: Histories, config: LossConfig, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._train, self._config, self._seed = train, config, seed
        self._rank, self._world_size = rank, world_size
        self._log_q: Tensor | None = None
        if config.traits.softmax and config.negative_distribution == "popularity" and config.logq:
            counts = torch.from_numpy(np.bincount(train.items, minlength=train.num_items + 1)).double()
            self._log_q = (counts / counts.sum()).log().float()

    def draw(self, epoch: int, step: int, events: int) -> Tensor:
        """The negatives of a step for all processes, int64 ids 1..V.

        Args:
            epoch: counted from 0.
            step: of the epoch, counted from 0.
            events: number of the step's targets, over all processes.

        Returns:
            `[K]`, shared by the step's events, or `[events, K]` for `bce`.
        """
        # The key separates these draws from those of the order of the windows, which have the same seed.
        seed = np.random.SeedSequence([self._seed, epoch, step], spawn_key=(1,))
        generator = np.random.Generator(np.random.Philox(seed))
        count = self._config.num_negatives
        shape = (events, count) if self._config.traits.per_event else (count,)
        if self._config.negative_distribution == "uniform":
            return torch.from_numpy(generator.integers(1, self._train.num_items + 1, size=shape))
        drawn = generator.integers(len(self._train.items), size=shape)
        return torch.from_numpy(self._train.items[drawn].astype(np.int64))

    def share(self, drawn: Tensor, events: int) -> Tensor:
        """The share of a step's negatives for this process's `events`: `[K]` or `[events, K]`.

        Shared negatives go to every process. Of those for each event, the processes take every n-th in turn;
        a process with more events than that starts over.
        """
        if drawn.dim() == 1:
            return drawn
        return drawn[(torch.arange(events) * self._world_size + self._rank) % len(drawn)]

    def log_q(self, ids: Tensor) -> Tensor | None:
        """Log probability of each item to be drawn; None if scores are not corrected for it."""
        return None if self._log_q is None else self._log_q[ids]
