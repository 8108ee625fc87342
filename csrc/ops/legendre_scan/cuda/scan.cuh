// The Legendre scan on CUDA. Start reading here; docs/scan.md explains the method and says which function
// does which step. No torch in this folder's other .cuh.
//
// An operator says where the scan's inputs come from and where its results go: its ScanIO. It has ScanIO::T,
// the type of sums, and these members, each for one channel of a chunk's rows, a ScanChunkRows; values of
// rows that aren't there are zero:
//
//   z = load_input(rows)                             what the kernel is convolved with
//   store_output(rows, y)                            y = kernel * z goes where it belongs, through the gate
//   dy = load_output_grad(rows)                      the gradient of y, through the gate
//   Memory                                           what a thread keeps from chunk to chunk on the way back,
//                                                    zeros at first
//   store_gate_grad(memory, rows, y)                 of the gate behind the convolution
//   store_input_grad(memory, rows, dz)               of z's factors
//   begin_segment(memory, channel, before, behind), end_segment(memory)
//                                                    around the chunks of a segment, walked backwards
//   kSums, store_sums(memory, to)                    sums over time of its own
//   poison_output(channel, row), poison_gradients(channel, row)
//                                                    NaN to the results of a row beyond the horizon
#pragma once

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <optional>
#include <type_traits>

#include "../../common/cuda/launch.cuh"
#include "../../common/cuda/rows.h"
#include "backward.cuh"
#include "device_tables.h"
#include "exact_product.h"
#include "rows.cuh"

namespace hyenarec {

// Calls run(n) with the number of coefficients that is compiled for at least as many, as a constant. Without
// kFast everything takes the one instantiation for any number: where speed doesn't matter.
template <bool kFast, typename Run>
void choose_scan_coeffs(int64_t given, const Run& run) {
  if constexpr (kFast) {
    if (given <= 9) return run(std::integral_constant<int, 9>{});
    if (given <= 17) return run(std::integral_constant<int, 17>{});
    if (given <= kScanUnrolledCoeffs) return run(std::integral_constant<int, kScanUnrolledCoeffs>{});
  }
  run(std::integral_constant<int, kScanMaxCoeffs>{});
}

// A gradient as the kernels write it; null if it is [0], not wanted.
template <typename scalar_t>
ScanRows<scalar_t> result_rows(const at::Tensor& result) {
  if (result.numel() == 0) return {nullptr, 0};
  return {result.mutable_data_ptr<scalar_t>(), static_cast<int>(result.size(-1))};
}
// An activation that may be absent.
struct OptionalRows {
  std::optional<Rows> rows;

  explicit OptionalRows(const std::optional<at::Tensor>& io) {
    if (io) rows.emplace(*io);
    // ScanRows keeps distances in 32 bits, multiplied by a chunk's rows.
    if (rows && rows->stride >= (int64_t{1} << 31) / (2 * kScanChunk)) rows.emplace(io->contiguous());
  }
  template <typename scalar_t>
  ScanRows<const scalar_t> data() const {
    if (!rows) return {nullptr, 0};
    return {rows->tensor.template const_data_ptr<scalar_t>(), static_cast<int>(rows->stride)};
  }
};

struct ScanGradients {
  at::Tensor coeffs, decay, skip, io_sums;  // io_sums [kSums, channels], double
};

// One call of an operator with parameters of type T: coeffs [D, N], decay [D], skip [D] or none.
template <typename T, bool kFast = !std::is_same_v<T, double>>
class ScanCall {
 public:
  template <typename Arguments>
  ScanCall(const char* op, const RowSequences& sequences, const Arguments& arguments)
      : sequences_(sequences),
        coeffs_(arguments.coeffs.contiguous()),
        decay_(arguments.decay.contiguous()),
        given_(coeffs_.size(1)) {
    if (const std::optional<at::Tensor> skip = arguments.skip) skip_ = skip->contiguous();
    const int64_t horizon = arguments.horizon.expect_int();
    TORCH_CHECK(
        given_ <= kScanMaxCoeffs, op, ": coeffs must be [D, N] with N <= ", kScanMaxCoeffs, " on CUDA, got ",
        coeffs_.sizes());
    choose_scan_coeffs<kFast>(given_, [&](auto coeff_count) {
      num_coeffs_ = coeff_count() <= kScanUnrolledCoeffs ? coeff_count() : std::max<int64_t>(given_, 1);
    });
    const int64_t channels = coeffs_.size(0);
    tiles_ = ceil_div(channels, kScanLanes);
    pitch_ = tiles_ * kScanLanes;
    const int64_t longest =
        std::min(sequences.offsets.defined() ? sequences.rows : sequences.length, horizon);
    const int64_t chunks = ceil_div(longest, kScanChunk);
    cut(chunks, channels, horizon);
    get_tables(longest, horizon);
    contract(chunks);
  }

