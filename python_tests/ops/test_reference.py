"""The oracles themselves, against other people's implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_cases import random

from hyenarec import reference


def test_legendre_kernel_is_numpy_legendre() -> None:
    coeffs, decay = random(3, 9), random(3).abs()
    expected = np.stack(
        [np.polynomial.legendre.legval(np.linspace(-1, 1, 40), row) for row in coeffs.numpy()]
    )
    expected = expected * np.exp(-decay.numpy()[:, None] * np.arange(40))
    np.testing.assert_allclose(reference.legendre_kernel(coeffs, decay, 40, 40), expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(
        reference.legendre_kernel(coeffs, decay, 40, 13),
        reference.legendre_kernel(coeffs, decay, 40, 40)[:, :13],
    )


def test_fft_conv_is_numpy_convolve() -> None:
    u, pre, post = random(2, 20, 3), random(2, 20, 3, seed=1), random(2, 20, 3, seed=2)
    kernel, skip = random(3, 8), random(3)
    out = reference.fft_conv(u, kernel, skip, pre, post)
    for b in range(2):
        for d in range(3):
            z = (pre * u)[b, :, d].numpy()
            expected = np.convolve(z, kernel[d])[:20] + skip[d].item() * z
            np.testing.assert_allclose(out[b, :, d], post[b, :, d].numpy() * expected, atol=1e-12)


def test_short_conv_is_conv1d_with_taps_reversed() -> None:
    u, weight, bias = random(2, 20, 3), random(3, 4), random(3)
    padded = torch.nn.functional.pad(u.mT, (3, 0))
    expected = torch.nn.functional.conv1d(padded, weight.flip(1)[:, None], bias, groups=3).mT
    torch.testing.assert_close(reference.short_conv(u, weight, bias), expected)
    offsets = torch.tensor([0, 20, 40])
    torch.testing.assert_close(
        reference.short_conv(u.flatten(0, 1), weight, bias, offsets), expected.flatten(0, 1)
    )


# Of Random123, kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: str, key: str, expected: str) -> None:
    words = [torch.tensor([int(word, 16) for word in text.split()]) for text in (counter, key, expected)]
    assert torch.equal(reference.philox(words[0], words[1]), words[2])


@pytest.mark.parametrize("residual", [random(5, 4, 6, seed=1), None])
def test_dropout_add_layer_norm_is_torchs_parts(residual: torch.Tensor | None) -> None:
    branch, weight, bias, seed = random(5, 4, 6), random(6), random(6, seed=1), torch.tensor(-3)
    keep = reference.dropout_keep(seed, 0.25, (5, 4, 6))
    assert keep.any() and not keep.all()
    expected = branch * keep / 0.75 + (0 if residual is None else residual)
    normed, total = reference.dropout_add_layer_norm(branch, residual, weight, bias, 0.25, 1e-3, seed)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(normed, torch.nn.functional.layer_norm(expected, (6,), weight, bias, 1e-3))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_linear_cross_entropy_is_cross_entropy(label_smoothing: float, reduction: str) -> None:
    hidden, weight, bias = random(9, 4), random(6, 4), random(6)
    target = torch.tensor([0, 5, -1, 2, 2, -1, 3, 4, 1])
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    loss = reference.linear_cross_entropy(hidden, weight, bias, target, **options)
    scores = torch.nn.functional.linear(hidden, weight, bias)
    expected = torch.nn.functional.cross_entropy(scores, target, ignore_index=-1, **options)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_sampled_cross_entropy_is_that_of_each_rows_own_classes(label_smoothing: float) -> None:
    hidden, weight, bias, log_q = random(5, 4), random(6, 4), random(6), random(6, seed=1)
    target, candidates = torch.tensor([0, 5, 2, 2, -1]), [2, 5, 5, 1]
    losses = reference.linear_cross_entropy(
        hidden,
        weight,
        bias,
        target,
        candidates=torch.tensor(candidates),
        log_q=log_q,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    for row, item in enumerate(target.tolist()[:-1]):
        classes = [item, *(other for other in candidates if other != item)]
        scores = (weight @ hidden[row] + bias - log_q)[classes]
        expected = torch.nn.functional.cross_entropy(scores, torch.tensor(0), label_smoothing=label_smoothing)
        torch.testing.assert_close(losses[row], expected)
    assert losses[-1] == 0
