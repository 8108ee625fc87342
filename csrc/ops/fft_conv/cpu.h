// fft_conv on the CPU but for the transforms: how a call is cut into tiles, the ways of a tile into rows of
// time and back, products of spectra. No torch here.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cpu/rows.h"
#include "../common/cpu/simd.h"
#include "fft_size.h"

namespace hyenarec::cpu::fft_conv {

// Padded numbers that one FFT call takes: few enough for the cache, enough to pay for each call's set-up.
constexpr int64_t kTileElements = 1 << 17;
constexpr int64_t kMinTileChannels = 32;
constexpr int64_t kMaxTileChannels = 64;
// The work is cut into 4 to 64 jobs whatever the number of threads, so that results do not depend on it.
constexpr int64_t kMinJobs = 4;
constexpr int64_t kMaxJobs = 64;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a call is cut. A job is a block of channels and a group of sequences, taken `tile_sequences` at a time.
struct Plan {
  int64_t batch, length, channels, lags, size, bins;
  int64_t tile_channels, channel_blocks, tile_sequences, groups;

  Plan(int64_t batch, int64_t length, int64_t channels, int64_t kernel_lags)
      : batch(batch),
        length(length),
        channels(channels),
        lags(fft_conv_lags(length, kernel_lags)),
        size(fft_conv_size(length, kernel_lags)),
        bins(size / 2 + 1),
        // Fewer when there are too few sequences to share out.
        tile_channels(std::min(channels, batch < kMinJobs ? kMinTileChannels : kMaxTileChannels)),
        channel_blocks(ceil_div(channels, tile_channels)),
        tile_sequences(std::clamp<int64_t>(kTileElements / (size * tile_channels), 1, batch)),
        groups(std::clamp<int64_t>(kMaxJobs / channel_blocks, 1, ceil_div(batch, tile_sequences))) {}

  int64_t tile_rows() const { return tile_sequences * tile_channels; }
};

// A part of [B, L, D], all of the time. Each (sequence, channel) of it is a row, padded to the FFT's size.
struct Tile {
  int64_t group, first_sequence, sequences, first_channel, channels;

  int64_t rows() const { return sequences * channels; }

  // What the tile has of one of its sequences.
  template <typename scalar_t>
  Rows<scalar_t> of(const Rows<scalar_t>& tensor, int64_t sequence) const {
    const auto rows = tensor.from_channel(first_channel);
    return {rows.data + (first_sequence + sequence) * rows.sequence_stride, 0, rows.row_stride};
  }
};

// Calls run(tile) for each tile of a job, in order.
template <typename Run>
void over_tiles(const Plan& plan, int64_t job, const Run& run) {
  const int64_t group = job / plan.channel_blocks;
  const int64_t channel = job % plan.channel_blocks * plan.tile_channels;
  const int64_t channels = std::min(plan.tile_channels, plan.channels - channel);
  const int64_t last = plan.batch * (group + 1) / plan.groups;
  for (int64_t s = plan.batch * group / plan.groups; s < last; s += plan.tile_sequences)
    run(Tile{group, s, std::min(plan.tile_sequences, last - s), channel, channels});
}

// Calls block(t, d) for 8 x 8 numbers from event t and channel d on, and one(t, d) for each number left over.
template <typename Block, typename One>
HYENAREC_INLINE void for_each_block(int64_t length, int64_t channels, const Block& block, const One& one) {
  const int64_t whole_length = length / 8 * 8, whole_channels = channels / 8 * 8;
  for (int64_t t = 0; t < whole_length; t += 8) {
    for (int64_t d = 0; d < whole_channels; d += 8) block(t, d);
  }
  for (int64_t d = 0; d < channels; ++d) {
    for (int64_t t = d < whole_channels ? whole_length : 0; t < length; ++t) one(t, d);
  }
}

// Complex numbers as pairs (real, imaginary). The sign is that of b's imaginary part: -1 takes its conjugate.
template <typename compute_t>
HYENAREC_INLINE void multiply_by(
    compute_t* __restrict a, const compute_t* __restrict b, compute_t sign, int64_t bins) {
  for (int64_t i = 0; i < 2 * bins; i += 2) {
    const compute_t real = a[i], imaginary = a[i + 1], b_imaginary = sign * b[i + 1];
    a[i] = real * b[i] - imaginary * b_imaginary;
    a[i + 1] = real * b_imaginary + imaginary * b[i];
  }
}

// sum += conj(a) b
template <typename compute_t>
HYENAREC_INLINE void add_conjugate_product(
    compute_t* __restrict sum, const compute_t* __restrict a, const compute_t* __restrict b, int64_t bins) {
  for (int64_t i = 0; i < 2 * bins; i += 2) {
    sum[i] += a[i] * b[i] + a[i + 1] * b[i + 1];
    sum[i + 1] += a[i] * b[i + 1] - a[i + 1] * b[i];
  }
}

// One tile at work. Its rows of time are [sequences, channels, size], its spectra [sequences, channels, bins]
// pairs.
template <typename scalar_t, typename compute_t>
struct TileWork {
  const Plan& plan;
  const Tile& tile;

