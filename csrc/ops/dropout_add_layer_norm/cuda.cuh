// Device code of dropout_add_layer_norm: rows of channels, each the work of a team of threads.
//
// A team is a part of a warp or a whole one, several to a block, while a row fits in its registers; else it
// is a block. A thread holds up to kHeld vectors of its row in registers, so that a row is read once; of
// wider rows it reads the rest again, from memory that it wrote itself or from a cache. Random bits are drawn
// anew wherever they are needed.
//
// Bytes that must move: forward 4 D a row (branch, residual -> sum, normed), backward 5 D (two gradients, sum
// -> two gradients).
#pragma once

#include "../common/cuda/row_vectors.cuh"
#include "call.h"
#include "philox.h"

namespace hyenarec {

constexpr int kNormThreads = 128;     // of a block of several teams
constexpr int kNormMaxThreads = 256;  // of a team
constexpr int kNormHeld = 16;         // channels of a row that a thread holds, if their vectors are no larger
// Blocks of the backward kernel, at most: each leaves its sums, which torch adds up.
constexpr int64_t kNormMaxGroups = 512;

// The launch of both kernels: a row of threads a team; a block goes over `run` rows with each of its teams.
struct NormShape {
  int64_t run, groups;
  LaunchShape launch;
};

// run = 0 chooses the shortest run that keeps groups <= kNormMaxGroups (backward); forward passes its own.
// value_bytes: of a number of the accumulation type.
inline NormShape norm_shape(
    int64_t rows, int64_t channels, int vector, int held, int64_t run, size_t value_bytes) {
  const int64_t vectors = ceil_div(channels, vector);
  unsigned int team = 1;
  while (team < 32 && team < vectors) team *= 2;
  while (team < kNormMaxThreads && team * held < vectors) team *= 2;
  const unsigned int teams = team <= 32 ? kNormThreads / team : 1;
  if (run == 0) run = larger(8, ceil_div(rows, teams * kNormMaxGroups));
  NormShape shape;
  shape.run = run;
  shape.groups = ceil_div(rows, teams * run);
  // For one vector of each thread; that is more than two slots of two sums a warp.
  shape.launch = {shape.groups, dim3(team, teams), teams * team * vector * value_bytes};
  return shape;
}

// A vector of elements from `element` on, a multiple of its size, as dropout leaves it.
template <typename T, int kVector>
__device__ inline void drop(const NormDropout<T>& dropout, Vector<T, kVector>& values, int64_t element) {
  static_assert(kLevelsPerBlock % kVector == 0, "a vector must not need two blocks of bits");
  if (dropout.dropped == 0) return;
  const PhiloxBlock block =
      random_block(static_cast<uint64_t>(*dropout.seed), static_cast<uint64_t>(element) / kLevelsPerBlock);
  unrolled<kVector>([&](int i) {
    values[i] = level_in(block, element + i) < dropout.dropped ? T(0) : values[i] * dropout.scale;
  });
}

// kVector parameters, which lie on 16 bytes: beside 16-bit rows, they are twice as long as those.
template <typename T, int kVector>
__device__ inline Vector<T, kVector> load_parameters(const T* source) {
  constexpr int kPiece = kVector * sizeof(T) <= 16 ? kVector : 16 / sizeof(T);
  Vector<T, kVector> result;
#pragma unroll
  for (int first = 0; first < kVector; first += kPiece) {
    const Vector<T, kPiece> piece = load_channels<T, kPiece>(source + first);
    unrolled<kPiece>([&](int i) { result[first + i] = piece[i]; });
  }
  return result;
}

// Calls held(i, d) for the thread's vectors in registers and beyond(d) for the others; d is the first
// channel.
template <int kVector, int kHeld, typename Held, typename Beyond>
__device__ inline void over_team_channels(int64_t channels, const Held& held, const Beyond& beyond) {
  const int64_t step = static_cast<int64_t>(blockDim.x) * kVector;
  int64_t d = static_cast<int64_t>(threadIdx.x) * kVector;
#pragma unroll
  for (int i = 0; i < kHeld; ++i, d += step) {
    if (d < channels) held(i, d);
  }
  for (; d < channels; d += step) beyond(d);
}

// The team's sums of `count` numbers a thread, the same bits in each of its threads. All threads of the block
// call it, in turns with slot 0 and 1: a thread may still read the last sums when another one writes the
// next.
template <int count, typename T>
__device__ inline void sum_over_team(T (&values)[count], T* shared, int slot) {
  const int lanes = blockDim.x < 32 ? blockDim.x : 32, warps = blockDim.x / lanes;
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    unrolled<count>([&](int k) { values[k] += __shfl_xor_sync(0xffffffffu, values[k], distance); });
  }
  if (warps == 1) return;
  shared += slot * warps * count;
  if (threadIdx.x % 32 == 0)
    unrolled<count>([&](int k) { shared[threadIdx.x / 32 * count + k] = values[k]; });
  __syncthreads();
  unrolled<count>([&](int k) {
    values[k] = T(0);
    for (int warp = 0; warp < warps; ++warp) values[k] += shared[warp * count + k];
  });
}

