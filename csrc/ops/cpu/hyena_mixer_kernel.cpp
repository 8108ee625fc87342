// hyena_mixer on the CPU: the scan of legendre_sweeps.h with the short convolution and the gates at its ends. A
// chunk's queries, keys and values are computed from x where they are needed and never stored.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../argument_checks.h"
#include "../channels_last.h"
#include "../hyena_mixer.h"
#include "../short_conv.h"
#include "legendre_call.h"

namespace hyenarec {
namespace {

using scan::Call;
using scan::kBlock;
using scan::kMaxChunk;
using scan::Task;
using scan::Wanted;

constexpr int64_t kQuery = 0, kKey = 1, kValue = 2, kParts = 3;

// One call's activations and taps; results without data are not wanted.
template <typename scalar_t, typename compute_t>
struct Mixer {
  Sequences sequences;
  int64_t channels;         // D
  int64_t width;            // taps of the short convolution
  const compute_t* taps;    // [W, 3D]
  const compute_t* biases;  // [3D]
  Activation<const scalar_t> x, grad;
  Activation<scalar_t> out, x_grad;
  // Rows of sums a task leaves for the short convolution's gradients: for each part W taps, then the bias.
  int64_t sum_rows() const { return kParts * (width + 1); }
};

// The short convolution of one part (queries, keys or values) of a chunk, and what its gradient needs again.
template <typename V>
struct Filtered {
  V with_history
      [kShortConvMaxWidth + kMaxChunk];  // the chunk's events behind those that its first taps reach
  V values[kMaxChunk];
  V* const events = with_history + kShortConvMaxWidth;
};

// The Source of a task.
template <typename V, typename scalar_t>
class MixedRows {
  using compute_t = simd::LaneOf<V>;

 public:
  // `sums`, of Mixer::sum_rows() rows, take the gradients; nullptr in a forward pass.
  HYENAREC_INLINE MixedRows(const Mixer<scalar_t, compute_t>& mixer, const Task& task, scan::Sums* sums)
      : mixer_(mixer), task_(task), sums_(sums), reach_(mixer.width - 1) {
    for (int64_t v = 0; v < task.vectors; ++v) {
      select(v);
      for (int64_t part = 0; part < kParts; ++part) {
        const int64_t column = part * mixer.channels + first_channel_;
        for (int64_t w = 0; w < mixer.width; ++w)
          filter_->taps[part][w] =
              simd::load_first<V>(mixer.taps + w * kParts * mixer.channels + column, channels_);
        filter_->biases[part] = simd::load_first<V>(mixer.biases + column, channels_);
        for (V& share : filter_->shares[part]) share = V{};
      }
    }
    if (sums == nullptr) return;
    const int64_t carried = kParts * task.group.count() * task.vectors * kShortConvMaxWidth;
    carries_ = memory_.get<V>(carried);
    for (int64_t i = 0; i < carried; ++i) carries_[i] = V{};
  }

  HYENAREC_INLINE void select(int64_t vector) {
    vector_ = vector;
    filter_ = &filters_[vector];
    first_channel_ = (task_.first_vector + vector) * simd::kLanes<V>;
    channels_ = std::min<int64_t>(simd::kLanes<V>, mixer_.channels - first_channel_);
  }

