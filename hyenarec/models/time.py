"""Time as an input: of each event, and of the question what comes next.

    x    = ... + gap[t_i - t_{i-1}] + hour[t_i] + weekday[t_i]                       of event i, at t_i
    rows = norm(rows + dropout(W2 gelu(W1 rows + gap[t - t_i] + hour[t] + weekday[t])))     asked at t

Gaps are known to a power of two. The question comes after the blocks, so that training stays parallel, a
stream stays of constant size, and one history can be asked at many moments.

Source: intervals as buckets of powers of two are those of Zhai et al., "Actions speak louder than words:
trillion-parameter sequential transducers for generative recommendations" (HSTU), ICML 2024, where they bias
attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyenarec.data.times import DAY, HOUR
from hyenarec.models.dropout import Dropout
from hyenarec.models.layers import embedding, linear

GAPS = 31
"""No event before, no time at all, then powers of two from one second to 2^28, eight years and a half."""


AGES = (0, *(4**power for power in range(14)))
"""Seconds at which bins of ages begin; the last one has no end."""


class Moment(nn.Module):
    """What a moment means: its hour, its weekday, and how long ago the event before it was.

    Args:
        dim: channels.
    """

    bounds: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gap, self.hour, self.weekday = (embedding(rows, dim) for rows in (GAPS, 24, 7))
        bounds = torch.tensor([0, *(2**power for power in range(GAPS - 2))])
        self.register_buffer("bounds", bounds, persistent=False)

    def forward(self, seconds: Tensor, since: Tensor) -> Tensor:
        """Rows `[..., dim]`.

        Args:
            seconds: int64 `[...]`, the moments.
            since: int64 `[...]`, seconds since the event before; negative if there is none.
        """
        gap = self.gap(torch.bucketize(since, self.bounds, right=True))
        row: Tensor = gap + self.hour(seconds // HOUR % 24) + self.weekday(seconds // DAY % 7)
        return row


class Question(nn.Module):
    """Turns the rows of events into the answers to what comes at a moment, of which scores are made.

    Args:
        dim: D.
        multiple: inner channels, in units of D.
        dropout: probability.
    """

    def __init__(self, dim: int, multiple: int, dropout: float) -> None:
        super().__init__()
        self.moment = Moment(multiple * dim)
        self.in_proj, self.out_proj = linear(dim, multiple * dim), linear(multiple * dim, dim)
        self.norm, self.dropout = nn.LayerNorm(dim), Dropout(dropout)
        with torch.no_grad():
            self.moment.gap.weight[0].zero_()  # of new users' questions, which no training event asks

    def forward(self, rows: Tensor, seconds: Tensor, since: Tensor) -> Tensor:
        """Rows `[M, D]` of events -> `[M, D]`, asked at `seconds` `[M]`, `since` `[M]` after the events."""
        inner = F.gelu(self.in_proj(rows) + self.moment(seconds, since))
        return self.dropout.add_norm(self.out_proj(inner), rows, self.norm)[0]


def seconds_before(seconds: Tensor, offsets: Tensor | None) -> Tensor:
    """Seconds since the event before, -1 for the first of each sequence: int64, of the shape of `seconds`."""
    since = seconds.diff(prepend=seconds[..., :1], dim=-1)
    if offsets is None:
        since[..., :1] = -1
        return since
    # One place more, where empty sequences at the end begin; to look for them would make a GPU wait.
    return F.pad(since, (0, 1)).index_fill_(0, offsets[:-1], -1)[:-1]
