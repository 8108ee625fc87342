"""Times dropout_add_layer_norm against its parts: dropout, addition, layer norm, forward and backward.

    python benchmarks/dropout_add_layer_norm.py [--device cuda] [--output figures.json]

- ours: the operator, with a new seed each time, as in the model
- parts: `hyenarec.models.dropout.Dropout` (on a CPU it draws faster than torch's, on a GPU it is torch's), an
  addition and `torch.nn.functional.layer_norm`, differentiated by autograd
- copy: a device copy of as many bytes as the operator must move: four activations forward, five backward

They take turns; figures are medians. With p = 0, as in evaluation, ours only saves passes over memory.
"mixed" is what autocast produces: a branch in bfloat16 and a residual stream in float32. Bounds, on a CPU:
the time of the parts over ours.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from bounds import Section, at_least, run_sections
from timing import copy_of, timed
from torch import Tensor, nn

from hyenarec.models.dropout import Dropout

# Rows and channels. On a CPU: the default model's batch, and as much in wider rows.
SHAPES = {"cpu": [(16_200, 64), (4_096, 256)], "cuda": [(1 << 18, 64), (1 << 16, 256), (1 << 14, 1024)]}


class Problem:
    """A branch, a residual stream, a norm, and the gradients that arrive at the norm's result and the sum."""

    def __init__(self, rows: int, channels: int, p: float, branch_type: torch.dtype = torch.float32) -> None:
        self.dropout, self.norm = Dropout(p), nn.LayerNorm(channels)
        self.branch = torch.randn(rows, channels).to(branch_type).requires_grad_()
        self.residual = torch.randn(rows, channels, requires_grad=True)
        self.grads = [torch.randn(rows, channels) for _ in range(2)]

    def ours(self) -> tuple[Tensor, ...]:
        return self.dropout.add_norm(self.branch, self.residual, self.norm)

    def parts(self) -> tuple[Tensor, ...]:
        total = self.residual + self.dropout(self.branch)
        norm = self.norm
        return F.layer_norm(total, norm.normalized_shape, norm.weight, norm.bias, norm.eps), total

    def forward_backward(self, name: str) -> tuple[Tensor, ...]:
        leaves = [self.branch, self.residual, self.norm.weight, self.norm.bias]
        return torch.autograd.grad(getattr(self, name)(), leaves, self.grads)

    @torch.no_grad()
    def forward(self, name: str) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = getattr(self, name)()
        return result


def measure(repetitions: int, branch_type: torch.dtype) -> Section:
    device = torch.get_default_device().type
    figures = []
    for (rows, channels), p in product(SHAPES[device], (0.2, 0.0)):
        problem = Problem(rows, channels, p, branch_type)
        row_bytes = channels * (branch_type.itemsize + 4 * 3), channels * (branch_type.itemsize + 4 * 4)
        for direction, size in (
            ("forward", row_bytes[0]),
            ("forward_backward", sum(row_bytes)),
        ):
            run = getattr(problem, direction)
            functions = {name: partial(run, name) for name in ("ours", "parts")}
            times = timed(functions | {"copy": copy_of(rows * size, device)}, repetitions, device)
            ratio = times.ratio("parts", "ours")
            print(
                f"{rows:7} x {channels:<5} p = {p:<4} {direction:17}"
                + "".join(f" {name} {ms:7.3f} ms" for name, ms in times.median_ms.items())
                + f"  parts/ours {ratio:.2f}"
            )
            figures.append(
                {
                    "rows": rows,
                    "channels": channels,
                    "p": p,
                    "direction": direction,
                    "branch": str(branch_type).removeprefix("torch."),
                    **{f"{name}_ms": ms for name, ms in times.median_ms.items()},
                    "parts_over_ours": ratio,
                    "parts_over_ours_fastest": times.fastest_ratio("parts", "ours"),
                }
            )
    bounds = []
    for p, bound in ((0.2, 1.4), (0.0, 1.0)) if device == "cpu" else ():
        both = [f for f in figures if f["p"] == p and f["direction"] == "forward_backward"]
        what = f"parts over ours, forward and backward, p = {p}, branch in {both[0]['branch']}"
        fastest = [f["parts_over_ours_fastest"] for f in both]
        bounds.append(at_least(what, [f["parts_over_ours"] for f in both], bound, fastest))
    return Section(figures, bounds)


def main() -> int:
    sections = {
        "float32": partial(measure, branch_type=torch.float32),
        "mixed": partial(measure, branch_type=torch.bfloat16),
    }
    return run_sections(__doc__.splitlines()[0], sections, ("cpu", "cuda"))


if __name__ == "__main__":
    sys.exit(main())
