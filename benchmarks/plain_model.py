"""HyenaRec as one would train it in plain torch: padded, with conv1d, torch.fft and cross_entropy."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenarec import reference
from hyenarec.data import Batch
from hyenarec.models.hyenarec import HyenaRec, Mixer, Padding


class PlainMixer(nn.Module):
    """What a mixer of order 2 with a Legendre kernel computes, with that mixer's own parameters.

    Between the projections channels come before time, as `conv1d` and `torch.fft` like it best.
    """

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer = mixer
        kernel = mixer.convs[0].kernel
        eye = torch.eye(kernel.coeffs.shape[1], dtype=torch.float64)
        table = reference.legendre_kernel(eye, torch.zeros(len(eye)), kernel.horizon, kernel.horizon)
        self.register_buffer("polynomials", table.to(kernel.coeffs.dtype))

    def forward(self, x: Tensor, offsets: None, padding: None) -> Tensor:
        """`x` `[B, L, D]`; the rest is for packed batches."""
        mixer, length = self.mixer, x.shape[1]
        conv = mixer.convs[0]
        weight = mixer.short_weight.flip(-1)[:, None]  # conv1d's last tap is the present
        x = F.pad(mixer.in_proj(x).mT, (weight.shape[-1] - 1, 0))
        q, k, v = F.conv1d(x, weight, mixer.short_bias, groups=len(weight)).chunk(3, dim=1)
        lag = torch.arange(length)
        kernel = torch.exp(-conv.kernel.decay[:, None] * lag) * (
            conv.kernel.coeffs @ self.polynomials[:, :length]
        )
        z = k * v
        spectrum = torch.fft.rfft(z, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + conv.skip[:, None] * z
        return mixer.out_proj((q * y).mT)


class PlainLoss(nn.Module):
    """A copy of a model with plain mixers, and its loss from all scores at every event.

    What lies between its branches is ours, which is faster than torch's dropout, addition and norm. Scores of
    padding are left out before they are computed.
    """

    def __init__(self, model: HyenaRec) -> None:
        super().__init__()
        self.model = deepcopy(model)
        for block in self.model.blocks:
            block.mixer = PlainMixer(block.mixer)

    def forward(self, items: Tensor, targets: Tensor) -> Tensor:
        """The sum over the targets; both `[B, L]`, padded with zeros on the right."""
        is_event = targets > 0
        hidden = self.model(items)[is_event]
        scores = F.linear(hidden, self.model.item_weight, self.model.item_bias)
        return F.cross_entropy(scores, targets[is_event] - 1, reduction="sum")


def padded(batch: Batch) -> tuple[Tensor, Tensor]:
    """A packed batch's items and targets, `[B, L]` each, with zeros behind each sequence's end."""
    padding = Padding.around(batch.offsets, len(batch.items))
    items, targets = padding.pad(torch.stack([batch.items, batch.targets], dim=1)).unbind(2)
    return items.contiguous(), targets.contiguous()
