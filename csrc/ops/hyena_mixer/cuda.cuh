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
    Vector<T, kHalo> behind[3];    // gradients of the filtered rows behind the chunk
    Vector<T, kTaps + 1> sums[3];  // over all its segments
    T *head, *tail;  // in edges, or null: gradients of the segment's first filtered rows; grad_x of its
    bool is_segments_last;  // last rows as far as this segment knows it. Is this the segment's last chunk?
  };

  // The same rows of one part's raw channels.
  __device__ ScanChunkRows part_rows(int part, ScanChunkRows rows) const {
    rows.channel += part * channels;
    return rows;
  }
  // Filtered rows of one part; zero beyond them.
  __device__ ScanChunk<T> filter(int part, const ScanChunkRows& rows) const {
    const ScanChunkRows column = part_rows(part, rows);
    const auto raw = load_raw(column);
    const T shift = bias == nullptr ? T(0) : bias[column.channel];
    ScanChunk<T> values;
    unrolled<kScanChunk>([&](int j) { values[j] = shift; });
    unrolled<kTaps>([&](int lag) {
      if (lag >= width) return;  // 0 times infinity is NaN: what no tap reaches must not be multiplied
      const T tap = weight[column.channel * width + lag];
      unrolled<kScanChunk>([&](int j) { values[j] += tap * raw[j + kHalo - lag]; });
    });
    keep_rows(rows, values);
    return values;
  }
  // [i] is row + i - kHalo; zero before the sequence and beyond the rows.
  __device__ Vector<T, kScanChunk + kHalo> load_raw(const ScanChunkRows& rows) const {
    const bool has_before = rows.before > 0, whole = rows.is_whole() && has_before;
    auto raw = load_channel<kScanChunk + kHalo>(x, rows, whole, has_before ? -kHalo : 0, kHalo);
    if (!whole)
      unrolled<kScanChunk + kHalo>(
          [&](int i) { raw[i] = i - kHalo < rows.count && (i >= kHalo || has_before) ? raw[i] : T(0); });
    return raw;
  }

  __device__ ScanChunk<T> load_input(const ScanChunkRows& rows) const {
    auto z = filter(1, rows);
    z *= filter(2, rows);
    return z;
  }
  __device__ void store_output(const ScanChunkRows& rows, ScanChunk<T>& y) const {
    y *= filter(0, rows);
    store_rows(out, rows, y);
  }
  __device__ void poison_output(int64_t channel, int64_t row) const { poison(out, channel, row); }

  __device__ ScanChunk<T> load_output_grad(const ScanChunkRows& rows) const {
    auto dy = filter(0, rows);
    multiply_rows(grad, rows, dy);
    return dy;
  }

  // before, behind: the slots of this segment and the next one, or -1 for a sequence's ends.
  __device__ void begin_segment(Memory& memory, int64_t channel, int64_t before, int64_t behind) const {
    const int64_t half = 3 * kHalo * edge_pitch;
    memory.head = before < 0 ? nullptr : edges + 2 * before * half + channel;
    memory.tail = behind < 0 ? nullptr : edges + (2 * behind + 1) * half + channel;
    memory.is_segments_last = true;
    unrolled<3>([&](int part) { memory.behind[part] = {}; });
  }
  __device__ void end_segment(const Memory& memory) const {
    if (memory.head == nullptr) return;
    unrolled<3>([&](int part) { store_edge(memory.head, part, memory.behind[part]); });
  }
  __device__ void store_edge(T* edge, int part, const Vector<T, kHalo>& values) const {
    unrolled<kHalo>([&](int i) { edge[(part * kHalo + i) * edge_pitch] = values[i]; });
  }

  __device__ void store_gate_grad(Memory& memory, const ScanChunkRows& rows, const ScanChunk<T>& y) const {
    auto dq = load_rows(grad, rows);
    dq *= y;
    store_filter_gradient(memory, 0, rows, dq);
  }
  __device__ void store_input_grad(Memory& memory, const ScanChunkRows& rows, const ScanChunk<T>& dz) const {
    unrolled<2>([&](int i) {
      auto d = filter(2 - i, rows);  // the other factor
      d *= dz;
      store_filter_gradient(memory, 1 + i, rows, d);
    });
    memory.is_segments_last = false;  // the chunk's last part
  }
  // d: gradients of the filtered rows.
  __device__ void store_filter_gradient(
      Memory& memory, int part, const ScanChunkRows& rows, ScanChunk<T>& d) const {
    const ScanChunkRows column = part_rows(part, rows);
    const auto raw = load_raw(column);
    keep_rows(rows, d);
    ScanChunk<T> dx = {};
    unrolled<kScanChunk>([&](int j) { memory.sums[part][kTaps] += d[j]; });
    unrolled<kTaps>([&](int lag) {
      if (lag >= width) return;
      const T tap = weight[column.channel * width + lag];
      T sums[2] = {T(0), T(0)};
      unrolled<kScanChunk>([&](int j) {
        const T from = j + lag < kScanChunk ? d[j + lag] : memory.behind[part][j + lag - kScanChunk];
        dx[j] += tap * from;
        sums[j % 2] += d[j] * raw[j + kHalo - lag];
      });
      memory.sums[part][lag] += sums[0] + sums[1];
    });
    unrolled<kHalo>([&](int i) { memory.behind[part][i] = d[i]; });
    if (memory.is_segments_last && memory.tail != nullptr) {
      Vector<T, kHalo> last;
      unrolled<kHalo>([&](int i) { last[i] = dx[kScanChunk - kHalo + i]; });
      store_edge(memory.tail, part, last);
    }
    if (grad_x.data != nullptr) store_rows(grad_x, column, dx);
  }
  // To the sums of legendre_scan_backward, 32 apart.
  __device__ void store_sums(const Memory& memory, T* to) const {
    unrolled<kSums>([&](int i) { to[i * kScanLanes] = memory.sums[i / (kTaps + 1)][i % (kTaps + 1)]; });
  }
  __device__ void poison_gradients(int64_t channel, int64_t row) const {
    for (int part = 0; part < 3; ++part) poison(grad_x, part * channels + channel, row);
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
    const int64_t end = (place.segment + 1) * work.segment_rows();
    if (sequence.length <= end) return;
    const int64_t slot = work.slot(sequence, work.segment_rows()) + place.segment + 1;
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
