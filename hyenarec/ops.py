"""The operators: long convolutions along time, channels last, norms between them, the catalogue's loss.

All of them run on CPU and CUDA, under `torch.compile` and `torch.export` with dynamic shapes. All but
`legendre_step` and its two helpers are differentiable once: a second derivative raises. The transforms of
torch.func (grad, jacrev, jvp) raise, too: they are not supported. float32 and float64 work everywhere.
bfloat16 (and, on CUDA, float16) activations go beside float32 parameters, but for the item vectors of the
loss, which have the dtype of the hidden states; sums are accumulated in float32. Any strides go in, results
are contiguous.

Shapes, dtypes and devices are always checked; values (decay, offsets, items) on the CPU only, since looking
at them would make a GPU wait. A wrong argument raises RuntimeError, with a sentence that names it.

B sequences, L events, D channels, N coefficients. Packed sequences lie one after another in [total, D],
without padding; `offsets` says where each one starts. `hyenarec.reference` has a readable oracle for each
one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyenarec import _extension as _extension  # registers torch.ops.hyenarec


def legendre_kernel(coeffs: Tensor, decay: Tensor, horizon: int, length: int) -> Tensor:
    """A convolution kernel made of Legendre polynomials, with exponential decay.

    kernel[d, lag] = exp(-decay[d] lag) Σ_n coeffs[d, n] P_n(2 lag / (horizon - 1) - 1)

    computed in float64 by the three-term recurrence, whatever the dtype; on CUDA only the recurrence is, the
    rest of a float32 kernel in float32. With `horizon` = 1 the only lag is at -1.

    Args:
        coeffs: [D, N], float32 or float64; differentiable. N may exceed the horizon.
        decay: [D], like `coeffs`, rate per lag (one lag is one event), finite and >= 0; differentiable.
        horizon: number of lags that the polynomials' interval [-1, 1] spans, >= 1.
        length: number of lags to compute, 0 <= length <= horizon.

    Returns:
        [D, length], dtype of `coeffs`.

    Raises:
        RuntimeError: a shape, dtype, device or size is wrong; on the CPU also a negative or non-finite decay.

    Source: Liu et al., "Hyena Operator for Fast Sequential Recommendation", WWW 2026 (arXiv 2603.25027), the
    Legendre kernel; the decay window is Hyena's (Poli et al., "Hyena Hierarchy", ICML 2023, section 3.3).
    """
    kernel: Tensor = torch.ops.hyenarec.legendre_kernel(coeffs, decay, horizon, length)
    return kernel


def fft_conv(
    u: Tensor,
    kernel: Tensor,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """Causal long convolution by zero-padded FFT, with gates and skip fused.

    out[b, t, d] = post_gate[b, t, d] (Σ_{lag <= t} kernel[d, lag] z[b, t - lag, d] + skip[d] z[b, t, d]),
    where z = pre_gate ⊙ u. O(L log L) in time.

    Args:
        u: [B, L, D], float32, float64, bfloat16 or (CUDA) float16; differentiable.
        kernel: [D, K], float64 if `u` is, else float32; differentiable. Lags from L on are ignored, missing
            lags are zero.
        skip: [D], dtype of `kernel`; differentiable. None: no skip term.
        pre_gate: shape and dtype of `u`; differentiable. None: ones.
        post_gate: shape and dtype of `u`; differentiable. None: ones.

    Returns:
        [B, L, D], dtype of `u`. An output depends on later inputs by the rounding of the FFT only.

    Raises:
        RuntimeError: a shape, dtype or device is wrong.

    Source: the order-2 Hyena recurrence of Poli et al., "Hyena Hierarchy", ICML 2023, section 3.
    """
    out: Tensor = torch.ops.hyenarec.fft_conv(u, kernel, skip, pre_gate, post_gate)
    return out


def short_conv(
    u: Tensor, weight: Tensor, bias: Tensor | None = None, offsets: Tensor | None = None
) -> Tensor:
    """Depthwise causal FIR filter over padded or packed sequences.

    out[.., t, d] = bias[d] + Σ_w weight[d, w] u[.., t - w, d], so `weight[:, 0]` meets the current event (the
    last tap of an `nn.Conv1d`). Events before the start of a sequence are zero; nothing crosses a packed
    boundary.

    Args:
        u: [B, L, D], or packed [total, D] together with `offsets`; float32, float64, bfloat16 or (CUDA)
            float16; differentiable.
        weight: [D, W] with 1 <= W <= 8, float64 if `u` is, else float32; differentiable.
        bias: [D], dtype of `weight`; differentiable. None: no bias.
        offsets: [S + 1], int64, on the device of `u`: sequence s is `u[offsets[s]:offsets[s + 1]]`. They go
            from 0 to total and never decrease; empty sequences are fine.

    Returns:
        Shape and dtype of `u`.

    Raises:
        RuntimeError: a shape, dtype or device is wrong; on the CPU also offsets that decrease, do not start
            at 0 or do not end at the number of events.

    Source: the short filter of Poli et al., "Hyena Hierarchy", ICML 2023, section 3.
    """
    out: Tensor = torch.ops.hyenarec.short_conv(u, weight, bias, offsets)
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
    """Causal long convolution with a Legendre kernel in linear time, with gates and skip fused.

    out[.., t, d] = post_gate[.., t, d] (Σ_{lag <= t} kernel[d, lag] z[.., t - lag, d] + skip[d] z[.., t, d]),
    where z = pre_gate ⊙ u and kernel = legendre_kernel(coeffs, decay, horizon, L): the function of
    `fft_conv(u, kernel, skip, pre_gate, post_gate)`, over padded or packed sequences, in O(L) time and
    without the kernel in memory.

    What all events before time b still contribute to the outputs t >= b is, up to exp(-decay (t - b)), one
    polynomial of degree < N in t. A scan over chunks of events carries its Legendre coefficients on the
    remaining horizon.

    Args:
        u: [B, L, D] with L <= horizon, or packed [total, D] together with `offsets`; float32, float64,
            bfloat16 or (CUDA) float16; differentiable.
        coeffs: [D, N], float64 if `u` is, else float32; differentiable. N may exceed the horizon.
        decay: [D], dtype of `coeffs`, rate per lag (one lag is one event), finite and >= 0; differentiable.
        horizon: number of lags that the polynomials' interval [-1, 1] spans, >= 1: the longest sequence.
        skip: [D], dtype of `coeffs`; differentiable. None: no skip term.
        pre_gate: shape and dtype of `u`; differentiable. None: ones.
        post_gate: shape and dtype of `u`; differentiable. None: ones.
        offsets: [S + 1], int64, on the device of `u`: sequence s is `u[offsets[s]:offsets[s + 1]]`, of at
            most `horizon` events. They go from 0 to total and never decrease; empty sequences are fine. Any
            order of the sequences is right; on a GPU the longest first is fastest.

    Returns:
        Shape and dtype of `u`. An output does not depend on later inputs, nor on other sequences.

    Raises:
        RuntimeError: a shape, dtype, device or size is wrong; on the CPU also a negative or non-finite decay,
            and offsets that decrease, do not start at 0, do not end at the number of events or describe a
            sequence longer than the horizon.

    Source: the kernel of Liu et al., "Hyena Operator for Fast Sequential Recommendation", WWW 2026 (arXiv
    2603.25027) inside the order-2 recurrence of Poli et al., "Hyena Hierarchy", ICML 2023, section 3. The
    linear-time scan is this project's.
    """
    out: Tensor = torch.ops.hyenarec.legendre_conv(
        u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets
    )
    return out


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
    """Everything of a Hyena mixer between its two projections, in one pass over memory.

    q, k, v = short_conv(x, short_weight, short_bias, offsets), D channels each, side by side in this order;
    out = legendre_conv(v, coeffs, decay, horizon, skip, pre_gate=k, post_gate=q, offsets=offsets), that is
    q ⊙ (kernel * (k ⊙ v) + skip ⊙ k ⊙ v). It reads 3D numbers an event and writes D; q, k and v are
    never stored, nor rounded to 16 bits.

    Args:
        x: [B, L, 3D] with L <= horizon, or packed [total, 3D] together with `offsets`; float32, float64,
            bfloat16 or (CUDA) float16; differentiable.
        short_weight: [3D, W] with 1 <= W <= 8, float64 if `x` is, else float32; differentiable.
            `short_weight[:, 0]` meets the current event.
        short_bias: [3D], dtype of `short_weight`; differentiable. None: no bias.
        coeffs: [D, N], dtype of `short_weight`; differentiable.
        decay: [D], dtype of `short_weight`, rate per lag, finite and >= 0; differentiable.
        horizon: number of lags that the polynomials' interval [-1, 1] spans, >= 1: the longest sequence.
        skip: [D], dtype of `short_weight`; differentiable.
        offsets: [S + 1], int64, on the device of `x`: sequence s is `x[offsets[s]:offsets[s + 1]]`, of at
            most `horizon` events. They go from 0 to total and never decrease; empty sequences are fine. Any
            order of the sequences is right; on a GPU the longest first is fastest.

    Returns:
        [B, L, D] or [total, D], dtype of `x`. An output does not depend on later inputs, nor on other
        sequences.

    Raises:
        RuntimeError: a shape, dtype, device or size is wrong; on the CPU also a negative or non-finite decay,
            and offsets that decrease, do not start at 0, do not end at the number of events or describe a
            sequence longer than the horizon.

    Source: the order-2 Hyena operator of Poli et al., "Hyena Hierarchy", ICML 2023, section 3, with the
    kernel of Liu et al., "Hyena Operator for Fast Sequential Recommendation", WWW 2026 (arXiv 2603.25027).
    """
    out: Tensor = torch.ops.hyenarec.hyena_mixer(
        x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets
    )
    return out


def dropout_add_layer_norm(
    branch: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    p: float = 0.0,
    eps: float = 1e-5,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What lies between two residual branches, in one pass over memory: dropout, sum, layer norm.

    sum = residual + dropout(branch), normed = layer_norm(sum) weight + bias, over the last dimension.

    Which elements are dropped is a function of `seed`, `p` and their index alone, the same on every device
    and any number of threads: 16 bits an element of a counter-based generator. The backward pass draws them
    once more, so no mask is stored: it needs the sum, and of each row the mean and 1 / standard deviation.

    Under autocast the operator takes its arguments as they come, like the addition and the layer norm that it
    replaces: a branch in 16 bits beside a residual stream in float32 gives a float32 sum and a float32
    normed.

    Args:
        branch: [.., D] with D >= 1, float32, float64, bfloat16 or (CUDA) float16; differentiable.
        residual: [.., D], any of these dtypes; differentiable. None: zeros.
        weight: [D], float64 if the sum is, else float32, or 16 bits like the sum; differentiable.
        bias: [D], likewise; differentiable.
        p: probability that an element of the branch becomes zero, whatever it was, in [0, 1]; rounded to a
            multiple of 2^-16. The others are divided by 1 - p.
        eps: added to the variance, >= 0.
        seed: an int64 scalar (no dimensions) on the device of `branch`; needed if p > 0. None: no dropout.

    Returns:
        normed and sum, [.., D] each, of the dtype that branch and residual promote to. Statistics are those
        of the sum as it is returned, computed in float32 for 16 bits.

    Raises:
        RuntimeError: a shape, dtype, device or number is wrong, or p > 0 comes without a seed.

    Source: dropout of Srivastava et al., JMLR 2014; layer norm of Ba et al., arXiv 1607.06450; Philox4x32-10
    of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. FlashAttention has an operator
    of this name.
    """
    normed: Tensor
    total: Tensor
    normed, total = torch.ops.hyenarec.dropout_add_layer_norm(branch, residual, weight, bias, p, eps, seed)
    return normed, total


