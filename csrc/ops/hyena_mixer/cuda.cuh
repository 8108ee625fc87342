// Device code of hyena_mixer: what the scan's sweeps read and write when the short
// convolution and the split into q, k and v happen on the way.
//
// A chunk's rows of q, k or v are filtered in registers from the raw rows and the few before them, which the
// chunk before has just read. Backwards, the filter's transposed needs the gradients of the few rows behind a
// chunk: its thread has just computed them and keeps them. Where a segment ends, another block has them: both
// sides leave their numbers in `edges`, and hyena_mixer_join adds them up.
//
// Bytes that must move, a row: forward x and out, 4 D; backward grad, x and grad_x, 7 D.
#pragma once

#include "../legendre_scan/cuda/backward.cuh"
#include "../legendre_scan/cuda/rows.cuh"

namespace hyenarec {

// out = q (kernel * (k v)), where q, k and v are the filtered parts 0, 1 and 2 of x, `channels` each.
// kTaps >= width.
template <typename scalar_t, int kTaps>
struct HyenaMixerIO {
  using Scalar = scalar_t;
  using T = accumulate_t<scalar_t>;
  static constexpr int kHalo = kTaps - 1;
  // For each part the gradients of its taps, then its bias.
  static constexpr int kSums = 3 * (kTaps + 1);

  ScanRows<const scalar_t> x, grad;
  ScanRows<scalar_t> out, grad_x;
  const T* weight;  // [3 channels, width]
  const T* bias;    // [3 channels]; null: zeros
  int width;
  int64_t channels;
  int64_t edge_pitch;
  T* edges;  // [segments' slots, 2, 3, kHalo, edge_pitch]; see Memory

  // A thread's own while it walks a segment backwards.
  struct Memory {
    T behind[3][kTaps];    // gradients of the filtered rows behind the chunk: kHalo of them
    T sums[3][kTaps + 1];  // over all its segments
    T *head, *tail;        // in edges, or null: gradients of the segment's first filtered rows; grad_x of its
    bool is_segments_last;  // last rows as far as this segment knows it. Is this the segment's last chunk?
  };

  // Filtered rows of one part; zero beyond `rows`.
  __device__ void filter(
      int part, int64_t channel, int64_t row, int64_t before, int rows, T (&values)[kScanChunk]) const {
    const int64_t column = part * channels + channel;
    T raw[kScanChunk + kHalo];
    load_raw(column, row, before, rows, raw);
    const T shift = bias == nullptr ? T(0) : bias[column];
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) values[j] = shift;
#pragma unroll
    for (int lag = 0; lag < kTaps; ++lag) {
      if (lag < width) {  // 0 times infinity is NaN: what no tap reaches must not be multiplied
        const T tap = weight[column * width + lag];
#pragma unroll
        for (int j = 0; j < kScanChunk; ++j) values[j] += tap * raw[j + kHalo - lag];
      }
    }
    keep_rows(rows, values);
  }
  // raw[i] is row + i - kHalo; zero before the sequence and beyond `rows`.
  __device__ void load_raw(
      int64_t column, int64_t row, int64_t before, int rows, T (&raw)[kScanChunk + kHalo]) const {
    const bool whole = rows == kScanChunk && before > 0;
    load_channel(x, column, row, whole, before > 0 ? -kHalo : 0, rows - 1, kHalo, raw);
    if (whole) return;
#pragma unroll
    for (int i = 0; i < kScanChunk + kHalo; ++i)
      raw[i] = i - kHalo < rows && (i >= kHalo || before > 0) ? raw[i] : T(0);
  }