  template <typename IO>
  void forward(const IO& io) {
    choose_scan_coeffs<kFast>(given_, [&](auto coeff_count) {
      constexpr int kN = coeff_count();
      const auto carry = find_carry<IO, kN, false>(io);
      launch(sweep_shape(), legendre_scan_forward<IO, kN, false>, input_, io, data(carry), nullptr);
    });
  }

  // The ScanIO's gradients, and those of the parameters into tensors that aren't empty.
  template <typename IO>
  ScanGradients backward(const IO& io, const GradientMask& wanted, ScanGradients grads) {
    choose_scan_coeffs<kFast>(given_, [&](auto coeff_count) {
      constexpr int kN = coeff_count();
      at::Tensor states;
      if (wanted.parameters || wanted.output) {
        states = scratch(work().slots(kScanChunk) * num_coeffs_);
        const auto carry = find_carry<IO, kN, false>(io);
        launch(sweep_shape(), legendre_scan_forward<IO, kN, true>, input_, io, data(carry), data(states));
      }
      const auto carry = find_carry<IO, kN, true>(io);
      const auto sweep =
          scan_backward_shape<IO>(work(), num_coeffs_, warps_, kept_tables_->most_moments, kMaxBlocks);
      const int64_t rows = scan_sum_rows<IO>(num_coeffs_);
      const int64_t blocks = sweep.work.row_groups * work().segments;
      const auto partial = wanted.parameters ? scratch(blocks * rows) : at::Tensor();
      launch(
          sweep.launch, legendre_scan_backward<IO, kN>,
          ScanInput<T>{sweep.work, input_.tables, input_.channels}, io, wanted, sweep.slab, data(states),
          data(carry), data(partial));
      if (wanted.parameters) finish<IO>(partial.view({blocks, rows, pitch_}), grads);
    });
    return grads;
  }

  const ScanWork& work() const { return input_.work; }
  LaunchShape shape() const { return scan_shape(work(), warps_); }
  LaunchShape sweep_shape() const { return scan_sweep_shape<T>(work(), warps_); }
  int64_t pitch() const { return pitch_; }
  // Scratch of `rows` rows for each segment's slot.
  at::Tensor segment_scratch(int64_t rows) const {
    return scratch(work().slots(work().segment_rows()) * rows);
  }

 private:
  // Segments and warps, from sizes and the number of multiprocessors. 8 warps on each are wanted: enough
  // loads in flight, so that `steps` chunks one after another are the least that a warp walks. Whole
  // sequences while the longest takes not much more than that; else segments of a power of two of chunks (few
  // tables), neither so short that combining them takes longer than walking them nor longer than `steps`.
  void cut(int64_t chunks, int64_t channels, int64_t horizon) {
    int processors = 0;
    C10_CUDA_CHECK(
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, c10::cuda::current_device()));
    const int64_t steps = ceil_div(ceil_div(sequences_.rows, kScanChunk) * tiles_, 8 * processors);
    int64_t segment = chunks;
    if (chunks > larger(3 * steps, 16)) {
      segment = 4;
      while (segment < steps || 4 * segment * segment < chunks) segment *= 2;
    }
    const int64_t segments = ceil_div(chunks, segment);
    const int64_t all_warps = sequences_.count * tiles_ * segments;
    // Warps of a block share what they read of a chunk's tables; a GPU with few warps has them everywhere.
    warps_ = kScanThreads / kScanLanes;
    while (warps_ > 1 && (all_warps < warps_ * processors || sequences_.count < warps_)) warps_ /= 2;
    input_.work = {
        sequences_.rows, sequences_.length, horizon,  sequences_.offsets_data(),         sequences_.count,
        channels,        segment,           segments, ceil_div(sequences_.count, warps_)};
  }