def legendre_step_weights(coeffs: Tensor, decay: Tensor, horizon: int, skip: Tensor | None = None) -> Tensor:
    """What `legendre_step` needs of the parameters: made once, used for every event and stream.

    It also builds the scan's constants for the whole horizon (once per process, horizon and N), so that no
    step waits for them. Not differentiable.

    Args:
        coeffs: [D, N], float32 or float64.
        decay: [D], like `coeffs`, rate per lag, finite and >= 0.
        horizon: number of lags that the polynomials' interval [-1, 1] spans, >= 1: the longest stream.
        skip: [D], like `coeffs`. None: no skip term.

    Returns:
        [N + 2C + 2, D], like `coeffs`, with C = 16 events a chunk for N <= 9, else 32: coefficients,
        the kernel's first C lags (skip included), exp(-decay j) for j = 0..C, exp(-decay C) - 1.

    Raises:
        RuntimeError: a shape, dtype, device or size is wrong; on the CPU also a negative or non-finite decay.
    """
    weights: Tensor = torch.ops.hyenarec.legendre_step_weights(coeffs, decay, horizon, skip)
    return weights


def legendre_step_state(coeffs: Tensor, batch: int) -> Tensor:
    """The state of `batch` streams before their first event: zeros [batch, N + C, D] like `coeffs` [D, N].

    A stream's state is all that later events need of its past: N Legendre coefficients a channel, and the up
    to C events of the current chunk.
    """
    state: Tensor = torch.ops.hyenarec.legendre_step_state(coeffs, batch)
    return state


