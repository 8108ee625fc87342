"""One oracle for each operator, in plain torch, written for reading: direct sums, no FFT, no tricks.

They take any floating dtype (give them float64 for a reference), are differentiable by autograd as often as
you like, and are slow: `fft_conv` holds a [D, L, L] matrix. Shapes and meaning are those of `hyenarec.ops`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def legendre_kernel(coeffs: Tensor, decay: Tensor, horizon: int, length: int) -> Tensor:
    """Returns exp(-decay[d] lag) Σ_n coeffs[d, n] P_n(u(lag)) with u(lag) = 2 lag / (horizon - 1) - 1."""
    lag = torch.arange(length, dtype=coeffs.dtype, device=coeffs.device)
    u = 2 * lag / (horizon - 1) - 1 if horizon > 1 else -torch.ones_like(lag)
    basis = [torch.ones_like(u), u]
    for n in range(1, coeffs.shape[1] - 1):  # Bonnet: (n + 1) P_{n+1} = (2n + 1) u P_n - n P_{n-1}
        basis.append(((2 * n + 1) * u * basis[n] - n * basis[n - 1]) / (n + 1))
    polynomial = coeffs @ torch.stack(basis[: coeffs.shape[1]]) if coeffs.shape[1] else coeffs.sum(1)[:, None]
    return torch.exp(-decay[:, None] * lag) * polynomial


def fft_conv(
    u: Tensor,
    kernel: Tensor,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """Returns post_gate (kernel * z + skip z), z = pre_gate u, with * the causal convolution along time."""
    length = u.shape[1]
    time = torch.arange(length, device=u.device)
    lag = time[:, None] - time[None, :]  # [to, from]
    missing = kernel.new_zeros(kernel.shape[0], max(length - kernel.shape[1], 0))
    taps = torch.cat([kernel[:, :length], missing], dim=1)
    toeplitz = torch.where(lag >= 0, taps[:, lag.clamp(min=0)], 0)  # [D, to, from]

    z = u if pre_gate is None else pre_gate * u
    y = torch.einsum("dts,bsd->btd", toeplitz, z)
    if skip is not None:
        y = y + skip * z
    return y if post_gate is None else post_gate * y


def short_conv(
    u: Tensor, weight: Tensor, bias: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    """Returns bias + Σ_w weight[:, w] u[t - w] for each t; events before the start of a sequence are zero."""
    if offsets is not None:
        sequences = torch.tensor_split(u, offsets[1:-1].cpu())
        filtered = [short_conv(sequence[None], weight, bias)[0] for sequence in sequences]
        return torch.cat(filtered)[: u.shape[0]]
    length = u.shape[1]
    out = torch.zeros_like(u) if bias is None else bias.expand_as(u)
    for w in range(min(weight.shape[1], length)):
        late = torch.nn.functional.pad(u[:, : length - w], (0, 0, w, 0))  # late[t] = u[t - w]
        out = out + weight[:, w] * late
    return out


def legendre_conv(
    u: Tensor,
    coeffs: Tensor,
    decay: Tensor,
    horizon: int,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Returns `fft_conv` with a `legendre_kernel`; of packed sequences, each one alone."""
    if offsets is not None:
        ones = torch.ones_like(u)
        packed = (u, ones if pre_gate is None else pre_gate, ones if post_gate is None else post_gate)
        sequences = zip(*(torch.tensor_split(x, offsets[1:-1].cpu()) for x in packed), strict=True)
        convolved = [
            legendre_conv(z[None], coeffs, decay, horizon, skip, pre[None], post[None])[0]
            for z, pre, post in sequences
        ]
        return torch.cat(convolved)
    kernel = legendre_kernel(coeffs, decay, horizon, u.shape[1])
    return fft_conv(u, kernel, skip, pre_gate, post_gate)