  // z = k v
  HYENAREC_INLINE void load_input(int64_t s, int64_t begin, int64_t rows, V* z) {
    filter(kKey, s, begin, rows, key_);
    filter(kValue, s, begin, rows, value_);
    for (int64_t t = 0; t < rows; ++t) z[t] = key_.values[t] * value_.values[t];
  }
  // out = q y
  HYENAREC_INLINE void store_output(int64_t s, int64_t begin, int64_t rows, const V* y) {
    filter(kQuery, s, begin, rows, query_);
    scalar_t* to = row(mixer_.out, s, begin, 0);
    for (int64_t t = 0; t < rows; ++t)
      simd::store_first(query_.values[t] * y[t], to + t * mixer_.out.row_stride, channels_);
  }
  // dy = q dout
  HYENAREC_INLINE void load_output_grad(int64_t s, int64_t begin, int64_t rows, V* dy) {
    filter(kQuery, s, begin, rows, query_);
    const scalar_t* from = row(mixer_.grad, s, begin, 0);
    for (int64_t t = 0; t < rows; ++t) {
      grad_[t] = simd::load_first<V>(from + t * mixer_.grad.row_stride, channels_);
      dy[t] = grad_[t] * query_.values[t];
    }
  }
  // dq = y dout; chunks come in order of time, each after its load_output_grad
  HYENAREC_INLINE void take_output(int64_t s, int64_t begin, int64_t rows, const V* y) {
    V* const dq = gradient_ + kShortConvMaxWidth;
    for (int64_t t = 0; t < rows; ++t) dq[t] = grad_[t] * y[t];
    scan::clear_rest(dq, rows, scan::padded(rows) + 2 * kBlock);
    add_tap_products(kQuery, query_, dq, rows);
    // An input's gradient needs the `reach` events after it: those at the end wait for the next chunk.
    V* const carry = carry_of(kQuery, s);
    for (int64_t i = 0; i < reach_; ++i) dq[i - reach_] = carry[i];
    const bool ends = begin + rows == task_.group.lengths[s];
    const int64_t late = std::min(reach_, begin);
    store_x_grad(kQuery, s, begin - late, rows + late - (ends ? 0 : reach_), dq - late);
    for (int64_t i = 0; i < reach_; ++i) carry[i] = dq[rows - reach_ + i];
  }
  // dk = v dz, dv = k dz; chunks come from the last to the first, each after its load_input
  HYENAREC_INLINE void take_input_grad(int64_t s, int64_t begin, int64_t rows, const V* dz) {
    take_part_grad(kKey, s, begin, rows, dz, value_, key_);
    take_part_grad(kValue, s, begin, rows, dz, key_, value_);
  }
  // Moves the chunk's shares of the sums to the task's.
  HYENAREC_INLINE void end_chunk() {
    const int64_t rows = mixer_.width + 1;
    for (int64_t v = 0; v < task_.vectors; ++v) {
      for (int64_t part = 0; part < kParts; ++part)
        scan::flush(filters_[v].shares[part], rows, sums_->of(task_, v) + part * rows * simd::kLanes<V>);
    }
  }

 private:
  template <typename pointer_t>
  HYENAREC_INLINE pointer_t* row(const Activation<pointer_t>& a, int64_t s, int64_t t, int64_t part) const {
    return a.row(mixer_.sequences, task_.group.sequences[s], t) + part * mixer_.channels + first_channel_;
  }
  HYENAREC_INLINE V* carry_of(int64_t part, int64_t s) const {
    return carries_ + ((part * task_.group.count() + s) * task_.vectors + vector_) * kShortConvMaxWidth;
  }
  // values[t] = bias + sum_w taps[w] x[t - w]
  HYENAREC_INLINE void filter(int64_t part, int64_t s, int64_t begin, int64_t rows, Filtered<V>& to) const {
    const int64_t earlier = std::min(reach_, begin);
    const scalar_t* from = row(mixer_.x, s, begin, part);
    for (int64_t t = -reach_; t < -earlier; ++t) to.events[t] = V{};
    for (int64_t t = -earlier; t < rows; ++t)
      to.events[t] = simd::load_first<V>(from + t * mixer_.x.row_stride, channels_);
    const int64_t end = scan::padded(rows);
    scan::clear_rest(to.events, rows, end);
    for (int64_t first = 0; first < end; first += kBlock) {
      V sums[kBlock];
      for (V& sum : sums) sum = filter_->biases[part];
      for (int64_t w = 0; w < mixer_.width; ++w) {
        const V tap = filter_->taps[part][w];
        for (int64_t i = 0; i < kBlock; ++i) sums[i] += tap * to.events[first + i - w];
      }
      for (int64_t i = 0; i < kBlock; ++i) to.values[first + i] = sums[i];
    }
  }