def legendre_step(
    state: Tensor,
    u: Tensor,
    position: Tensor,
    weights: Tensor,
    horizon: int,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """The next event or events of each stream through `legendre_conv`: constant time and memory an event.

    Row b of the result is row `position[b]` of `legendre_conv` over all that stream b has been given:

        weights = legendre_step_weights(coeffs, decay, horizon, skip)
        state = legendre_step_state(coeffs, batch)
        for t in range(length):  # the rows of legendre_conv(u, coeffs, decay, horizon, skip)
            out = legendre_step(state, u[:, t], torch.full((batch,), t), weights, horizon)

    A channel costs N + C/2 multiply-adds an event on average, and about N³/6 more at each C-th event. Streams
    don't know each other: they may stand at different positions, and rows of a state may be copied, moved
    and reused. Not differentiable: a gradient asked for raises.

    Args:
        state: [B, N + C, D], contiguous; updated in place. It is not read at position 0: a used state starts
            a new stream without being cleared.
        u: [B, D]; or [B, L, D], L events in turn. float32, float64, bfloat16 or (CUDA) float16.
        position: [B], int64: how many events stream b has been given before. Go on from where the last call
            ended: what follows a skipped or repeated position has no meaning.
        weights: [N + 2C + 2, D] from `legendre_step_weights`; float64 if `u` is, else float32.
        horizon: as given to `legendre_step_weights`; a stream ends there.
        pre_gate: shape and dtype of `u`. None: ones.
        post_gate: shape and dtype of `u`. None: ones.

    Returns:
        Shape and dtype of `u`.

    Raises:
        RuntimeError: a shape, dtype or device is wrong, or a gradient is asked for; on the CPU also a stream
            that would go beyond the horizon. No state has changed then. On CUDA such events give NaN and
            leave the state alone.

    Its oracle is `hyenarec.reference.legendre_conv`, row by row. Source: this project's linear-time scan.
    """
    out: Tensor = torch.ops.hyenarec.legendre_step(state, u, position, weights, horizon, pre_gate, post_gate)
    return out


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
    """Softmax cross-entropy over a whole catalogue, or sampled items of it, without the scores in memory.

    score[i, v] = hidden[i] · weight[v] + bias[v] - log_q[v], plus adjustment[i, k] if v is adjusted[i, k].
    With p[i] the softmax of score[i] over the row's classes, loss[i] = -(1 - s) log p[i, target[i]]
    - s mean_c log p[i, c], s being `label_smoothing`: `torch.nn.functional.cross_entropy` of the scores,
    which exist a tile at a time only. Memory is O(M + V D) and one tile. For "mean" and "sum" the forward
    pass computes the gradients, too, where they are needed, so scores are computed once; "none" computes
    them again in backward.

    A row's classes are all items. With `candidates` they are its target and every candidate that is another
    item: a candidate which happens to be the target counts for the other rows only. A candidate that was
    drawn twice counts twice. Subtracting `log_q`, of the target's score as of the candidates', makes the
    sampled loss estimate the full one although popular items are drawn more often; from items drawn with
    equal probability it subtracts a constant, and may be left out.

    The gradient of `weight` is dense, [V, D], with or without candidates. For a step whose cost does not
    depend on V, give the rows of the items that are in the step as `weight`, with a sparse gradient:

        items, place = torch.cat([target, candidates]).unique(return_inverse=True)
        rows = torch.nn.functional.embedding(items, item_weight, sparse=True)
        place_of_target, place_of_candidate = place.split([len(target), len(candidates)])
        loss = linear_cross_entropy(
            hidden, rows, item_bias[items], place_of_target,
            candidates=place_of_candidate, log_q=log_q[items],
        )

    Args:
        hidden: [M, D], float32, float64, bfloat16 or (CUDA) float16; differentiable.
        weight: [V, D] with V >= 1, dtype of `hidden`; differentiable. Without candidates it is copied once if
            it is not contiguous.
        bias: [V], dtype of `hidden`, or float32 beside 16 bits; differentiable. None: no bias.
        target: [M], int64, in [0, V), or -1 for a row without a target: its loss is 0, it has no gradient and
            does not count in the mean.
        candidates: [K], int64, in [0, V): negatives that all rows share. None: all items are classes.
        log_q: [V], float64 if `hidden` is, else float32: log of the expected number of times that an item is
            among the candidates, up to a constant. It has no gradient. Only with `candidates`; None: zeros.
        label_smoothing: in [0, 1].
        reduction: "mean" over the rows that have a target, 0 where none has; "sum"; or "none".
        adjusted: [M, K], int64, in [0, V), or -1 for none: items whose scores are adjusted for a row, each
            once; only without candidates, and with `adjustment`. None: no scores are.
        adjustment: [M, K], float64 if `hidden` is, else float32: what is added to them; differentiable.

    Returns:
        A scalar, or [M] for "none"; float64 if `hidden` is, else float32. Products of 16-bit arguments are
        torch's: accumulated in float32, on the CPU rounded to 16 bits, again after an adjustment. All else is
        float32.

    Raises:
        RuntimeError: a shape, dtype, device or number is wrong, or `log_q` requires a gradient; on the CPU
            also a target, candidate or adjusted item out of range.

    Source: sampled softmax and the logQ correction of Bengio and Senécal, "Adaptive importance sampling to
    accelerate training of a neural probabilistic language model", IEEE Transactions on Neural Networks 2008;
    the gradient within the forward pass as in Liger Kernel (Hsu et al., arXiv 2410.10989).
    """
    loss: Tensor = torch.ops.hyenarec.linear_cross_entropy(
        hidden, weight, bias, target, candidates, log_q, label_smoothing, reduction, adjusted, adjustment
    )
    return loss