  __device__ void load_input(
      int64_t channel, int64_t row, int64_t before, int rows, T (&z)[kScanChunk]) const {
    T v[kScanChunk];
    filter(1, channel, row, before, rows, z);
    filter(2, channel, row, before, rows, v);
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) z[j] *= v[j];
  }
  __device__ void store_output(
      int64_t channel, int64_t row, int64_t before, int rows, T (&y)[kScanChunk]) const {
    T q[kScanChunk];
    filter(0, channel, row, before, rows, q);
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) y[j] *= q[j];
    store_rows(out, channel, row, rows, y);
  }
  __device__ void poison_output(int64_t channel, int64_t row) const {
    *out.at(row, channel) = static_cast<scalar_t>(NAN);
  }

  __device__ void load_output_grad(
      int64_t channel, int64_t row, int64_t before, int rows, T (&dy)[kScanChunk]) const {
    filter(0, channel, row, before, rows, dy);
    multiply_rows(grad, channel, row, rows, dy);
  }

  __device__ void begin(Memory& memory) const {
#pragma unroll
    for (int part = 0; part < 3; ++part) {
#pragma unroll
      for (int i = 0; i <= kTaps; ++i) memory.sums[part][i] = T(0);
    }
  }
  // before, behind: the slots of this segment and the next one, or -1 for a sequence's ends.
  __device__ void begin_segment(Memory& memory, int64_t channel, int64_t before, int64_t behind) const {
    const int64_t half = 3 * kHalo * edge_pitch;
    memory.head = before < 0 ? nullptr : edges + 2 * before * half + channel;
    memory.tail = behind < 0 ? nullptr : edges + (2 * behind + 1) * half + channel;
    memory.is_segments_last = true;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
#pragma unroll
      for (int i = 0; i < kHalo; ++i) memory.behind[part][i] = T(0);
    }
  }
  __device__ void end_segment(const Memory& memory) const {
    if (memory.head == nullptr) return;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
#pragma unroll
      for (int i = 0; i < kHalo; ++i) memory.head[(part * kHalo + i) * edge_pitch] = memory.behind[part][i];
    }
  }

  __device__ void store_gate_grad(
      Memory& memory, int64_t channel, int64_t row, int64_t before, int rows,
      const T (&y)[kScanChunk]) const {
    T dq[kScanChunk];
    load_rows(grad, channel, row, rows, dq);
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) dq[j] *= y[j];
    store_filter_gradient(memory, 0, channel, row, before, rows, dq);
  }
  __device__ void store_input_grad(
      Memory& memory, int64_t channel, int64_t row, int64_t before, int rows,
      const T (&dz)[kScanChunk]) const {
    T d[kScanChunk];
#pragma unroll
    for (int part = 1; part < 3; ++part) {
      filter(3 - part, channel, row, before, rows, d);  // the other factor
#pragma unroll
      for (int j = 0; j < kScanChunk; ++j) d[j] *= dz[j];
      store_filter_gradient(memory, part, channel, row, before, rows, d);
    }
    memory.is_segments_last = false;  // the chunk's last part
  }
  // d: gradients of the filtered rows.
  __device__ void store_filter_gradient(
      Memory& memory, int part, int64_t channel, int64_t row, int64_t before, int rows,
      T (&d)[kScanChunk]) const {
    const int64_t column = part * channels + channel;
    T raw[kScanChunk + kHalo], dx[kScanChunk];
    load_raw(column, row, before, rows, raw);
    keep_rows(rows, d);
#pragma unroll
    for (int j = 0; j < kScanChunk; ++j) {
      dx[j] = T(0);
      memory.sums[part][kTaps] += d[j];
    }
#pragma unroll
    for (int lag = 0; lag < kTaps; ++lag) {
      if (lag < width) {
        const T tap = weight[column * width + lag];
        T sums[2] = {T(0), T(0)};
#pragma unroll
        for (int j = 0; j < kScanChunk; ++j) {
          const T from = j + lag < kScanChunk ? d[j + lag] : memory.behind[part][j + lag - kScanChunk];
          dx[j] += tap * from;
          sums[j % 2] += d[j] * raw[j + kHalo - lag];
        }
        memory.sums[part][lag] += sums[0] + sums[1];
      }
    }
#pragma unroll
    for (int i = 0; i < kHalo; ++i) memory.behind[part][i] = d[i];
    if (memory.is_segments_last && memory.tail != nullptr) {
#pragma unroll
      for (int i = 0; i < kHalo; ++i)
        memory.tail[(part * kHalo + i) * edge_pitch] = dx[kScanChunk - kHalo + i];
    }
    if (grad_x.data != nullptr) store_rows(grad_x, column, row, rows, dx);
  }
  // To the sums of legendre_scan_backward, 32 apart.
  __device__ void store_sums(const Memory& memory, T* to) const {
#pragma unroll
    for (int part = 0; part < 3; ++part) {
#pragma unroll
      for (int i = 0; i <= kTaps; ++i) to[(part * (kTaps + 1) + i) * kScanLanes] = memory.sums[part][i];
    }
  }
  __device__ void poison_gradients(int64_t channel, int64_t row) const {
    if (grad_x.data == nullptr) return;
    for (int part = 0; part < 3; ++part)
      *grad_x.at(row, part * channels + channel) = static_cast<scalar_t>(NAN);
  }
};

// grad_x of the last rows of each segment that has a successor: what the segment knows of it and what the
// filtered rows behind it say. Shape: scan_shape().
template <typename scalar_t, int kTaps>
__global__ void __launch_bounds__(kScanThreads)
    hyena_mixer_join(ScanWork work, HyenaMixerIO<scalar_t, kTaps> io) {
  using T = accumulate_t<scalar_t>;
  constexpr int kHalo = kTaps - 1;
  const ScanPlace place = scan_place(work);
  if (place.channel >= work.channels) return;
  for_each_sequence(work, place, [&](const ScanSequence& sequence) {
    const int64_t end = (place.segment + 1) * work.segment_chunks * kScanChunk;
    if (sequence.length <= end) return;
    const int64_t slot = work.slot(sequence, work.segment_chunks * kScanChunk) + place.segment + 1;
    for (int part = 0; part < 3; ++part) {
      const int64_t column = part * work.channels + place.channel, pitch = io.edge_pitch;
      const T* head = io.edges + (slot * 6 + part) * kHalo * pitch + place.channel;
      const T* tail = head + 3 * kHalo * pitch;
      for (int i = 0; i < kHalo; ++i) {
        T sum = tail[i * pitch];
        for (int lag = kHalo - i; lag < io.width; ++lag)
          sum += io.weight[column * io.width + lag] * head[(i + lag - kHalo) * pitch];
        *io.grad_x.at(sequence.begin + end - kHalo + i, column) = static_cast<scalar_t>(sum);
      }
    }
  });
}

}  // namespace hyenarec
