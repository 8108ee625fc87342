"""A step's own small item table: the rows that it reads, in place of the whole catalogue's.

Where the loss is sampled, a step meets the items of its histories, their targets and the negatives, and no
others. Taken once, with ids that count within them, they make of the model one with a catalogue of just these
items: the same code runs on them, the gradient is as large as they are, and no part of a step depends on V.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec.models.hyenarec import SequentialModel

TABLE = ("items.weight", "item_bias")
"""The parameters whose rows belong to items, by their names in the model."""


class ItemRows:
    """The rows of a model's item table that belong to some items, as leaves of a graph of their own.

    Args:
        model: whose table they are taken from; its gradients are the rows' only after `give_gradients`.
        ids: int64 `[U]` on the model's device, ids 1..V, ascending, each once.

    Attributes:
        ids: `[U + 1]`: 0 for none, then the given ids.
        weight: `[U + 1, D]`, rows of the embedding; the first is none's.
        bias: `[U]`.
    """

    def __init__(self, model: SequentialModel, ids: Tensor) -> None:
        self.ids = torch.cat([ids.new_zeros(1), ids])
        self.weight = model.items.weight.detach().index_select(0, self.ids).requires_grad_()
        self.bias = model.item_bias.detach().index_select(0, ids - 1).requires_grad_()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What stands in the place of the model's table, by the names of `TABLE`."""
        return dict(zip(TABLE, (self.weight, self.bias), strict=True))

    def renumber(self, ids: Tensor) -> Tensor:
        """The same items by their place among these rows: 1..U, and 0 for none. All must be among them."""
        return torch.searchsorted(self.ids, ids)

    def give_gradients(self, model: SequentialModel) -> None:
        """Makes these rows' gradients those of the model's table: row-sparse ones, in the same memory."""
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
