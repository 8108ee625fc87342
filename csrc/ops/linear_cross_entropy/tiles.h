// How linear_cross_entropy walks over its rows, a tile of scores at a time, on every device: matrix products
// by torch around the backend's softmax. The gradients come out of the same walk.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/masked_fill.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../common/raw_data.h"
#include "arguments.h"
#include "rows.h"

namespace hyenarec::detail {

// Rows of a tile of so many scores, but at least 64: fewer make poor products. A multiple of 16.
inline int64_t rows_of_tile(int64_t scores, int64_t classes, int64_t most) {
  return std::clamp<int64_t>(scores / std::max<int64_t>(classes, 1), 64, most) / 16 * 16;
}

// CrossEntropyRows as tensors.
struct CrossEntropyTile {
  double smoothing;
  at::Tensor logits, shift, target;
  at::Tensor candidates, target_score, row_weight;  // may be undefined
  // To be written.
  at::Tensor losses, gradient;
  bool needs_gradient;   // or else nothing but the losses
  at::Tensor of_target;  // undefined: not needed
  at::Tensor of_shift;   // [C]: to which the gradient's sums over rows are added; undefined: not needed

  // With scalar_t and logit_t as a kernel sees gradient and logits in memory.
  template <typename scalar_t, typename logit_t>
  CrossEntropyRows<scalar_t, logit_t> rows() const {
    using T = typename CrossEntropyRows<scalar_t, logit_t>::T;
    return {
        .rows = logits.size(0),
        .classes = logits.size(1),
        .logits = data_or_null<const logit_t>(logits),
        .shift = data_or_null<const T>(shift),
        .target = data_or_null<const int64_t>(target),
        .candidates = data_or_null<const int64_t>(candidates),
        .target_score = data_or_null<const T>(target_score),
        .row_weight = data_or_null<const T>(row_weight),
        .smoothing = static_cast<T>(smoothing),
        .losses = data_or_null<T>(losses),
        .gradient = needs_gradient ? data_or_null<scalar_t>(gradient) : nullptr,
        .of_target = data_or_null<T>(of_target)};
  }
};

struct CrossEntropyGradients {
  at::Tensor losses, hidden, weight, bias, adjustment;
};

// bias - log_q of these items, or of all, in the type of sums.
inline at::Tensor shift_of(const CrossEntropyArguments& arguments, const OptionalTensor& items) {
  const auto sums = arguments.hidden.options().dtype(parameter_type(arguments.hidden.scalar_type()));
  const auto at_items = [&](const at::Tensor& values) {
    return (items ? values.index_select(0, *items) : values).to(sums.dtype());
  };
  const int64_t count = items ? items->size(0) : arguments.weight.size(0);
  const auto shift = arguments.bias ? at_items(*arguments.bias) : at::zeros({count}, sums);
  return (arguments.log_q ? shift.sub(at_items(*arguments.log_q)) : shift).contiguous();
}

// The walk over the rows of a call. A backend has
//   rows_of_tile(classes)
//   logits_type(type)                          of products of matrices of that type
//   multiply(out, a, b)                        out = a b
//   softmax(tile)                              losses and gradients of a tile of scores
//   add_rows(out [V, D], index [n], rows [n, D], factor [n]?)
//                                              out[index[i]] += factor[i] rows[i], index -1 being none, in a
//                                              fixed order
template <typename Backend>
class CrossEntropyWalk {
 public:
  CrossEntropyWalk(
      Backend& backend, const CrossEntropyArguments& arguments, OptionalTensor row_weight,
      std::array<bool, 4> needs_grad)
      : backend_(backend),
        arguments_(arguments),
        row_weight_(std::move(row_weight)),
        needs_hidden_(needs_grad[0]),
        needs_weight_(needs_grad[1]),
        needs_bias_(needs_grad[2] && arguments.bias),
        needs_adjustment_(needs_grad[3] && arguments.adjustment),
        needs_any_(needs_hidden_ || needs_weight_ || needs_bias_ || needs_adjustment_),
        sampled_(arguments.candidates),
        sums_(arguments.hidden.options().dtype(parameter_type(arguments.hidden.scalar_type()))),
        hidden_(arguments.hidden.contiguous()),
        target_(arguments.target.contiguous()),
        weight_(
            sampled_ ? arguments.weight.index_select(0, *arguments.candidates)
                     : arguments.weight.contiguous()),
        shift_(shift_of(arguments, arguments.candidates)),
        candidates_(sampled_ ? arguments.candidates->contiguous() : at::Tensor()) {}

  // The losses, and the gradients of sum_i row_weight[i] losses[i] that are needed.
  CrossEntropyGradients run() {
    const int64_t rows = hidden_.size(0), dim = hidden_.size(1), classes = weight_.size(0);
    result_ = {
        at::empty({rows}, sums_), empty_gradient(needs_hidden_, arguments_.hidden),
        needs_weight_ ? at::zeros({classes, dim}, sums_) : at::empty({0}, sums_),
        needs_bias_ ? at::zeros({classes}, sums_) : at::empty({0}, sums_),
        empty_gradient(needs_adjustment_, arguments_.adjustment.value_or(hidden_))};
    of_target_ = at::empty({sampled_ && needs_any_ ? rows : 0}, sums_);

    const int64_t tile_rows = std::min(backend_.rows_of_tile(classes), rows);
    const auto type = hidden_.scalar_type();
    logits_ = at::empty({tile_rows, classes}, hidden_.options().dtype(backend_.logits_type(type)));
    const bool in_place = logits_.scalar_type() == type;
    gradients_ = in_place || !needs_any_ ? logits_ : at::empty({tile_rows, classes}, hidden_.options());
    for (int64_t first = 0; first < rows; first += tile_rows)
      walk_tile(first, std::min(tile_rows, rows - first));
    if (sampled_) sum_by_items();
    return result_;
  }

