// legendre_step on CUDA: one launch. It neither waits nor allocates anything but its result, so a CUDA graph
// may hold it.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAGuard.h>

#include "../common/cuda/launch.cuh"
#include "../legendre_scan/cuda/device_tables.h"
#include "../legendre_scan/tables.h"
#include "arguments.h"
#include "cuda.cuh"

namespace hyenarec {
namespace {

// For the whole horizon: positions live on the device.
template <typename T>
std::shared_ptr<const DeviceScanTables<T>> step_tables(
    const at::Tensor& parameter, int64_t horizon, int64_t num_coeffs) {
  return get_scan_tables<T>(
      {parameter.get_device(), horizon, legendre_chunk_length(num_coeffs), num_coeffs, horizon, 0});
}

template <typename scalar_t>
Activation<const scalar_t> data_of(const at::Tensor& events) {
  if (!events.defined()) return {nullptr, 0, 0};
  return {events.const_data_ptr<scalar_t>(), events.stride(0), events.stride(1)};
}

at::Tensor legendre_step_cuda(const LegendreStepArguments& arguments) {
  const auto& u = arguments.u;
  const c10::cuda::CUDAGuard guard(u.device());
  auto out = at::empty(u.sizes(), u.options());
  if (out.numel() == 0) return out;

  static_assert(
      kShortChunk <= kLegendreStepThreads && kLongChunk <= kLegendreStepThreads, "a thread an event");
  const LegendreStepInputs in(arguments);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u.scalar_type(), "legendre_step", [&] {
    using T = accumulate_t<scalar_t>;
    const int64_t num_coeffs = in.work.num_coeffs;
    const auto tables = num_coeffs > 0 ? step_tables<T>(in.weights, in.work.horizon, num_coeffs) : nullptr;
    launch(
        legendre_step_shape<T>(in.work), legendre_step_forward<scalar_t>, in.work,
        tables ? tables->tables : ScanTables<T>{}, in.weights.const_data_ptr<T>(),
        in.positions.const_data_ptr<int64_t>(), data_of<scalar_t>(in.u), data_of<scalar_t>(in.pre_gate),
        data_of<scalar_t>(in.post_gate), arguments.state.mutable_data_ptr<T>(),
        out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

at::Tensor legendre_step_weights_cuda(const LegendreStepWeightsArguments& arguments) {
  const at::Tensor& coeffs = arguments.coeffs;
  const c10::cuda::CUDAGuard guard(coeffs.device());
  AT_DISPATCH_FLOATING_TYPES(coeffs.scalar_type(), "legendre_step_weights", [&] {
    if (coeffs.size(1) > 0) step_tables<scalar_t>(coeffs, arguments.horizon.expect_int(), coeffs.size(1));
  });
  return detail::make_legendre_step_weights(arguments);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  m.impl("legendre_step_weights", detail::checked<legendre_step_weights_cuda>);
  m.impl("legendre_step", detail::checked<legendre_step_cuda>);
}

}  // namespace hyenarec
