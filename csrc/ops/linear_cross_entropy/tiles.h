// How linear_cross_entropy walks over its rows, a tile of scores at a time, on every device: matrix products by
// torch around the backend's softmax. The gradients come out of the same walk.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <optional>

#include "../common/argument_checks.h"
#include "linear_cross_entropy.h"

namespace hyenarec::detail {

// Rows of a tile of so many scores, but at least 64: fewer make poor products. A multiple of 16.
inline int64_t rows_of_tile(int64_t scores, int64_t classes, int64_t most) {
  return std::clamp<int64_t>(scores / std::max<int64_t>(classes, 1), 64, most) / 16 * 16;
}

// A tile as the backend's softmax gets it: n rows, C classes.
struct CrossEntropyTile {
  at::Tensor logits;        // [n, C]: products of hidden and weight
  at::Tensor shift;         // [C]: what is added to them
  at::Tensor target;        // [n]: an item, or -1
  at::Tensor target_score;  // [n], if the classes are candidates; undefined: they are all items
  at::Tensor row_weight;    // [n]: what the gradient of a row is multiplied by; undefined: 1
  // To be written.
  at::Tensor losses;     // [n]
  bool needs_gradient;   // or else nothing but the losses
  at::Tensor gradient;   // [n, C], by the scores; maybe where the logits are
  at::Tensor of_target;  // [n], by target_score, if that is there
  at::Tensor of_shift;   // [C]: to which the gradient's sums over rows are added; undefined: not needed
};

struct CrossEntropyGradients {
  at::Tensor losses, hidden, weight, bias;
};

// The losses, and the gradients of sum_i row_weight[i] losses[i] that are needed. A backend has
//   rows_of_tile(classes)
//   logits_type(type)                          of the products of hidden and weight, of that type
//   multiply(out, a, b)                        out = a b
//   add_product(out, a, b)                     out += a b; out has the type of sums
//   softmax(tile)                              losses and gradients of a tile of scores
//   add_rows(out [V, D], index [n], rows [n, D], factor [n]?)
//                                              out[index[i]] += factor[i] rows[i], index -1 being none, in a
//                                              fixed order
template <typename Backend>
CrossEntropyGradients cross_entropy_in_tiles(
    Backend& backend,
    const CrossEntropyArguments& arguments,
    const std::optional<at::Tensor>& row_weight,
    std::array<bool, 3> needs_grad) {
  const auto type = arguments.hidden.scalar_type();
  const auto options = arguments.hidden.options();
  const auto sums = options.dtype(parameter_type(type));
  const bool sampled = arguments.candidates.has_value();
  const auto hidden = arguments.hidden.contiguous(), target = arguments.target.contiguous();
  const auto weight =
      sampled ? arguments.weight.index_select(0, *arguments.candidates) : arguments.weight.contiguous();
  // bias - log_q of these items, in the type of sums.
  const auto shift_of = [&](const std::optional<at::Tensor>& items) {
    const auto at_items = [&](const at::Tensor& values) {
      return (items ? values.index_select(0, *items) : values).to(sums.dtype());
    };
    const int64_t count = items ? items->size(0) : arguments.weight.size(0);
    auto shift = arguments.bias ? at_items(*arguments.bias) : at::zeros({count}, sums);
    return (arguments.log_q ? shift.sub(at_items(*arguments.log_q)) : shift).contiguous();
  };
  const auto shift = shift_of(arguments.candidates);

  const int64_t rows = hidden.size(0), dim = hidden.size(1), classes = weight.size(0);
  const bool needs_bias = needs_grad[2] && arguments.bias;
  const bool needs_any = needs_grad[0] || needs_grad[1] || needs_bias;
  CrossEntropyGradients result{
      at::empty({rows}, sums), empty_gradient(needs_grad[0], arguments.hidden),
      needs_grad[1] ? at::zeros({classes, dim}, sums) : at::empty({0}, sums),
      needs_bias ? at::zeros({classes}, sums) : at::empty({0}, sums)};
  const auto of_target = at::empty({sampled && needs_any ? rows : 0}, sums);

  const int64_t tile_rows = std::min(backend.rows_of_tile(classes), rows);
  const auto all_logits = at::empty({tile_rows, classes}, options.dtype(backend.logits_type(type)));
  const bool in_place = all_logits.scalar_type() == type;
  const auto all_gradients = in_place || !needs_any ? all_logits : at::empty({tile_rows, classes}, options);
  for (int64_t first = 0; first < rows; first += tile_rows) {
    const int64_t count = std::min(tile_rows, rows - first);
    const auto of_tile = [&](const at::Tensor& tensor) { return tensor.narrow(0, first, count); };
    const auto tile_hidden = of_tile(hidden);
    CrossEntropyTile tile;
    tile.logits = all_logits.narrow(0, 0, count);
    tile.shift = shift;
    tile.target = of_tile(target);
    if (row_weight) tile.row_weight = of_tile(*row_weight);
    tile.losses = of_tile(result.losses);
    tile.needs_gradient = needs_any;
    tile.gradient = all_gradients.narrow(0, 0, count);
    if (needs_bias) tile.of_shift = result.bias;
    at::Tensor target_weight;
    if (sampled) {
      const auto items = tile.target.clamp_min(0);
      target_weight = arguments.weight.index_select(0, items);
      tile.target_score = tile_hidden.to(sums.dtype()).mul(target_weight).sum(1).add_(shift_of(items));
      if (needs_any) tile.of_target = of_tile(of_target);
    }
    backend.multiply(tile.logits, tile_hidden, weight.t());
    backend.softmax(tile);
    if (needs_grad[0]) {
      auto hidden_gradient = of_tile(result.hidden);
      backend.multiply(hidden_gradient, tile.gradient, weight);
      if (sampled) hidden_gradient.add_(target_weight.mul(tile.of_target.unsqueeze(1)));
    }
    if (needs_grad[1]) backend.add_product(result.weight, tile.gradient.t(), tile_hidden);
  }
  if (!sampled) return result;

  const auto to_items = [&](at::Tensor& of_candidates, const at::Tensor& of_rows) {
    auto of_items = at::zeros({arguments.weight.size(0), of_candidates.size(1)}, sums);
    backend.add_rows(of_items, *arguments.candidates, of_candidates, std::nullopt);
    backend.add_rows(of_items, target, of_rows, of_target);
    of_candidates = of_items;
  };
  if (needs_grad[1]) to_items(result.weight, hidden);
  if (needs_bias) {
    result.bias = result.bias.unsqueeze(1);
    to_items(result.bias, at::ones({1, 1}, sums).expand({rows, 1}));
    result.bias = result.bias.squeeze(1);
  }
  return result;
}

// The kernels of linear_cross_entropy_with_gradients and linear_cross_entropy_backward. A backend is made for a call,
// of its arguments, whose values it may check.
template <typename Backend>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cross_entropy_with_gradients(
    const at::Tensor& hidden,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    const at::Tensor& target,
    const std::optional<at::Tensor>& candidates,
    const std::optional<at::Tensor>& log_q,
    double label_smoothing,
    std::array<bool, 3> needs_grad) {
  const CrossEntropyArguments arguments{hidden, weight, bias, target, candidates, log_q, label_smoothing};
  check_cross_entropy_arguments(arguments);
  Backend backend(arguments);
  const auto result = cross_entropy_in_tiles(backend, arguments, std::nullopt, needs_grad);
  return {result.losses, result.hidden, result.weight, result.bias};
}

template <typename Backend>
std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy_backward(
    const at::Tensor& grad,
    const at::Tensor& hidden,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    const at::Tensor& target,
    const std::optional<at::Tensor>& candidates,
    const std::optional<at::Tensor>& log_q,
    double label_smoothing,
    std::array<bool, 3> needs_grad) {
  const CrossEntropyArguments arguments{hidden, weight, bias, target, candidates, log_q, label_smoothing};
  check_cross_entropy_backward_arguments(grad, arguments);
  Backend backend(arguments);
  const auto result = cross_entropy_in_tiles(backend, arguments, grad.contiguous(), needs_grad);
  return {
      result.hidden, result.weight.to(weight.scalar_type()),
      result.bias.to(bias ? bias->scalar_type() : weight.scalar_type())};
}

}  // namespace hyenarec::detail
