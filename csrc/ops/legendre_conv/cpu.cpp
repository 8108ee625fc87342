// legendre_conv on the CPU: the scan of legendre_forward.h with the gates at its ends.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/argument_checks.h"
#include "../common/channels_last.h"
#include "../legendre_scan/cpu/call.h"
#include "../legendre_scan/cpu/result_writer.h"
#include "../legendre_scan/states.h"
#include "legendre_conv.h"

namespace hyenarec {
namespace {

using scan::Call;
using scan::Task;
using scan::Wanted;

// The activations of one call; gates without data are ones, results without data are not wanted.
template <typename scalar_t>
struct Activations {
  Sequences sequences;
  int64_t channels;
  Activation<const scalar_t> u, pre_gate, post_gate, grad;
  Activation<scalar_t> out, u_grad, pre_gate_grad, post_gate_grad;
  bool past_cache;  // go_past_cache's answer for the results
};

// The Source of a task.
template <typename V, typename scalar_t>
class GatedRows {
  using Rows = scan::Tile<V>;

 public:
  HYENAREC_INLINE GatedRows(const Activations<scalar_t>& all, const Task& task)
      : all_(all), task_(task), writer_(all.past_cache, task.vectors) {}

  HYENAREC_INLINE void load_input(int64_t s, int64_t begin, int64_t rows, const Rows& z) {
    load_gated(all_.u, all_.pre_gate, s, begin, rows, z);
  }
  HYENAREC_INLINE void store_output(int64_t s, int64_t begin, int64_t rows, const Rows& y) {
    store_gated(y, all_.post_gate, all_.out, s, begin, rows);
  }
  HYENAREC_INLINE void load_output_grad(int64_t s, int64_t begin, int64_t rows, const Rows& dy) {
    load_gated(all_.grad, all_.post_gate, s, begin, rows, dy);
  }
  HYENAREC_INLINE void take_output(int64_t s, int64_t begin, int64_t rows, const Rows& y) {
    store_gated(y, all_.grad, all_.post_gate_grad, s, begin, rows);
  }
  HYENAREC_INLINE void take_input_grad(int64_t s, int64_t begin, int64_t rows, const Rows& dz) {
    if (all_.u_grad.data) store_gated(dz, all_.pre_gate, all_.u_grad, s, begin, rows);
    if (all_.pre_gate_grad.data) store_gated(dz, all_.u, all_.pre_gate_grad, s, begin, rows);
  }
  HYENAREC_INLINE void end_chunk() {}
  HYENAREC_INLINE void watch_inputs(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_read({&all_.u, &all_.pre_gate}, s, begin, ahead);
  }
  HYENAREC_INLINE void watch_forward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_read({&all_.u, &all_.pre_gate, &all_.post_gate}, s, begin, ahead);
    watch_written({&all_.out}, s, begin, ahead);
  }
  HYENAREC_INLINE void watch_backward(int64_t s, int64_t begin, scan::LookAhead& ahead) const {
    watch_read({&all_.u, &all_.pre_gate, &all_.post_gate, &all_.grad}, s, begin, ahead);
    watch_written({&all_.u_grad, &all_.pre_gate_grad, &all_.post_gate_grad}, s, begin, ahead);
  }

 private:
  template <typename pointer_t>
  HYENAREC_INLINE pointer_t* row(const Activation<pointer_t>& activation, int64_t s, int64_t t) const {
    return activation.row(all_.sequences, task_.group.sequences[s], t) + scan::first_channel<V>(task_, 0);
  }

  HYENAREC_INLINE void watch_read(
      std::initializer_list<const Activation<const scalar_t>*> activations,
      int64_t s,
      int64_t begin,
      scan::LookAhead& ahead) const {
    for (const auto* a : activations) {
      if (a->data) ahead.read(row(*a, s, begin), a->row_stride * sizeof(scalar_t), row_bytes());
    }
  }
  HYENAREC_INLINE void watch_written(
      std::initializer_list<const Activation<scalar_t>*> activations,
      int64_t s,
      int64_t begin,
      scan::LookAhead& ahead) const {
    for (const auto* a : activations) {
      if (a->data) writer_.watch(row(*a, s, begin), a->row_stride * sizeof(scalar_t), row_bytes(), ahead);
    }
  }
  HYENAREC_INLINE int64_t row_bytes() const {
    return task_.vectors * simd::kLanes<V> * static_cast<int64_t>(sizeof(scalar_t));
  }