  // rows = from gate, transposed
  void read(const Rows<const scalar_t>& from, const Rows<const scalar_t>& gate, compute_t* rows) const {
    for_each_sequence([&](int64_t s) HYENAREC_INLINE_LAMBDA {
      const auto source = tile.of(from, s), factor = tile.of(gate, s);
      const int64_t size = plan.size;
      compute_t* target = rows + s * tile.channels * size;
      for_each_block(
          plan.length, tile.channels,
          [&](int64_t t, int64_t d) HYENAREC_INLINE_LAMBDA {
            simd::Vector<compute_t> block[8];
            for (int64_t i = 0; i < 8; ++i) {
              block[i] = simd::load(source.row(t + i) + d);
              if (factor.data) block[i] *= simd::load(factor.row(t + i) + d);
            }
            simd::transpose<compute_t>(block);
            for (int64_t i = 0; i < 8; ++i) simd::store(block[i], target + (d + i) * size + t);
          },
          [&](int64_t t, int64_t d) HYENAREC_INLINE_LAMBDA {
            auto value = static_cast<compute_t>(source.row(t)[d]);
            if (factor.data) value *= static_cast<compute_t>(factor.row(t)[d]);
            target[d * size + t] = value;
          });
    });
  }

  // to = rows gate, transposed
  void write(const compute_t* rows, const Rows<const scalar_t>& gate, const Rows<scalar_t>& to) const {
    for_each_sequence([&](int64_t s) HYENAREC_INLINE_LAMBDA {
      const auto factor = tile.of(gate, s);
      const auto target = tile.of(to, s);
      const int64_t size = plan.size;
      const compute_t* source = rows + s * tile.channels * size;
      for_each_block(
          plan.length, tile.channels,
          [&](int64_t t, int64_t d) HYENAREC_INLINE_LAMBDA {
            simd::Vector<compute_t> block[8];
            for (int64_t i = 0; i < 8; ++i) block[i] = simd::load(source + (d + i) * size + t);
            simd::transpose<compute_t>(block);
            for (int64_t i = 0; i < 8; ++i) {
              if (factor.data) block[i] *= simd::load(factor.row(t + i) + d);
              simd::store(block[i], target.row(t + i) + d);
            }
          },
          [&](int64_t t, int64_t d) HYENAREC_INLINE_LAMBDA {
            compute_t value = source[d * size + t];
            if (factor.data) value *= static_cast<compute_t>(factor.row(t)[d]);
            target.row(t)[d] = static_cast<scalar_t>(value);
          });
    });
  }

  // spectra *= the kernel's [D, bins], or its conjugate where the sign is -1.
  void filter(compute_t* spectra, const compute_t* kernel_spectrum, compute_t sign) const {
    const auto* kernel = kernel_spectrum + tile.first_channel * 2 * plan.bins;
    const int64_t bins = tile.channels * plan.bins;
    for_each_sequence(
        [&](int64_t s) HYENAREC_INLINE_LAMBDA { multiply_by(spectra + s * 2 * bins, kernel, sign, bins); });
  }

  // sums[group] += conj(z) h, over the sequences of the tile; sums [groups, D, bins].
  void correlate(const compute_t* z, const compute_t* h, compute_t* sums) const {
    auto* sum = sums + (tile.group * plan.channels + tile.first_channel) * 2 * plan.bins;
    const int64_t bins = tile.channels * plan.bins;
    for_each_sequence([&](int64_t s) HYENAREC_INLINE_LAMBDA {
      add_conjugate_product(sum, z + s * 2 * bins, h + s * 2 * bins, bins);
    });
  }

 private:
  template <typename Run>
  void for_each_sequence(const Run& run) const {
    simd::run_with_widest_vectors([&](auto) HYENAREC_INLINE_LAMBDA {
      for (int64_t s = 0; s < tile.sequences; ++s) run(s);
    });
  }
};

}  // namespace hyenarec::cpu::fft_conv
