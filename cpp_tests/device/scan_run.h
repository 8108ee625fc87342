// The launches of a Legendre scan in the order in which ScanCall makes them, without a GPU;
// what torch does between them, in plain loops.
#pragma once

#include "device_test.h"

#include "ops/legendre_scan/cuda/backward.cuh"
#include "ops/legendre_scan/cuda/host_tables.h"

namespace device_test {

using namespace hyenarec;

// The sequences of an oracle case: `name` is the activation that tells rows and length. Other offsets than
// the case's may be given.
struct Sequences {
  Sequences(const oracle::Case& expected, const char* name, const std::vector<int64_t>& other = {}) {
    const auto& sizes = expected[name].sizes;
    horizon = expected.integer("horizon");
    if (!expected.has("offsets")) {
      count = sizes[0];
      length = sizes[1];
      rows = count * length;
      return;
    }
    offsets = other.empty() ? expected["offsets"].as<int64_t>() : other;
    count = static_cast<int64_t>(offsets.size()) - 1;
    rows = sizes[0];
  }
  int64_t longest() const { return std::min(offsets.empty() ? length : rows, horizon); }

  int64_t rows = 0, length = 0, horizon = 1, count = 0;
  std::vector<int64_t> offsets;
};

// How the work is cut: what the launcher chooses from sizes and the GPU.
struct Cut {
  int64_t segment_chunks = 0;  // 0: a whole sequence
  int warps = 2;
  int64_t most_blocks = 1000;
  int64_t slab = 3;
  BlockOrder order = BlockOrder::ascending;
};

struct ParameterGradients {
  std::vector<double> coeffs, decay, skip, io_sums;
  bool operator==(const ParameterGradients&) const = default;
};

inline void expect_near(
    const oracle::Case& expected, const char* name, const std::vector<double>& values, double tolerance) {
  if (!expected.has(name)) return;
  EXPECT_LT(relative_error(values, expected[name].values), tolerance) << name;
}

// Parameters, tables and scratch of one call, for kN coefficients.
template <typename T, int kN>
class Scan {
 public:
  Scan(const oracle::Case& expected, const Sequences& sequences, int64_t channels, const Cut& cut)
      : cut_(cut),
        channels_(channels),
        given_(expected["coeffs"].sizes[1]),
        n_(kN <= kScanUnrolledCoeffs ? kN : std::max<int64_t>(given_, 1)),
        pitch_(ceil_div(channels, kScanLanes) * kScanLanes),
        coeffs_(expected["coeffs"].values),
        decay_(expected["decay"].values),
        skip_(expected.has("skip") ? expected["skip"].values : std::vector<double>()),
        contracted_(0) {
    const int64_t chunks = ceil_div(sequences.longest(), kScanChunk);
    const int64_t segment = cut.segment_chunks > 0 ? cut.segment_chunks : chunks;
    flat_ = make_scan_tables<T>(sequences.horizon, kScanChunk, n_, sequences.longest(), cut.segment_chunks);
    input_.tables = flat_.placed([&](const auto& array) { return aligned(array); });
    const int64_t groups = ceil_div(sequences.count, cut.warps);
    input_.work = {
        sequences.rows,
        sequences.length,
        sequences.horizon,
        sequences.offsets.empty() ? nullptr : sequences.offsets.data(),
        sequences.count,
        channels,
        segment,
        ceil_div(chunks, segment),
        std::min(groups, cut.most_blocks)};
    contract(flat_.shapes.back().transfer);
  }

  template <typename IO>
  void forward(const IO& io) {
    find_carry(io);
    launch(
        sweep_shape(), cut_.order, legendre_scan_forward<IO, kN, false>, input_, io, carry_.data(),
        static_cast<T*>(nullptr));
  }

