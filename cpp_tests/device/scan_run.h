// The launches of a Legendre scan in the order in which legendre_scan_launch.h makes them, without a GPU.
#pragma once

#include "device_test.h"

#include "ops/cuda/legendre_scan_backward.cuh"
#include "ops/cuda/scan_tables.h"

namespace device_test {

using namespace hyenarec;

// The sequences of an oracle case: `name` is the activation that tells rows and length. Other offsets than the
// case's may be given.
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
    for (int64_t i = 0; i < count; ++i) order.push_back(i);
    const auto size = [&](int64_t i) {
      return offsets[static_cast<size_t>(i) + 1] - offsets[static_cast<size_t>(i)];
    };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return size(a) > size(b); });
  }
  int64_t longest() const { return std::min(offsets.empty() ? length : rows, horizon); }

  int64_t rows = 0, length = 0, horizon = 1, count = 0;
  std::vector<int64_t> offsets, order;
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
  std::vector<double> coeffs, decay, skip, source_sums;
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
        n_(kN <= kScanUnrolledCoeffs ? kN : given_),
        pitch_(ceil_div(channels, kScanLanes) * kScanLanes),
        coeffs_(expected["coeffs"].values),
        decay_(expected["decay"].values),
        skip_(expected.has("skip") ? expected["skip"].values : std::vector<double>()),
        shapes_(0),
        near_(kScanChunk * pitch_),
        fades_(kScanFades * pitch_),
        transfers_(0),
        carry_(0) {
    const int64_t chunks = ceil_div(sequences.longest(), kScanChunk);
    const int64_t segment = cut.segment_chunks > 0 ? cut.segment_chunks : chunks;
    flat_ = make_scan_tables<T>(
        sequences.horizon, kScanChunk, n_, scan_pitch(n_), sequences.longest(), cut.segment_chunks);
    shapes_.resize(static_cast<size_t>(chunks));
    for (size_t i = 0; i < shapes_.size(); ++i)
      shapes_[i] = {flat_.shapes[3 * i], flat_.shapes[3 * i + 1], flat_.shapes[3 * i + 2]};
    tables_ = {
        static_cast<int>(n_), static_cast<int>(scan_pitch(n_)), sequences.horizon,     flat_.tail_chunk,
        shapes_.data(),       aligned(flat_.matrices),          flat_.transfer.data(), aligned(flat_.tail),
        aligned(flat_.jumps)};
    const int64_t groups = ceil_div(sequences.count, cut.warps);
    work_ = {
        sequences.rows,
        sequences.length,
        sequences.horizon,
        sequences.offsets.empty() ? nullptr : sequences.offsets.data(),
        sequences.order.empty() ? nullptr : sequences.order.data(),
        sequences.count,
        channels,
        segment,
        ceil_div(chunks, segment),
        std::min(groups, cut.most_blocks)};
    const int64_t entries = scan_entries(n_, flat_.most_moments), tiles = pitch_ / kScanLanes;
    transfers_ = std::vector<T>(static_cast<size_t>(chunks * tiles * entries * kScanLanes), T(NAN));
    parameters_ = {static_cast<int>(pitch_), near_.data(), fades_.data(), transfers_.data(), entries};

    launch(
        scan_prepare_shape(pitch_), cut.order, legendre_scan_prepare<T>, channels, pitch_, given_,
        sequences.horizon, segment, coeffs_.data(), decay_.data(), skip_.size() > 0 ? skip_.data() : nullptr,
        near_.data(), fades_.data());
    if (chunks > 1)
      launch(
          scan_contract_shape(tiles, chunks - 1), cut.order, legendre_scan_contract<T>, work_, tables_, tiles,
          entries, given_, coeffs_.data(), transfers_.data());
  }

  template <typename Source>
  void forward(const Source& source) {
    find_carry(source);
    launch(
        shape(), cut_.order, legendre_scan_forward<Source, kN, false>, work_, tables_, parameters_, source,
        carry_.data(), static_cast<T*>(nullptr));
  }

  template <typename Source>
  ParameterGradients backward(const Source& source, const ScanWanted& wanted) {
    constexpr int kTimeSums = kScanTimeSums<Source>;
    Buffer<T> states(scan_slots(work_.rows, work_.sequences, kScanChunk) * n_ * pitch_);
    if (wanted.kernel || wanted.output) {
      find_carry(source);
      launch(
          shape(), cut_.order, legendre_scan_forward<Source, kN, true>, work_, tables_, parameters_, source,
          carry_.data(), states.data());
    }
    if (work_.segments > 1) {
      carry_ = scratch();
      launch(
          shape(), cut_.order, legendre_scan_adjoint_carry<Source, kN>, work_, tables_, parameters_, source,
          carry_.data());
      launch(
          shape(), cut_.order, legendre_scan_combine<T, kN, true>, work_, tables_, parameters_,
          carry_.data());
    }
    const auto backward = scan_backward_shape<Source>(work_, n_, cut_.warps, cut_.slab, cut_.most_blocks);
    const int64_t rows = kTimeSums + n_, blocks = backward.work.row_groups * work_.segments;
    Buffer<T> partial(blocks * rows * pitch_);
    launch(
        backward.launch, cut_.order, legendre_scan_backward<Source, kN>, backward.work, tables_, parameters_,
        source, wanted, backward.slab, states.data(), carry_.data(), partial.data());
    if (!wanted.kernel) return {};

    Buffer<double> sums(rows * pitch_);
    launch(
        scan_sum_shape(blocks, rows, pitch_), cut_.order, legendre_scan_sum<T>, blocks, rows, pitch_,
        partial.data(), sums.data());
    Buffer<T> coeffs(channels_ * given_), decay(channels_), skip(skip_.size());
    launch(
        scan_finish_shape(channels_, given_), cut_.order, legendre_scan_finish<T>, channels_, pitch_, given_,
        work_.horizon, kTimeSums, sums.data(), near_.data(), decay_.data(), coeffs.data(), decay.data(),
        skip.size() > 0 ? skip.data() : nullptr);
    std::vector<double> source_sums;
    for (int64_t row = kScanSourceSums; row < kTimeSums; ++row) {
      for (int64_t d = 0; d < channels_; ++d) source_sums.push_back(sums[row * pitch_ + d]);
    }
    return {coeffs.values(), decay.values(), skip.values(), source_sums};
  }

  const ScanWork& work() const { return work_; }
  int64_t pitch() const { return pitch_; }
  int64_t segment_slots() const {
    return scan_slots(work_.rows, work_.sequences, work_.segment_chunks * kScanChunk);
  }

 private:
  LaunchShape shape() const { return scan_shape(work_, cut_.warps); }

  std::vector<T> scratch() const {
    return std::vector<T>(static_cast<size_t>(segment_slots() * n_ * pitch_), T(NAN));
  }
  template <typename Source>
  void find_carry(const Source& source) {
    if (work_.segments == 1) return;
    carry_ = scratch();
    launch(
        shape(), cut_.order, legendre_scan_carry<Source, kN>, work_, tables_, parameters_, source,
        carry_.data());
    launch(
        shape(), cut_.order, legendre_scan_combine<T, kN, false>, work_, tables_, parameters_, carry_.data());
  }

  // Vector loads of four numbers need their alignment, as torch's allocator has it.
  T* aligned(const std::vector<T>& values) {
    const size_t bytes = (values.size() * sizeof(T) + 63) / 64 * 64;
    aligned_.emplace_back(static_cast<T*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))), std::free);
    std::copy(values.begin(), values.end(), aligned_.back().get());
    return aligned_.back().get();
  }

  const Cut cut_;
  const int64_t channels_, given_, n_, pitch_;
  const Buffer<T> coeffs_, decay_, skip_;
  HostScanTables<T> flat_;
  std::vector<ScanChunkShape> shapes_;
  std::vector<std::unique_ptr<T, decltype(&std::free)>> aligned_;
  Buffer<T> near_, fades_;
  std::vector<T> transfers_, carry_;
  ScanTables<T> tables_;
  ScanWork work_;
  ScanChannels<T> parameters_;
};

}  // namespace device_test