  // The taps' and the bias's gradients; d is zero from `rows` to the end of its block.
  HYENAREC_INLINE void add_tap_products(int64_t part, const Filtered<V>& input, const V* d, int64_t rows) {
    const int64_t end = scan::padded(rows);
    for (int64_t w = 0; w < mixer_.width; ++w) {
      V sums[4] = {};
      for (int64_t t = 0; t < end; t += 4) {
        for (int64_t i = 0; i < 4; ++i) sums[i] += d[t + i] * input.events[t + i - w];
      }
      filter_->shares[part][w] += (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    V sum = {};
    for (int64_t t = 0; t < rows; ++t) sum += d[t];
    filter_->shares[part][mixer_.width] += sum;
  }

  // x_grad[begin + t] = sum_w taps[w] d[t + w] for t < rows
  HYENAREC_INLINE void store_x_grad(int64_t part, int64_t s, int64_t begin, int64_t rows, const V* d) const {
    if (!mixer_.x_grad.data || rows <= 0) return;
    scalar_t* to = row(mixer_.x_grad, s, begin, part);
    for (int64_t first = 0; first < rows; first += kBlock) {
      V sums[kBlock] = {};
      for (int64_t w = 0; w < mixer_.width; ++w) {
        const V tap = filter_->taps[part][w];
        for (int64_t i = 0; i < kBlock; ++i) sums[i] += tap * d[first + i + w];
      }
      const int64_t stored = std::min(kBlock, rows - first);
      for (int64_t i = 0; i < stored; ++i)
        simd::store_first(sums[i], to + (first + i) * mixer_.x_grad.row_stride, channels_);
    }
  }

  HYENAREC_INLINE void take_part_grad(
      int64_t part,
      int64_t s,
      int64_t begin,
      int64_t rows,
      const V* dz,
      const Filtered<V>& factor,
      const Filtered<V>& input) {
    V* const d = gradient_ + kShortConvMaxWidth;
    for (int64_t t = 0; t < rows; ++t) d[t] = dz[t] * factor.values[t];
    scan::clear_rest(d, rows, scan::padded(rows) + 2 * kBlock);
    add_tap_products(part, input, d, rows);
    V* const carry = carry_of(part, s);  // of the chunk behind this one; zero behind the last
    for (int64_t i = 0; i < reach_; ++i) d[rows + i] = carry[i];
    store_x_grad(part, s, begin, rows, d);
    for (int64_t i = 0; i < reach_; ++i) carry[i] = d[i];
  }

  // The short convolution of a vector's channels, and one chunk's share of its gradients: taps, then the bias.
  struct Filter {
    V taps[kParts][kShortConvMaxWidth], biases[kParts], shares[kParts][kShortConvMaxWidth + 1];
  };

  const Mixer<scalar_t, compute_t>& mixer_;
  const Task& task_;
  scan::Sums* const sums_;
  const int64_t reach_;  // events that the short convolution reaches back
  int64_t vector_ = 0, first_channel_ = 0, channels_ = 0;
  Filter filters_[scan::kMaxVectors];
  Filter* filter_ = filters_;
  Filtered<V> query_, key_, value_;
  V grad_[kMaxChunk];
  // Room for a chunk's gradient between events before and after it, which one block may read beyond.
  V gradient_[kShortConvMaxWidth + kMaxChunk + 2 * kBlock];
  scan::Scratch memory_;
  V* carries_ = nullptr;  // [part][sequence][vector]: gradients at a chunk's edge that the next one needs
};

at::Tensor hyena_mixer_cpu(
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const std::optional<at::Tensor>& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    int64_t horizon,
    const at::Tensor& skip,
    const std::optional<at::Tensor>& offsets) {
  const char* op = "hyena_mixer";
  detail::check_hyena_mixer_arguments(x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
  detail::check_cpu_activation_type({op, "x", x});
  detail::check_decay_values(op, decay);
  const auto starts = contiguous_or_undefined(offsets);
  const auto sequences = make_sequences(op, x, starts, horizon);
  auto out_sizes = x.sizes().vec();
  out_sizes.back() = coeffs.size(0);
  auto out = at::empty(out_sizes, x.options());
  if (out.numel() == 0) return out;

  const auto rows = with_unit_channel_stride(x);
  const auto taps = short_weight.t().contiguous();
  const auto biases = short_bias ? short_bias->contiguous() : at::zeros({taps.size(1)}, taps.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "hyena_mixer", [&] {
    using compute_t = at::opmath_type<scalar_t>;
    const Mixer<scalar_t, compute_t> mixer{
        sequences,
        coeffs.size(0),
        taps.size(0),
        taps.const_data_ptr<compute_t>(),
        biases.const_data_ptr<compute_t>(),
        activation_of(rows.const_data_ptr<scalar_t>(), rows),
        {},
        activation_of(out.mutable_data_ptr<scalar_t>(), out),
        {}};
    Call<compute_t> call(sequences, coeffs, decay, skip, horizon);
    call.forward([&](auto lanes, const Task& task) HYENAREC_INLINE_LAMBDA {
      return MixedRows<decltype(lanes), scalar_t>(mixer, task, nullptr);
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> hyena_mixer_backward_cpu(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& short_weight,
    const std::optional<at::Tensor>& short_bias,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    int64_t horizon,
    const at::Tensor& skip,
    const std::optional<at::Tensor>& offsets,
    std::array<bool, 6> needs_grad) {
  const char* op = "hyena_mixer_backward";
  detail::check_hyena_mixer_backward_arguments(
      grad, x, short_weight, short_bias, coeffs, decay, horizon, skip, offsets);
  detail::check_cpu_activation_type({op, "x", x});
  detail::check_decay_values(op, decay);
  const auto starts = contiguous_or_undefined(offsets);
  const auto sequences = make_sequences(op, x, starts, horizon);
  const auto gradient = [](bool wanted, const at::Tensor& like) {
    return wanted ? at::empty(like.sizes(), like.options()) : at::empty({0}, like.options());
  };
  auto x_grad = gradient(needs_grad[0], x);
  auto weight_grad = gradient(needs_grad[1], short_weight);
  auto bias_grad =
      at::empty({needs_grad[2] && short_bias ? short_weight.size(0) : 0}, short_weight.options());
  const bool through_short_conv = needs_grad[0] || needs_grad[1] || needs_grad[2];
  const Wanted wanted{
      through_short_conv, through_short_conv, needs_grad[3] || needs_grad[4] || needs_grad[5]};

  const auto rows = with_unit_channel_stride(x), grads = with_unit_channel_stride(grad);
  const auto taps = short_weight.t().contiguous();
  const auto biases = short_bias ? short_bias->contiguous() : at::zeros({taps.size(1)}, taps.options());
  scan::ParameterGradients gradients;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "hyena_mixer_backward", [&] {
    using compute_t = at::opmath_type<scalar_t>;
    Mixer<scalar_t, compute_t> mixer{
        sequences,
        coeffs.size(0),
        taps.size(0),
        taps.const_data_ptr<compute_t>(),
        biases.const_data_ptr<compute_t>(),
        activation_of(rows.const_data_ptr<scalar_t>(), rows),
        activation_of(grads.const_data_ptr<scalar_t>(), grads),
        {},
        {}};
    if (needs_grad[0]) mixer.x_grad = activation_of(x_grad.mutable_data_ptr<scalar_t>(), x_grad);
    Call<compute_t> call(sequences, coeffs, decay, skip, horizon);
    auto sums = call.make_sums(mixer.sum_rows());
    gradients = call.backward(wanted, [&](auto lanes, const Task& task) HYENAREC_INLINE_LAMBDA {
      return MixedRows<decltype(lanes), scalar_t>(mixer, task, &sums);
    });
    for (int64_t column = 0; column < kParts * mixer.channels; ++column) {
      const int64_t part = column / mixer.channels;
      const auto total = call.total(sums, column % mixer.channels);
      const double* of_part = total.data() + part * (mixer.width + 1);
      for (int64_t w = 0; w < mixer.width && needs_grad[1]; ++w)
        weight_grad.mutable_data_ptr<compute_t>()[column * mixer.width + w] =
            static_cast<compute_t>(of_part[w]);
      if (bias_grad.numel() > 0)
        bias_grad.mutable_data_ptr<compute_t>()[column] = static_cast<compute_t>(of_part[mixer.width]);
    }
  });
  const auto none = [&] { return at::empty({0}, coeffs.options()); };
  return {
      x_grad,
      weight_grad,
      bias_grad,
      needs_grad[3] ? gradients.coeffs : none(),
      needs_grad[4] ? gradients.decay : none(),
      needs_grad[5] ? gradients.skip : none()};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("hyena_mixer", hyenarec::hyena_mixer_cpu);
  m.impl("hyena_mixer_backward", hyenarec::hyena_mixer_backward_cpu);
}