def hyena_mixer(
    x: Tensor,
    short_weight: Tensor,
    short_bias: Tensor | None,
    coeffs: Tensor,
    decay: Tensor,
    horizon: int,
    skip: Tensor,
    offsets: Tensor | None = None,
) -> Tensor:
    """Returns q ⊙ (κ * (k ⊙ v) + skip ⊙ k ⊙ v), where q, k, v side by side are the `short_conv` of x."""
    q, k, v = short_conv(x, short_weight, short_bias, offsets).chunk(3, dim=-1)
    return legendre_conv(v, coeffs, decay, horizon, skip, pre_gate=k, post_gate=q, offsets=offsets)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Returns Philox4x32-10's four words [.., 4] for the words counter [.., 4] and key [2], all in int64."""
    low = 0xFFFFFFFF
    x0, x1, x2, x3 = counter.unbind(-1)
    key0, key1 = key.unbind()
    for _ in range(10):
        product0, product1 = 0xD2511F53 * x0, 0xCD9E8D57 * x2  # wraps: the sign is the highest bit
        x0, x1 = (product1 >> 32 & low) ^ x1 ^ key0, product1 & low
        x2, x3 = (product0 >> 32 & low) ^ x3 ^ key1, product0 & low
        key0, key1 = key0 + 0x9E3779B9 & low, key1 + 0xBB67AE85 & low
    return torch.stack([x0, x1, x2, x3], dim=-1)


def dropout_keep(seed: Tensor, p: float, shape: tuple[int, ...]) -> Tensor:
    """Returns which elements dropout keeps, bool: those that draw one of the upper (1 - p) 2^16 levels.

    Of the block of random bits with counter b, elements 8b, 8b + 1, .. take 16 each, the lowest first.
    """
    low = 0xFFFFFFFF
    block = torch.arange(-(-math.prod(shape) // 8), device=seed.device)
    counter = torch.stack([block & low, block >> 32, *torch.zeros(2, len(block)).to(block)], dim=-1)
    words = philox(counter, torch.stack([seed & low, seed >> 32 & low]))
    levels = torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten()[: math.prod(shape)]
    return levels.view(shape) >= round(p * 2**16)


def dropout_add_layer_norm(
    branch: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    p: float = 0.0,
    eps: float = 1e-5,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the layer norm of residual + dropout(branch), then that sum."""
    total = branch
    if seed is not None:
        share = 1 - round(p * 2**16) / 2**16
        total = branch.where(dropout_keep(seed, p, tuple(branch.shape)), 0) / (share or 1)
    if residual is not None:
        total = residual + total
    centred = total - total.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight + bias, total


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    candidates: Tensor | None = None,
    log_q: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    adjusted: Tensor | None = None,
    adjustment: Tensor | None = None,
) -> Tensor:
    """Returns the cross-entropy of each row's softmax over all items, or over its target and candidates."""
    scores = hidden @ weight.mT
    if bias is not None:
        scores = scores + bias
    if log_q is not None:
        scores = scores - log_q
    if adjusted is not None and adjustment is not None:
        scores = scores.scatter_add(1, adjusted.clamp(min=0), adjustment.where(adjusted >= 0, 0))
    has_target, target = target >= 0, target.clamp(min=0)[:, None]
    of_target = scores.gather(1, target)
    is_class = torch.ones_like(scores, dtype=torch.bool)
    if candidates is not None:  # the target comes first, then what is not the target
        scores = torch.cat([of_target, scores[:, candidates]], dim=1)
        is_class = torch.cat([torch.ones_like(target, dtype=torch.bool), candidates != target], dim=1)
    log_normalizer = scores.where(is_class, -torch.inf).logsumexp(1)
    mean_score = scores.where(is_class, 0).sum(1) / is_class.sum(1)
    losses = log_normalizer - (1 - label_smoothing) * of_target[:, 0] - label_smoothing * mean_score
    losses = losses.where(has_target, 0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / has_target.sum().clamp(min=1)