 private:
  // The rows [first, first + count).
  void walk_tile(int64_t first, int64_t count) {
    const auto of_tile = [&](const at::Tensor& tensor) { return tensor.narrow(0, first, count); };
    const auto hidden = of_tile(hidden_);
    CrossEntropyTile tile{};
    tile.smoothing = arguments_.label_smoothing;
    tile.logits = logits_.narrow(0, 0, count);
    tile.shift = shift_;
    tile.target = of_tile(target_);
    tile.candidates = candidates_;
    if (row_weight_) tile.row_weight = of_tile(*row_weight_);
    tile.losses = of_tile(result_.losses);
    tile.needs_gradient = needs_any_;
    tile.gradient = gradients_.narrow(0, 0, count);
    if (needs_bias_) tile.of_shift = result_.bias;
    at::Tensor target_weight;
    if (sampled_) {
      const auto items = tile.target.clamp_min(0);
      target_weight = arguments_.weight.index_select(0, items);
      tile.target_score =
          hidden.to(sums_.dtype()).mul(target_weight).sum(1).add_(shift_of(arguments_, items));
      if (needs_any_) tile.of_target = of_tile(of_target_);
    }
    backend_.multiply(tile.logits, hidden, weight_.t());
    if (arguments_.adjusted) adjust(tile, of_tile);
    backend_.softmax(tile);
    if (needs_adjustment_) gather_adjustment(tile, of_tile);
    if (needs_hidden_) {
      auto hidden_gradient = of_tile(result_.hidden);
      backend_.multiply(hidden_gradient, tile.gradient, weight_);
      if (sampled_) hidden_gradient.add_(target_weight.mul(tile.of_target.unsqueeze(1)));
    }
    if (needs_weight_) add_product(result_.weight, tile.gradient.t(), hidden);
  }

  // Adds to scores; an item of -1 adds 0 to that of the first one. (On a CPU scatter_add_ takes as long as
  // all the rest.)
  void adjust(CrossEntropyTile& tile, const auto& of_tile) const {
    const auto adjusted = of_tile(*arguments_.adjusted);
    const auto adjustment = of_tile(*arguments_.adjustment).masked_fill(adjusted.lt(0), 0);
    const auto row = at::arange(adjusted.size(0), adjusted.options()).unsqueeze(1);
    tile.logits.index_put_(
        {row, adjusted.clamp_min(0)}, adjustment.to(tile.logits.scalar_type()), /*accumulate=*/true);
  }
  void gather_adjustment(const CrossEntropyTile& tile, const auto& of_tile) const {
    const auto adjusted = of_tile(*arguments_.adjusted);
    const auto gradient = tile.gradient.gather(1, adjusted.clamp_min(0)).masked_fill_(adjusted.lt(0), 0);
    of_tile(result_.adjustment).copy_(gradient);
  }

  // out += a b. torch adds a product of 16-bit matrices to a float one in its newest versions only, on CUDA.
  void add_product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
    const auto type = a.scalar_type();
    if (type == out.scalar_type()) {
      out.addmm_(a, b);
      return;
    }
    if (!product_.defined())
      product_ = at::empty(out.sizes(), out.options().dtype(backend_.logits_type(type)));
    backend_.multiply(product_, a, b);
    out.add_(product_);
  }

  // The gradients of weight and bias by candidates and targets, added up by items.
  void sum_by_items() {
    if (needs_weight_) result_.weight = by_items(result_.weight, hidden_);
    if (!needs_bias_) return;
    const auto ones = at::ones({1, 1}, sums_).expand({hidden_.size(0), 1});
    result_.bias = by_items(result_.bias.unsqueeze(1), ones).squeeze(1);
  }
  at::Tensor by_items(const at::Tensor& of_candidates, const at::Tensor& of_rows) {
    auto of_items = at::zeros({arguments_.weight.size(0), of_candidates.size(1)}, sums_);
    backend_.add_rows(of_items, *arguments_.candidates, of_candidates, std::nullopt);
    backend_.add_rows(of_items, target_, of_rows, of_target_);
    return of_items;
  }

  Backend& backend_;
  const CrossEntropyArguments& arguments_;
  const OptionalTensor row_weight_;
  const bool needs_hidden_, needs_weight_, needs_bias_, needs_adjustment_, needs_any_, sampled_;
  const at::TensorOptions sums_;
  const at::Tensor hidden_, target_, weight_, shift_, candidates_;  // of the classes: the last three
  CrossEntropyGradients result_;
  at::Tensor of_target_, logits_, gradients_, product_;
};

// The kernels of linear_cross_entropy_with_gradients and linear_cross_entropy_backward. A backend is made for
// a call, of its arguments, whose values it may check.
template <typename Backend>
Tensors<5> cross_entropy_with_gradients(const CrossEntropyGradientArguments& arguments) {
  Backend backend(arguments.losses);
  const auto result = CrossEntropyWalk(backend, arguments.losses, std::nullopt, arguments.needs_grad).run();
  return {result.losses, result.hidden, result.weight, result.bias, result.adjustment};
}

template <typename Backend>
Tensors<4> cross_entropy_backward(const CrossEntropyBackwardArguments& arguments) {
  const auto& forward = arguments.forward;
  Backend backend(forward);
  const auto result =
      CrossEntropyWalk(backend, forward, arguments.grad.contiguous(), arguments.needs_grad).run();
  return {
      result.hidden, result.weight.to(forward.weight.scalar_type()),
      result.bias.to(forward.bias.value_or(forward.weight).scalar_type()), result.adjustment};
}

}  // namespace hyenarec::detail