  // values = a gate
  HYENAREC_INLINE void load_gated(
      const Activation<const scalar_t>& a,
      const Activation<const scalar_t>& gate,
      int64_t s,
      int64_t begin,
      int64_t rows,
      const Rows& values) const {
    const scalar_t* from = row(a, s, begin);
    const scalar_t* factor = gate.data ? row(gate, s, begin) : nullptr;
    for (int64_t t = 0; t < rows; ++t, from += a.row_stride) {
      scan::for_each_vector<V>(task_, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        const int64_t first = v * simd::kLanes<V>;
        V value = simd::load_first<V>(from + first, channels);
        if (factor) value *= simd::load_first<V>(factor + t * gate.row_stride + first, channels);
        values.of(v)[t] = value;
      });
    }
  }
  // to = values gate
  HYENAREC_INLINE void store_gated(
      const Rows& values,
      const Activation<const scalar_t>& gate,
      const Activation<scalar_t>& to,
      int64_t s,
      int64_t begin,
      int64_t rows) const {
    scalar_t* out = row(to, s, begin);
    const scalar_t* factor = gate.data ? row(gate, s, begin) : nullptr;
    for (int64_t t = 0; t < rows; ++t, out += to.row_stride) {
      scan::for_each_vector<V>(task_, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        const int64_t first = v * simd::kLanes<V>;
        V value = values.of(v)[t];
        if (factor) value *= simd::load_first<V>(factor + t * gate.row_stride + first, channels);
        writer_.write(value, out + first, channels);
      });
    }
  }

  const Activations<scalar_t>& all_;
  const Task& task_;
  const scan::ResultWriter<V, scalar_t> writer_;
};

// Tensors whose rows can be read a vector at a time; undefined where there is none.
at::Tensor readable(const std::optional<at::Tensor>& tensor) {
  return tensor ? with_unit_channel_stride(*tensor) : at::Tensor();
}

template <typename scalar_t>
Activation<const scalar_t> input_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return activation_of(tensor.const_data_ptr<scalar_t>(), tensor);
}

template <typename scalar_t>
Activation<scalar_t> result_of(const at::Tensor& tensor, bool wanted) {
  if (!wanted) return {};
  return activation_of(tensor.mutable_data_ptr<scalar_t>(), tensor);
}

// `states` takes what the backward pass needs, see legendre_states.h; undefined: nothing will.
at::Tensor convolve(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    int64_t horizon,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate,
    const std::optional<at::Tensor>& offsets,
    const at::Tensor& states) {
  const char* op = "legendre_conv";
  detail::check_cpu_activation_type({op, "u", u});
  detail::check_decay_values(op, decay);
  const auto starts = contiguous_or_undefined(offsets);
  const auto sequences = make_sequences(op, u, starts, horizon);
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) {
    if (states.defined()) states.zero_();
    return out;
  }

  const auto rows = with_unit_channel_stride(u);
  const auto before = readable(pre_gate), after = readable(post_gate);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "legendre_conv", [&] {
    const Activations<scalar_t> activations{
        sequences,
        coeffs.size(0),
        input_of<scalar_t>(rows),
        input_of<scalar_t>(before),
        input_of<scalar_t>(after),
        {},
        result_of<scalar_t>(out, true),
        {},
        {},
        {},
        scan::go_past_cache({out})};
    Call<at::opmath_type<scalar_t>> call(sequences, coeffs, decay, skip, horizon);
    call.forward(states, [&](auto lanes, const Task& task) HYENAREC_INLINE_LAMBDA {
      return GatedRows<decltype(lanes), scalar_t>(activations, task);
    });
  });
  return out;
}

