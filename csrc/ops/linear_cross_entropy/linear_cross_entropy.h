// Softmax cross-entropy of a linear layer's scores over a whole catalogue, or over sampled items of it,
// without the scores in memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>

#include "../common/macros.h"

namespace hyenarec {

// score[i, v] = hidden[i] · weight[v] + bias[v] - log_q[v] + sum_k adjustment[i, k] [adjusted[i, k] == v]
// loss[i] = -(1 - label_smoothing) log p[i, target[i]] - label_smoothing mean_c log p[i, c]
// where p[i] is the softmax of score[i] over the row's classes c: all V items; or, with candidates, the
// target and every candidate that is another item than the target. A candidate counts as often as it is
// there.
//
// hidden           [M, D], float32, float64, bfloat16 or (CUDA) float16; any strides
// weight           [V, D], dtype of hidden; any strides, but copied if it is not contiguous (with candidates:
//                  the rows that are looked up are copied anyway)
// bias             [V], dtype of hidden, or float32 beside 16 bits; nullopt: none
// target           [M], int64, in [0, V), or -1: this row has loss 0, no gradient, and does not count in a
//                  mean
// candidates       [K], int64, in [0, V): negatives that all rows share; nullopt: all items
// log_q            [V], float64 if hidden is, else float32: logarithm of how often an item is among the
//                  candidates, up to a constant; only with candidates; nullopt: all alike
// label_smoothing  in [0, 1]
// reduction        "none": [M]; "sum", "mean": a scalar. The mean over no targets at all is 0
// adjusted         [M, K], int64, in [0, V), or -1 for none: items whose scores are adjusted for a row, each
//                  once; only without candidates; nullopt: none
// adjustment       [M, K], float64 if hidden is, else float32: what is added to those scores; with adjusted
// Returns float64 if hidden is, else float32: the scores of 16-bit arguments come from torch's matrix product
// (on a CPU rounded to 16 bits, again after an adjustment, on CUDA not), everything after that is float32.
// The values of target, candidates and adjusted are checked on the CPU only.
// Differentiable in hidden, weight, bias and adjustment (once). Memory is O(M + V D) and a tile of scores.
// For a loss that is reduced, the forward pass computes the gradients, too, where they are needed: scores are
// computed once.
// Throws c10::Error naming the argument that is wrong.
HYENAREC_API at::Tensor linear_cross_entropy(
    const at::Tensor& hidden, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const at::Tensor& target, const std::optional<at::Tensor>& candidates = std::nullopt,
    const std::optional<at::Tensor>& log_q = std::nullopt, double label_smoothing = 0,
    c10::string_view reduction = "mean", const std::optional<at::Tensor>& adjusted = std::nullopt,
    const std::optional<at::Tensor>& adjustment = std::nullopt);

}  // namespace hyenarec