template <typename branch_t, typename sum_t, int kVector, int kHeld>
__global__ void __launch_bounds__(kNormMaxThreads)
    dropout_add_layer_norm_forward(NormForward<branch_t, sum_t> rows) {
  using T = accumulate_t<sum_t>;
  using Values = Vector<T, kVector>;
  HYENAREC_SHARED_MEMORY(T, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool exists = row < rows.rows;
  const int64_t channels = exists ? rows.channels : 0;  // a team without a row only joins its warp's sums
  sum_t* sum_row = rows.sum + row * rows.channels;

  // Writes the sum and gives it as it was rounded.
  const auto sum_at = [&](int64_t d) {
    Values value = load_channels<branch_t, kVector>(rows.branch.row(row) + d);
    drop(rows.dropout, value, row * rows.channels + d);
    if (rows.residual.data != nullptr) value += load_channels<sum_t, kVector>(rows.residual.row(row) + d);
    store_channels<sum_t, kVector>(sum_row + d, value);
    return value.template to<sum_t>().template to<T>();
  };
  const auto again = [&](int64_t d) { return load_channels<sum_t, kVector>(sum_row + d); };

  Values held[kHeld] = {};
  T total[1] = {T(0)};
  const auto add = [&](const Values& value) { unrolled<kVector>([&](int i) { total[0] += value[i]; }); };
  over_team_channels<kVector, kHeld>(
      channels, [&](int i, int64_t d) { add(held[i] = sum_at(d)); }, [&](int64_t d) { add(sum_at(d)); });
  sum_over_team(total, shared, 0);
  const T mean = total[0] / static_cast<T>(rows.channels);

  T squares[1] = {T(0)};
  const auto add_square = [&](const Values& value) {
    unrolled<kVector>([&](int i) { squares[0] += (value[i] - mean) * (value[i] - mean); });
  };
  over_team_channels<kVector, kHeld>(
      channels, [&](int i, int64_t) { add_square(held[i]); }, [&](int64_t d) { add_square(again(d)); });
  sum_over_team(squares, shared, 1);
  const T rstd = T(1) / sqrt(squares[0] / static_cast<T>(rows.channels) + rows.eps);

  const auto normalise = [&](const Values& value, int64_t d) {
    const Values weight = load_parameters<T, kVector>(rows.weight + d);
    Values result = load_parameters<T, kVector>(rows.bias + d);
    unrolled<kVector>([&](int i) { result[i] += (value[i] - mean) * rstd * weight[i]; });
    store_channels<sum_t, kVector>(rows.normed + row * rows.channels + d, result);
  };
  over_team_channels<kVector, kHeld>(
      channels, [&](int i, int64_t d) { normalise(held[i], d); }, [&](int64_t d) { normalise(again(d), d); });
  if (exists && threadIdx.x == 0) {
    rows.mean[row] = mean;
    rows.rstd[row] = rstd;
  }
}

template <typename branch_t, typename sum_t, int kVector, int kHeld>
__global__ void __launch_bounds__(kNormMaxThreads)
    dropout_add_layer_norm_backward(NormBackward<branch_t, sum_t> rows) {
  using T = accumulate_t<sum_t>;
  using Values = Vector<T, kVector>;
  HYENAREC_SHARED_MEMORY(T, shared);
  T* partial = rows.partial + static_cast<int64_t>(blockIdx.x) * 2 * rows.channels;
  Values of_weight[kHeld] = {}, of_bias[kHeld] = {};

  for (int64_t step = 0; step < rows.run; ++step) {
    const int64_t row = (blockIdx.x * rows.run + step) * blockDim.y + threadIdx.y;
    const bool exists = row < rows.rows;
    const int64_t channels = exists ? rows.channels : 0;  // a team without a row only joins its warp's sums
    const T mean = exists ? rows.mean[row] : T(0), rstd = exists ? rows.rstd[row] : T(0);

    // The row normalised, and the gradient by it.
    const auto normalized_at = [&](int64_t d) {
      Values value = load_channels<sum_t, kVector>(rows.sum.row(row) + d);
      unrolled<kVector>([&](int i) { value[i] = (value[i] - mean) * rstd; });
      return value;
    };
    const auto grad_at = [&](int64_t d) {
      return load_channels<sum_t, kVector>(rows.grad_normed.row(row) + d);
    };
    // Times the weight, from which on the gradient of normed is that by the normalised row.
    const auto weighted = [&](const Values& grad, int64_t d) {
      Values result = load_parameters<T, kVector>(rows.weight + d);
      result *= grad;
      return result;
    };

    Values normalized[kHeld] = {}, grads[kHeld] = {};
    T sums[2] = {T(0), T(0)};  // of the gradient by the normalised row, and of its product with that row
    const auto add = [&](const Values& grad, const Values& value) {
      unrolled<kVector>([&](int i) {
        sums[0] += grad[i];
        sums[1] += grad[i] * value[i];
      });
    };
    if (rows.grad_normed.data != nullptr) {
      over_team_channels<kVector, kHeld>(
          channels,
          [&](int k, int64_t d) {
            normalized[k] = normalized_at(d);
            const Values grad = grad_at(d);
            unrolled<kVector>([&](int i) { of_weight[k][i] += grad[i] * normalized[k][i]; });
            of_bias[k] += grad;
            grads[k] = weighted(grad, d);
            add(grads[k], normalized[k]);
          },
          [&](int64_t d) {  // a block is one team then
            const Values value = normalized_at(d), grad = grad_at(d);
            for (int i = 0; i < kVector && rows.partial != nullptr; ++i) {
              partial[d + i] += grad[i] * value[i];
              partial[rows.channels + d + i] += grad[i];
            }
            add(weighted(grad, d), value);
          });
      sum_over_team(sums, shared, static_cast<int>(step % 2));
    }
    const T mean_grad = sums[0] / static_cast<T>(rows.channels);
    const T mean_product = sums[1] / static_cast<T>(rows.channels);

    if (rows.grad_branch == nullptr && rows.grad_residual == nullptr) continue;
    const auto finish = [&](const Values& grad, const Values& value, int64_t d) {
      Values result = {};
      if (rows.grad_normed.data != nullptr)
        unrolled<kVector>([&](int i) { result[i] = (grad[i] - mean_grad - value[i] * mean_product) * rstd; });
      if (rows.grad_sum.data != nullptr) result += load_channels<sum_t, kVector>(rows.grad_sum.row(row) + d);
      const int64_t element = row * rows.channels + d;
      if (rows.grad_residual != nullptr) store_channels<sum_t, kVector>(rows.grad_residual + element, result);
      if (rows.grad_branch == nullptr) return;
      drop(rows.dropout, result, element);
      store_channels<branch_t, kVector>(rows.grad_branch + element, result);
    };
    over_team_channels<kVector, kHeld>(
        channels, [&](int k, int64_t d) { finish(grads[k], normalized[k], d); },
        [&](int64_t d) {
          const bool needed = rows.grad_normed.data != nullptr;
          finish(needed ? weighted(grad_at(d), d) : Values{}, needed ? normalized_at(d) : Values{}, d);
        });
  }

  if (rows.partial == nullptr) return;
  const int64_t tile = static_cast<int64_t>(blockDim.x) * kVector;
  unrolled<kHeld>([&](int k) {
    if (k * tile >= rows.channels) return;
    store_group_sum(of_weight[k], shared, partial + k * tile, rows.channels - k * tile);
    store_group_sum(of_bias[k], shared, partial + rows.channels + k * tile, rows.channels - k * tile);
  });
}

}  // namespace hyenarec
