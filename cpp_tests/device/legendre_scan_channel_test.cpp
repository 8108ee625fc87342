// The taps and fades that the warps of a block make together, beside their formulas.
#include "device_test.h"

#include "ops/legendre_scan/cuda/channel.cuh"

namespace {

using namespace device_test;
using namespace hyenarec;

constexpr int64_t kChannels = 40, kTiles = 2, kRows = kScanChunk + 3;

// out [tiles, kScanTapRows, 32]: each row by a warp that didn't make it.
template <typename T>
void copy_taps(ScanWork work, ScanParameters<T> channels, T* out) {
  HYENAREC_SHARED_MEMORY(T, taps);
  const ScanPlace place = scan_place(work);
  make_taps(channels, work, place, taps);
  for (unsigned int row = (threadIdx.y + 1) % blockDim.y; row < kScanTapRows; row += blockDim.y) {
    const unsigned int at = row * kScanLanes + threadIdx.x;
    out[place.tile * kScanTapRows * kScanLanes + at] = taps[at];
  }
}

template <typename T>
void check(bool has_skip) {
  Buffer<T> polynomials(kTiles * kRows * kScanLanes), decay(kChannels), skip(kChannels);
  for (int64_t i = 0; i < polynomials.size(); ++i)
    polynomials[i] = i / (kRows * kScanLanes) * kScanLanes + i % kScanLanes < kChannels
                         ? static_cast<T>(std::cos(static_cast<double>(i)))
                         : T(0);
  for (int64_t d = 0; d < kChannels; ++d) {
    decay[d] = static_cast<T>(0.7 / static_cast<double>(1 + d));
    skip[d] = static_cast<T>(d);
  }
  const ScanWork work{0, 0, 0, nullptr, 0, kChannels, 1, 1, 1};
  const ScanParameters<T> channels{
      kTiles * kScanLanes, kRows, polynomials.data(), decay.data(), has_skip ? skip.data() : nullptr};
  LaunchShape shape = scan_shape(work, 3);
  shape.shared_bytes = kScanTapRows * kScanLanes * sizeof(T);
  Buffer<T> out(kTiles * kScanTapRows * kScanLanes);
  launch(shape, BlockOrder::ascending, copy_taps<T>, work, channels, out.data());

  std::vector<double> expected;
  for (int64_t i = 0; i < out.size(); ++i) {
    const int64_t row = i / kScanLanes % kScanTapRows, tile = i / kScanLanes / kScanTapRows,
                  lane = i % kScanLanes, d = tile * kScanLanes + lane;
    const double rate = d < kChannels ? static_cast<double>(decay[d]) : 0.0;
    if (row == kScanChunkDecayChange) {
      expected.push_back(std::expm1(-rate * kScanChunk));
    } else if (row >= kScanChunk) {
      expected.push_back(std::exp(-rate * static_cast<double>(row - kScanChunk)));
    } else {
      const auto polynomial = static_cast<double>(polynomials[(tile * kRows + row) * kScanLanes + lane]);
      const double extra = row == 0 && has_skip && d < kChannels ? static_cast<double>(d) : 0.0;
      expected.push_back(polynomial * std::exp(-rate * static_cast<double>(row)) + extra);
    }
  }
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(
        static_cast<double>(out[static_cast<int64_t>(i)]), expected[i],
        kTolerance<T> / 4 * std::max(1.0, std::abs(expected[i])))
        << i;
}

TEST(LegendreScanChannelDevice, MakesTapsTogether) {
  for (const bool has_skip : {false, true}) {
    check<float>(has_skip);
    check<double>(has_skip);
  }
}

}  // namespace
