"""A step's own small item table: only the rows that it reads, instead of the whole catalogue's.

With a sampled loss a step uses only the items of its histories, their targets and the negatives. Their rows
are gathered once and renumbered, which makes the model one with a catalogue of just these items: the same
code runs on them, the gradient has their size, and no part of a step depends on V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec.models.sequential import SequentialModel

TABLE = ("items.weight", "item_bias")
"""The parameters whose rows belong to items, by their names in the model."""


class ItemRows:
    """The rows of some items in a model's item table, as leaves of their own autograd graph.

    Args:
        model: the owner of the table; it gets the rows' gradients from `give_gradients`.
        ids: int64 `[U]` on the model's device, ids 1..V, ascending, each once.

    Attributes:
        ids: `[U + 1]`: 0 for none, then the given ids.
        weight: `[U + 1, D]`, rows of the embedding; the first stands for no item.
        bias: `[U]`.
    """

    def __init__(self, model: SequentialModel, ids: Tensor) -> None:
        self.ids = torch.cat([ids.new_zeros(1), ids])
        self.weight = model.items.weight.detach().index_select(0, self.ids).requires_grad_()
        self.bias = model.item_bias.detach().index_select(0, ids - 1).requires_grad_()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The replacements for the model's table, by the names of `TABLE`."""
        return dict(zip(TABLE, (self.weight, self.bias), strict=True))

    def renumber(self, ids: Tensor) -> Tensor:
        """The same items by their index among these rows: 1..U, and 0 for none. All must be among them."""
        return torch.searchsorted(self.ids, ids)

    def give_gradients(self, model: SequentialModel) -> None:
        """Gives these rows' gradients to the model's table, row-sparse and in the same memory."""
        ids = self.ids[None, 1:]
        for parameter, index, leaf in (
            (model.items.weight, ids, self.weight),
            (model.item_bias, ids - 1, self.bias),
        ):
            assert leaf.grad is not None
            values = leaf.grad[-index.shape[1] :]
            # The indices are right by construction; a check would make a GPU wait.
            parameter.grad = torch.sparse_coo_tensor(
                index, values, parameter.shape, check_invariants=False, is_coalesced=True
            )
