// The arguments of short_conv, the operator behind it, and the checks of both.
#pragma once

#include "../common/operators.h"
#include "max_width.h"
#include "short_conv.h"

namespace hyenarec {

struct ShortConvArguments {
  const at::Tensor &u, &weight;
  const OptionalTensor &bias, &offsets;

  auto each() const { return std::tie(u, weight, bias, offsets); }
  void check(const char* op = "short_conv") const;
  void check_backward(const at::Tensor& grad) const;
};

using ShortConvBackwardArguments = detail::BackwardArguments<ShortConvArguments, 3>;

namespace detail {

// Gradients from grad (like u in shape and dtype, any strides): {u, weight, bias}, see empty_gradients. Not
// differentiable: a second derivative raises. (Outside of detail, a CUDA kernel has this name.)
constexpr auto short_conv_backward = dispatch<"short_conv_backward", Tensors<3>, ShortConvBackwardArguments>;

// A short filter, [channels, W] with 1 <= W <= kShortConvMaxWidth, beside an activation. `layout` names the
// dimensions, `symbol` the channels.
void check_short_filter(
    const Argument& weight, const c10::SymInt& channels, const char* layout, const char* symbol,
    const Argument& activation);

}  // namespace detail
}  // namespace hyenarec