  template <typename IO>
  ParameterGradients backward(const IO& io, const GradientMask& wanted) {
    Buffer<T> states(work().slots(kScanChunk) * n_ * pitch_);
    if (wanted.parameters || wanted.output) {
      find_carry(io);
      launch(
          sweep_shape(), cut_.order, legendre_scan_forward<IO, kN, true>, input_, io, carry_.data(),
          states.data());
    }
    if (work().segments > 1) {
      carry_ = scratch();
      launch(sweep_shape(), cut_.order, legendre_scan_carry_backward<IO, kN>, input_, io, carry_.data());
      launch(shape(), cut_.order, legendre_scan_combine<T, kN, true>, input_, carry_.data());
    }
    const auto backward = scan_backward_shape<IO>(work(), n_, cut_.warps, cut_.slab, cut_.most_blocks);
    const int64_t rows = scan_sum_rows<IO>(n_), blocks = backward.work.row_groups * work().segments;
    Buffer<T> partial(blocks * rows * pitch_);
    launch(
        backward.launch, cut_.order, legendre_scan_backward<IO, kN>,
        ScanInput<T>{backward.work, input_.tables, input_.channels}, io, wanted, backward.slab, states.data(),
        carry_.data(), partial.data());
    if (!wanted.parameters) return {};

    const auto sums = sum_over_groups(partial, blocks);
    ParameterGradients grads{{}, row_of(sums, scan_sum_row(kScanDecaySum, n_)), {}, {}};
    if (skip_.size() > 0) grads.skip = row_of(sums, 0);
    for (int64_t i = 0; i < IO::kSums; ++i) {
      const auto row = row_of(sums, scan_sum_row(kScanIOSums + i, n_));
      grads.io_sums.insert(grads.io_sums.end(), row.begin(), row.end());
    }
    for (int64_t d = 0; d < channels_; ++d) {
      for (int64_t k = 0; k < given_; ++k) {
        double sum = 0;
        for (int64_t row = 0; row < kScanChunk + n_; ++row)
          sum +=
              flat_.gradient[static_cast<size_t>(row * n_ + k)] * sums[static_cast<size_t>(row * pitch_ + d)];
        grads.coeffs.push_back(sum);
      }
    }
    return grads;
  }

  const ScanWork& work() const { return input_.work; }
  int64_t pitch() const { return pitch_; }
  int64_t segment_slots() const { return work().slots(work().segment_rows()); }

 private:
  LaunchShape shape() const { return scan_shape(work(), cut_.warps); }
  LaunchShape sweep_shape() const { return scan_sweep_shape<T>(work(), cut_.warps); }

  // The first rows of the tables' `contraction` times coeffs.
  void contract(int64_t rows) {
    contracted_ = Buffer<T>(rows * pitch_);
    for (int64_t d = 0; d < pitch_; ++d) {
      for (int64_t row = 0; row < rows; ++row) {
        T sum = T(0);
        for (int64_t k = 0; k < given_ && d < channels_; ++k)
          sum += flat_.contraction[static_cast<size_t>(row * n_ + k)] * coeffs_[d * given_ + k];
        contracted_[(d / kScanLanes * rows + row) * kScanLanes + d % kScanLanes] = sum;
      }
    }
    input_.channels = {
        static_cast<int>(pitch_), rows, contracted_.data(), decay_.data(),
        skip_.size() > 0 ? skip_.data() : nullptr};
  }

  // Of sums [rows, pitch].
  std::vector<double> row_of(const std::vector<double>& sums, int64_t row) const {
    return {sums.begin() + row * pitch_, sums.begin() + row * pitch_ + channels_};
  }

  std::vector<T> scratch() const {
    return std::vector<T>(static_cast<size_t>(segment_slots() * n_ * pitch_), T(NAN));
  }
  template <typename IO>
  void find_carry(const IO& io) {
    if (work().segments == 1) return;
    carry_ = scratch();
    launch(sweep_shape(), cut_.order, legendre_scan_carry<IO, kN>, input_, io, carry_.data());
    launch(shape(), cut_.order, legendre_scan_combine<T, kN, false>, input_, carry_.data());
  }

  // Vector loads of four numbers need their alignment, as CUDA's allocator has it.
  template <typename U>
  const U* aligned(const std::vector<U>& values) {
    const size_t bytes = (values.size() * sizeof(U) + 63) / 64 * 64;
    auto* const copy = static_cast<U*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64)));
    aligned_.emplace_back(copy, std::free);
    std::copy(values.begin(), values.end(), copy);
    return copy;
  }

  const Cut cut_;
  const int64_t channels_, given_, n_, pitch_;
  const Buffer<T> coeffs_, decay_, skip_;
  HostScanTables<T> flat_;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> aligned_;
  Buffer<T> contracted_;
  std::vector<T> carry_;
  ScanInput<T> input_{};
};

}  // namespace device_test