  void get_tables(int64_t longest, int64_t horizon) {
    int64_t length = kScanChunk;
    while (length < longest) length *= 2;
    kept_tables_ = get_scan_tables<T>(
        {coeffs_.device().index(), horizon, kScanChunk, num_coeffs_, std::min(length, horizon),
         work().segments > 1 ? work().segment_chunks : 0});
    input_.tables = kept_tables_->tables;
  }

  // Coeffs times the tables, as the sweeps read it. No sequence has more than `chunks` chunks, and from the
  // last of them nothing is transferred.
  void contract(int64_t chunks) {
    const int64_t rows = kept_tables_->first_rows[static_cast<size_t>(chunks - 1)];
    const auto table = kept_tables_->contraction_matrix().narrow(0, 0, rows).narrow(1, 0, given_);
    const int64_t missing = pitch_ - work().channels;
    const auto padded = missing > 0 ? at::constant_pad_nd(coeffs_, {0, 0, 0, missing}) : coeffs_;
    contracted_ = exact_product(table, padded.view({tiles_, kScanLanes, given_}).transpose(1, 2));
    input_.channels = {static_cast<int>(pitch_), rows, data(contracted_), data(decay_), data(skip_)};
  }

  // The states at the segments' starts, or their gradients; undefined with one segment.
  template <typename IO, int kN, bool kBackward>
  at::Tensor find_carry(const IO& io) const {
    if (work().segments == 1) return {};
    auto carry = segment_scratch(num_coeffs_);
    const auto kernel = kBackward ? legendre_scan_carry_backward<IO, kN> : legendre_scan_carry<IO, kN>;
    launch(sweep_shape(), kernel, input_, io, data(carry));
    launch(shape(), legendre_scan_combine<T, kN, kBackward>, input_, data(carry));
    return carry;
  }

  // The parameters' gradients from the blocks' sums [blocks, rows, pitch].
  template <typename IO>
  void finish(const at::Tensor& partial, ScanGradients& grads) const {
    const auto sums = partial.sum(0, /*keepdim=*/false, at::kDouble).narrow(1, 0, work().channels);
    const int64_t near_and_coeffs = kScanChunk + num_coeffs_;
    if (grads.coeffs.numel() > 0) {
      const auto table = kept_tables_->gradient_matrix().narrow(1, 0, given_);
      grads.coeffs.copy_(at::mm(sums.narrow(0, 0, near_and_coeffs).t(), table));
    }
    if (grads.decay.numel() > 0) grads.decay.copy_(sums[scan_sum_row(kScanDecaySum, num_coeffs_)]);
    if (grads.skip.numel() > 0) grads.skip.copy_(sums[0]);
    grads.io_sums = sums.narrow(0, scan_sum_row(kScanIOSums, num_coeffs_), IO::kSums);
  }

  // `rows` rows of the channels, rounded up to whole warps.
  at::Tensor scratch(int64_t rows) const { return at::empty({rows, pitch_}, coeffs_.options()); }
  static T* data(const at::Tensor& tensor) { return data_or_null<T>(tensor); }

  static constexpr int64_t kMaxBlocks = 1024;  // of a tile in the backward sweep

  const RowSequences sequences_;
  const at::Tensor coeffs_, decay_;
  const int64_t given_;
  int64_t num_coeffs_ = 0, tiles_ = 0, pitch_ = 0;
  int warps_ = 1;
  at::Tensor skip_, contracted_;
  std::shared_ptr<const DeviceScanTables<T>> kept_tables_;
  ScanInput<T> input_{};
};

}  // namespace hyenarec