at::Tensor legendre_conv_cpu(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    int64_t horizon,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate,
    const std::optional<at::Tensor>& offsets) {
  detail::check_legendre_conv_arguments(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
  return convolve(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets, {});
}

std::tuple<at::Tensor, at::Tensor> legendre_conv_with_states_cpu(
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    int64_t horizon,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate,
    const std::optional<at::Tensor>& offsets) {
  detail::check_legendre_conv_arguments(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets);
  const auto states = detail::empty_legendre_states(u, coeffs, horizon, offsets);
  return {convolve(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets, states), states};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> legendre_conv_backward_cpu(
    const at::Tensor& grad,
    const at::Tensor& u,
    const at::Tensor& coeffs,
    const at::Tensor& decay,
    int64_t horizon,
    const std::optional<at::Tensor>& skip,
    const std::optional<at::Tensor>& pre_gate,
    const std::optional<at::Tensor>& post_gate,
    const std::optional<at::Tensor>& offsets,
    std::array<bool, 6> needs_grad,
    const std::optional<at::Tensor>& states) {
  const char* op = "legendre_conv_backward";
  detail::check_legendre_conv_backward_arguments(
      grad, u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets, states);
  detail::check_cpu_activation_type({op, "u", u});
  detail::check_decay_values(op, decay);
  const auto starts = contiguous_or_undefined(offsets);
  const auto sequences = make_sequences(op, u, starts, horizon);
  const auto activation = [&](bool wanted) {
    return wanted ? at::empty(u.sizes(), u.options()) : at::empty({0}, u.options());
  };
  const bool want_pre = needs_grad[4] && pre_gate, want_post = needs_grad[5] && post_gate;
  auto u_grad = activation(needs_grad[0]);
  auto pre_gate_grad = activation(want_pre);
  auto post_gate_grad = activation(want_post);
  const Wanted wanted{
      needs_grad[0] || want_pre, want_post, needs_grad[1] || needs_grad[2] || (needs_grad[3] && skip)};

  const auto rows = with_unit_channel_stride(u), grads = with_unit_channel_stride(grad);
  const auto before = readable(pre_gate), after = readable(post_gate);
  scan::ParameterGradients gradients;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, u.scalar_type(), "legendre_conv_backward", [&] {
    const Activations<scalar_t> activations{
        sequences,
        coeffs.size(0),
        input_of<scalar_t>(rows),
        input_of<scalar_t>(before),
        input_of<scalar_t>(after),
        input_of<scalar_t>(grads),
        {},
        result_of<scalar_t>(u_grad, needs_grad[0]),
        result_of<scalar_t>(pre_gate_grad, want_pre),
        result_of<scalar_t>(post_gate_grad, want_post),
        scan::go_past_cache({u_grad, pre_gate_grad, post_gate_grad})};
    Call<at::opmath_type<scalar_t>> call(sequences, coeffs, decay, skip, horizon);
    auto saved = states.has_value() ? states->contiguous() : at::Tensor();
    if (!states && call.reads_states(wanted))
      saved = std::get<1>(
          legendre_conv_with_states_cpu(u, coeffs, decay, horizon, skip, pre_gate, post_gate, offsets));
    gradients = call.backward(wanted, saved, [&](auto lanes, const Task& task) HYENAREC_INLINE_LAMBDA {
      return GatedRows<decltype(lanes), scalar_t>(activations, task);
    });
  });
  const auto none = [&] { return at::empty({0}, coeffs.options()); };
  return {
      u_grad,
      needs_grad[1] ? gradients.coeffs : none(),
      needs_grad[2] ? gradients.decay : none(),
      needs_grad[3] && skip ? gradients.skip : none(),
      pre_gate_grad,
      post_gate_grad};
}

}  // namespace
}  // namespace hyenarec

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  m.impl("legendre_conv", hyenarec::legendre_conv_cpu);
  m.impl("legendre_conv_with_states", hyenarec::legendre_conv_with_states_cpu);
  m.impl("legendre_conv_backward", hyenarec::legendre_conv_backward_cpu);
}
