// The Legendre scan over whole sequences. A task is a few sequences by up to four vectors of channels, walked
// chunk by chunk, all its sequences in step: what depends on chunk and channel only (the contraction of
// coefficients and transfer table) is computed once for all of them, and neighbouring vectors find each
// other's rows in the cache.
//
// Where inputs come from and where results go is a Source's business (legendre_conv and hyena_mixer have one
// each). Its members are called for a chunk of one sequence, given by its place in the task, and all vectors:
// they walk memory row by row, each row's neighbouring channels at once.
//
//   load_input(s, begin, rows, z)         z = what the kernel is convolved with
//   store_output(s, begin, rows, y)       y = kernel * z goes where it belongs; y may be overwritten
//   load_output_grad(s, begin, rows, dy)  dy = the gradient of y
//   take_output(s, begin, rows, y)        after load_output_grad of the same chunk, chunks in order of time
//   take_input_grad(s, begin, rows, dz)   after load_input of the same chunk, chunks from the last to the first
//   end_chunk()                           backward only: after all sequences' same chunk
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "../legendre_math.h"
#include "../legendre_tables.h"
#include "legendre_scan.h"
#include "sequences.h"

namespace hyenarec::scan {

constexpr int64_t kMaxChunk = 64;
constexpr int64_t kMaxVectors = 4;  // of a task: four cache lines side by side
// A task's size: enough sequences to share a contraction, enough events to outweigh what a task costs, and a few
// tasks for the threads of a small machine.
constexpr int64_t kTaskSequences = 4;
constexpr int64_t kLeastTaskEvents = 2048, kMostTaskEvents = 8192, kTasks = 8;

// Memory for vectors, aligned for them, reused from task to task.
class Scratch {
 public:
  template <typename V>
  V* get(int64_t count) {
    const size_t needed = count * sizeof(V) / sizeof(Line) + 1;
    if (size_ < needed) {
      lines_.reset(new Line[needed]);  // not cleared
      size_ = needed;
    }
    return reinterpret_cast<V*>(lines_.get());
  }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::unique_ptr<Line[]> lines_;
  size_t size_ = 0;
};

// Sequences that a task walks in step, longest first.
struct Group {
  std::vector<int64_t> sequences;
  std::vector<int64_t> lengths;
  int64_t longest() const { return lengths.front(); }
  // Sequences that go on after event `time`: the first so many.
  int64_t longer_than(int64_t time) const {
    return std::partition_point(
               lengths.begin(), lengths.end(), [&](int64_t length) { return length > time; }) -
           lengths.begin();
  }
  int64_t count() const { return static_cast<int64_t>(lengths.size()); }
};

// All sequences that have events, longest first, in groups. They depend on the lengths only, never on the
// number of threads: neither do sums over them.
inline std::vector<Group> make_groups(const Sequences& sequences) {
  std::vector<int64_t> order(sequences.count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return sequences.size(a) > sequences.size(b);
  });
  std::vector<Group> groups;
  const int64_t enough = std::clamp(sequences.rows / kTasks, kLeastTaskEvents, kMostTaskEvents);
  const int64_t enough_members =
      std::clamp<int64_t>(static_cast<int64_t>(order.size()) / 2, 1, kTaskSequences);
  int64_t events = enough, members = enough_members;
  for (const int64_t s : order) {
    if (sequences.size(s) == 0) break;
    if (events >= enough && members >= enough_members) {
      groups.emplace_back();
      events = members = 0;
    }
    groups.back().sequences.push_back(s);
    groups.back().lengths.push_back(sequences.size(s));
    events += sequences.size(s);
    ++members;
  }
  return groups;
}

// A group's sequences by a few neighbouring vectors of channels.
struct Task {
  const Group& group;
  int64_t group_index;
  int64_t first_vector;
  int64_t vectors;
  int64_t last_channels;  // channels of the last vector, the others are full
};

// Calls visit(vector, number of its channels) for the vectors of a task.
template <typename V, typename Visit>
HYENAREC_INLINE void for_each_vector(const Task& task, const Visit& visit) {
  if (task.vectors == kMaxVectors && task.last_channels == simd::kLanes<V>) {
#pragma GCC unroll 4
    for (int64_t v = 0; v < kMaxVectors; ++v) visit(v, simd::kLanes<V>);
  } else {
    for (int64_t v = 0; v + 1 < task.vectors; ++v) visit(v, simd::kLanes<V>);
    visit(task.vectors - 1, task.last_channels);
  }
}

// Rows of one chunk for each vector of a task, vector after vector.
template <typename V>
struct Tile {
  V* data;
  int64_t pitch;

  HYENAREC_INLINE V* of(int64_t vector) const { return data + vector * pitch; }
};

// What all tasks of one call share.
template <typename compute_t>
struct Problem {
  std::shared_ptr<const LegendreTables<compute_t>> tables;
  int64_t channels;
  const compute_t* coeffs;  // [D, N]
  const compute_t* decay;   // [D]
  const compute_t* skip;    // [D], or nullptr
  std::vector<Group> groups;

  int64_t num_coeffs() const { return tables->num_coeffs; }
  int64_t chunk() const { return tables->chunk; }
};

// P_n at the first C lags, in double: single precision's recurrence loses digits. [N, C]
inline std::vector<double> near_basis(int64_t horizon, int64_t chunk, int64_t num_coeffs) {
  std::vector<double> basis(num_coeffs * chunk);
  for (int64_t lag = 0; lag < chunk && num_coeffs > 0; ++lag) {
    const double u = legendre_position(std::min(lag, horizon - 1), horizon);
    basis[lag] = 1.0;
    for (int64_t n = 1; n < num_coeffs; ++n)
      basis[n * chunk + lag] =
          legendre_next(n - 1, u, basis[(n - 1) * chunk + lag], n > 1 ? basis[(n - 2) * chunk + lag] : 0.0);
  }
  return basis;
}

// What a vector of channels needs at every event: rows of lanes.
template <typename V>
struct TileWeights {
  const V* near;    // [C] the kernel at the first lags, skip added to lag 0
  const V* fade;    // [C] exp(-decay j)
  const V* lift;    // [C] exp(-decay (C - j))
  const V* step;    // [1] expm1(-decay C)
  const V* coeffs;  // [N]

  TileWeights(const V* rows, int64_t chunk)
      : near(rows), fade(near + chunk), lift(fade + chunk), step(lift + chunk), coeffs(step + 1) {}
};

// A channel's kernel at the first lags, in double: without decay, and the decay beside it.
struct NearKernel {
  double polynomial[kMaxChunk] = {};
  double fade[kMaxChunk + 1];

  template <typename compute_t>
  NearKernel(const Problem<compute_t>& problem, const std::vector<double>& basis, int64_t channel) {
    const int64_t chunk = problem.chunk(), n = problem.num_coeffs();
    for (int64_t k = 0; k < n; ++k) {
      const double coefficient = problem.coeffs[channel * n + k];
      for (int64_t lag = 0; lag < chunk; ++lag) polynomial[lag] += coefficient * basis[k * chunk + lag];
    }
    const double one_step = std::exp(-static_cast<double>(problem.decay[channel]));
    fade[0] = 1.0;
    for (int64_t lag = 1; lag <= chunk; ++lag) fade[lag] = one_step * fade[lag - 1];
  }
};

// Rows of a TileWeights.
inline int64_t weight_rows(int64_t chunk, int64_t num_coeffs) { return 3 * chunk + 1 + num_coeffs; }

// Writes the rows that TileWeights reads for the channels [first, first + count); absent channels are 0.
template <typename compute_t>
void fill_weights(
    const Problem<compute_t>& problem,
    const std::vector<double>& basis,
    int64_t first,
    int64_t count,
    int64_t lanes,
    compute_t* rows) {
  const int64_t chunk = problem.chunk(), n = problem.num_coeffs();
  std::fill_n(rows, weight_rows(chunk, n) * lanes, compute_t(0));
  for (int64_t lane = 0; lane < count; ++lane) {
    const NearKernel kernel(problem, basis, first + lane);
    compute_t* to = rows + lane;
    // Weights far below rounding become zero: denormal numbers, which fast decays end in, would take the
    // processor ten times as long.
    constexpr double kLeast =
        std::numeric_limits<compute_t>::min() / std::numeric_limits<compute_t>::epsilon();
    const auto put = [&](double value) {
      *to = std::abs(value) < kLeast ? compute_t(0) : static_cast<compute_t>(value);
      to += lanes;
    };
    const double skip = problem.skip ? problem.skip[first + lane] : 0.0;
    put(kernel.polynomial[0] + skip);
    for (int64_t lag = 1; lag < chunk; ++lag) put(kernel.polynomial[lag] * kernel.fade[lag]);
    for (int64_t j = 0; j < chunk; ++j) put(kernel.fade[j]);
    for (int64_t j = 0; j < chunk; ++j) put(kernel.fade[chunk - j]);
    put(std::expm1(-static_cast<double>(problem.decay[first + lane]) * static_cast<double>(chunk)));
    for (int64_t k = 0; k < n; ++k) put(problem.coeffs[(first + lane) * n + k]);
  }
}

inline int64_t padded(int64_t rows) { return (rows + kBlock - 1) / kBlock * kBlock; }

// y = what the events before the chunk contribute to its first `rows` events and the rest of their block.
template <typename V>
HYENAREC_INLINE void evaluate_state(
    const LegendreTables<LaneOf<V>>& tables,
    int64_t index,
    int64_t rows,
    const TileWeights<V>& weights,
    const V* state,
    V* local,
    V* y) {
  const int64_t chunk = tables.chunk, n = tables.num_coeffs;
  const auto& constants = tables.chunks[index];
  if (index == 0) {
    for (int64_t t = 0; t < padded(rows); ++t) y[t] = V{};
  } else if ((index + 1) * chunk <= tables.horizon) {
    multiply_upper(constants.local_by_column.data(), constants.num_local, n, state, local);
    evaluate(tables.basis.data(), chunk, constants.num_local, local, weights.fade, y);
  } else {
    for (int64_t t = 0; t < padded(rows); ++t) {
      V sum = {};
      for (int64_t k = 0; t < rows && k < n; ++k) sum += tables.tail[t * n + k] * state[k];
      y[t] = sum * weights.fade[t];
    }
  }
}

// dstate += the gradient of the chunk's outputs, dy, through `evaluate_state`; index > 0.
template <typename V>
HYENAREC_INLINE void add_state_grad(
    const LegendreTables<LaneOf<V>>& tables,
    int64_t index,
    const TileWeights<V>& weights,
    const V* dy,
    V* folded,
    V* dlocal,
    V* dstate) {
  const int64_t chunk = tables.chunk, n = tables.num_coeffs;
  const auto& constants = tables.chunks[index];
  if ((index + 1) * chunk <= tables.horizon) {
    take_moments(
        tables.basis_by_column.data(), n, chunk, constants.num_local, dy, weights.fade, folded, dlocal);
    add_transposed_upper(constants.local.data(), constants.num_local, n, dlocal, dstate);
  } else {
    for (int64_t t = 0; t < tables.horizon - index * chunk; ++t) {
      const V weighted = dy[t] * weights.fade[t];
      for (int64_t k = 0; k < n; ++k) dstate[k] += tables.tail[t * n + k] * weighted;
    }
  }
}

// Buffers for one chunk of one sequence, on the stack: they stay in the cache.
template <typename V>
struct ChunkBuffers {
  Tile<V> z, y, dy, dz;  // z with zeros before it
  V folded[kMaxChunk];

  HYENAREC_INLINE explicit ChunkBuffers(int64_t chunk) {
    const int64_t pitch = chunk + kZerosBefore;
    for (int64_t i = 0; i < kMaxVectors * pitch; ++i) z_rows_[i] = V{};
    z = {z_rows_ + kZerosBefore, pitch};
    y = {y_rows_, chunk};
    dy = {dy_rows_, chunk};
    dz = {dz_rows_, chunk};
  }

 private:
  V z_rows_[kMaxVectors * (kZerosBefore + kMaxChunk)];
  V y_rows_[kMaxVectors * kMaxChunk], dy_rows_[kMaxVectors * kMaxChunk], dz_rows_[kMaxVectors * kMaxChunk];
};

// Each vector's coefficients with the chunk's transfer table: [vectors][N, N].
template <typename V>
HYENAREC_INLINE void contract_all(
    const LegendreChunk<LaneOf<V>>& constants,
    int64_t num_coeffs,
    const Task& task,
    const TileWeights<V>* weights,
    V* contracted) {
  for (int64_t v = 0; v < task.vectors; ++v)
    contract(
        constants.transfer.data(), constants.num_moments, num_coeffs, weights[v].coeffs,
        contracted + v * num_coeffs * num_coeffs);
}

template <typename V>
HYENAREC_INLINE void clear_rest(V* values, int64_t rows, int64_t chunk) {
  for (int64_t t = rows; t < chunk; ++t) values[t] = V{};
}

// y = kernel * z of every sequence of a task, from first chunk to last.
template <typename V, typename Source>
HYENAREC_INLINE void forward_task(
    const LegendreTables<LaneOf<V>>& tables,
    const Task& task,
    const TileWeights<V>* weights,
    Source& source,
    Scratch& scratch) {
  const int64_t n = tables.num_coeffs, chunk = tables.chunk;
  const Group& group = task.group;
  const int64_t states_size = group.longer_than(chunk) * task.vectors * n;
  V* const states = scratch.get<V>(states_size + task.vectors * n * n + 2 * n);
  V* const contracted = states + states_size;
  V* const moments = contracted + task.vectors * n * n;
  V* const local = moments + n;
  for (int64_t i = 0; i < states_size; ++i) states[i] = V{};
  ChunkBuffers<V> buffers(chunk);
  for (int64_t index = 0, begin = 0; begin < group.longest(); ++index, begin += chunk) {
    const auto& constants = tables.chunks[index];
    if (group.longest() > begin + chunk) contract_all(constants, n, task, weights, contracted);
    for (int64_t s = 0; s < group.count() && group.lengths[s] > begin; ++s) {
      const int64_t rows = std::min(chunk, group.lengths[s] - begin);
      source.load_input(s, begin, rows, buffers.z);
      for (int64_t v = 0; v < task.vectors; ++v) {
        V* const state = states + (s * task.vectors + v) * n;  // of no use to a sequence of one chunk
        V* const z = buffers.z.of(v);
        V* const y = buffers.y.of(v);
        clear_rest(z, rows, padded(rows));
        evaluate_state(tables, index, rows, weights[v], state, local, y);
        add_near<1>(weights[v].near, z, y, padded(rows));
        if (group.lengths[s] > begin + chunk) {
          take_moments(
              tables.basis_by_column.data(), n, chunk, constants.num_moments, z, weights[v].lift,
              buffers.folded, moments);
          advance(
              constants.restriction_change_by_column.data(), n, *weights[v].step, contracted + v * n * n,
              moments, constants.num_moments, state);
        }
      }
      source.store_output(s, begin, rows, buffers.y);
    }
  }
}

// Which gradients a backward pass is asked for.
struct Wanted {
  bool input;       // of z
  bool output;      // the output before the post gate, for that gate's gradient
  bool parameters;  // of coeffs, decay, skip
};

// The sums over a task that become the parameters' gradients, rows of lanes: far_coeffs [N], lags [C], and
// far_decay [1]. Lags are the gradient of the near kernel.
struct SumRows {
  int64_t num_coeffs, chunk;
  int64_t count() const { return num_coeffs + chunk + 1; }
  int64_t lags() const { return num_coeffs; }
  int64_t far_decay() const { return num_coeffs + chunk; }
};

// Adds rows of single-precision sums, which hold one chunk's share, to those of a task, and clears them.
template <typename V>
HYENAREC_INLINE void flush(V* shares, int64_t rows, double* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int lane = 0; lane < simd::kLanes<V>; ++lane)
      sums[row * simd::kLanes<V> + lane] += static_cast<double>(shares[row][lane]);
    shares[row] = V{};
  }
}

// A backward task's memory, in vectors. Sequences of one chunk have no state.
template <typename V>
struct BackwardMemory {
  int64_t n, vectors;
  std::vector<int64_t> saved_before;  // [chunk] sequences that went on after an earlier chunk
  int64_t states_size;
  V* saved;       // [chunk][sequences that go on after it][vector][N] the state that a chunk starts with
  V* states;      // [sequence][vector][N] states going forward, their gradients going back
  V* contracted;  // [vector][N, N]
  V* products;    // [vector][N, N] moments by gradients of states, summed over the sequences
  V* shares;      // [vector][SumRows] one chunk's share of the sums
  V* local;       // [N]
  V* moments;     // [N]
  V* dmoments;    // [N]

  BackwardMemory(
      Scratch& scratch, const Task& task, int64_t n, int64_t chunk, int64_t sum_rows, bool keep_states)
      : n(n), vectors(task.vectors) {
    int64_t all = 0;
    for (int64_t end = chunk; end < task.group.longest(); end += chunk) {
      saved_before.push_back(all);
      if (keep_states) all += task.group.longer_than(end);
    }
    states_size = task.group.longer_than(chunk) * vectors * n;
    const int64_t cleared = states_size + vectors * (2 * n * n + sum_rows);
    saved = scratch.get<V>(all * vectors * n + cleared + 3 * n);
    states = saved + all * vectors * n;
    contracted = states + states_size;
    products = contracted + vectors * n * n;
    shares = products + vectors * n * n;
    local = shares + vectors * sum_rows;
    moments = local + n;
    dmoments = moments + n;
    for (int64_t i = 0; i < cleared; ++i) states[i] = V{};
  }
  V* saved_at(int64_t chunk, int64_t s, int64_t v) const {
    return saved + ((saved_before[chunk] + s) * vectors + v) * n;
  }
  V* state(int64_t s, int64_t v) const { return states + (s * vectors + v) * n; }
};

// The forward sweep of a backward pass: states are kept, the post gate gets its gradient, and the outputs' part
// of the decay's is summed.
template <typename V, typename Source>
HYENAREC_INLINE void sweep_forwards(
    const LegendreTables<LaneOf<V>>& tables,
    const Task& task,
    const TileWeights<V>* weights,
    const Wanted& wanted,
    const BackwardMemory<V>& memory,
    Source& source,
    double* const* sums) {
  const int64_t n = tables.num_coeffs, chunk = tables.chunk;
  const SumRows rows_of{n, chunk};
  const Group& group = task.group;
  ChunkBuffers<V> buffers(chunk);
  for (int64_t index = 0, begin = 0; begin < group.longest(); ++index, begin += chunk) {
    const auto& constants = tables.chunks[index];
    if (group.longest() > begin + chunk) contract_all(constants, n, task, weights, memory.contracted);
    for (int64_t s = 0; s < group.count() && group.lengths[s] > begin; ++s) {
      const int64_t rows = std::min(chunk, group.lengths[s] - begin);
      const bool with_outputs = wanted.parameters || wanted.output;
      source.load_input(s, begin, rows, buffers.z);
      if (with_outputs) source.load_output_grad(s, begin, rows, buffers.dy);
      for (int64_t v = 0; v < task.vectors; ++v) {
        V* const state = memory.state(s, v);
        V* const z = buffers.z.of(v);
        V* const y = buffers.y.of(v);
        const V* const dy = buffers.dy.of(v);
        clear_rest(z, rows, padded(rows));
        if (with_outputs) evaluate_state(tables, index, rows, weights[v], state, memory.local, y);
        if (wanted.parameters) {
          V sum = {};
          for (int64_t t = 1; t < rows; ++t) sum += static_cast<LaneOf<V>>(t) * dy[t] * y[t];
          memory.shares[v * rows_of.count() + rows_of.far_decay()] -= sum;
        }
        if (wanted.output) add_near<1>(weights[v].near, z, y, padded(rows));
        if (group.lengths[s] > begin + chunk) {
          if (wanted.parameters) std::copy_n(state, n, memory.saved_at(index, s, v));
          take_moments(
              tables.basis_by_column.data(), n, chunk, constants.num_moments, z, weights[v].lift,
              buffers.folded, memory.moments);
          advance(
              constants.restriction_change_by_column.data(), n, *weights[v].step,
              memory.contracted + v * n * n, memory.moments, constants.num_moments, state);
        }
      }
      if (wanted.output) source.take_output(s, begin, rows, buffers.y);
    }
    for (int64_t v = 0; v < task.vectors; ++v)
      flush(
          memory.shares + v * rows_of.count() + rows_of.far_decay(), 1,
          sums[v] + rows_of.far_decay() * simd::kLanes<V>);
    source.end_chunk();
  }
}

// dz = what the outputs of later chunks contribute to a chunk's input gradient. Moves the state's gradient from
// the chunk's end to its start, and adds to the sums for coeffs and decay. `state` is what the chunk started
// with, nullptr if the sums are not wanted.
template <typename V>
HYENAREC_INLINE void pass_state_grad(
    const LegendreTables<LaneOf<V>>& tables,
    int64_t index,
    const TileWeights<V>& weights,
    const V* state,
    const V* contracted,
    const V* z,
    V* dstate,
    V* folded,
    V* moments,
    V* dmoments,
    V* products,
    V* decay_share,
    V* dz) {
  const int64_t n = tables.num_coeffs, chunk = tables.chunk;
  const auto& constants = tables.chunks[index];
  take_moments(
      tables.basis_by_column.data(), n, chunk, constants.num_moments, z, weights.lift, folded, moments);
  add_moment_grad(contracted, constants.num_moments, n, dstate, moments, dmoments, products);
  evaluate(tables.basis.data(), chunk, constants.num_moments, dmoments, weights.lift, dz);
  advance_transposed(constants.restriction_change.data(), n, *weights.step, dstate);
  if (state == nullptr) return;
  V by_step = {}, by_lift = {};
  for (int64_t k = 0; k < n; ++k) by_step += dstate[k] * state[k];
  for (int64_t t = 0; t < chunk; ++t) by_lift += static_cast<LaneOf<V>>(chunk - t) * z[t] * dz[t];
  *decay_share -= static_cast<LaneOf<V>>(chunk) * by_step + by_lift;
}

// The transposed scan, from the last chunk to the first.
template <typename V, typename Source>
HYENAREC_INLINE void sweep_backwards(
    const LegendreTables<LaneOf<V>>& tables,
    const Task& task,
    const TileWeights<V>* weights,
    const Wanted& wanted,
    const BackwardMemory<V>& memory,
    Source& source,
    double* const* sums) {
  const int64_t n = tables.num_coeffs, chunk = tables.chunk;
  const SumRows rows_of{n, chunk};
  const Group& group = task.group;
  ChunkBuffers<V> buffers(chunk);
  for (int64_t i = 0; i < memory.states_size; ++i) memory.states[i] = V{};
  for (int64_t index = (group.longest() - 1) / chunk; index >= 0; --index) {
    const int64_t begin = index * chunk;
    const auto& constants = tables.chunks[index];
    const bool goes_on = group.longest() > begin + chunk;
    if (goes_on) {
      contract_all(constants, n, task, weights, memory.contracted);
      for (int64_t i = 0; i < task.vectors * n * n; ++i) memory.products[i] = V{};
    }
    for (int64_t s = 0; s < group.count() && group.lengths[s] > begin; ++s) {
      const int64_t rows = std::min(chunk, group.lengths[s] - begin);
      const int64_t last = padded(rows) - 1;
      source.load_input(s, begin, rows, buffers.z);
      source.load_output_grad(s, begin, rows, buffers.dy);
      for (int64_t v = 0; v < task.vectors; ++v) {
        V* const dstate = memory.state(s, v);
        V* const shares = memory.shares + v * rows_of.count();
        V* const z = buffers.z.of(v);
        V* const dy = buffers.dy.of(v);
        V* const dz = buffers.dz.of(v);
        clear_rest(z, rows, padded(rows));
        clear_rest(dy, rows, index > 0 ? chunk : padded(rows));
        if (group.lengths[s] > begin + chunk) {
          pass_state_grad(
              tables, index, weights[v], wanted.parameters ? memory.saved_at(index, s, v) : nullptr,
              memory.contracted + v * n * n, z, dstate, buffers.folded, memory.moments, memory.dmoments,
              memory.products + v * n * n, shares + rows_of.far_decay(), dz);
        } else {
          clear_rest(dz, 0, padded(rows));
        }
        if (index > 0) add_state_grad(tables, index, weights[v], dy, buffers.folded, memory.local, dstate);
        add_near<-1>(weights[v].near, dy + last, dz + last, last + 1);
        if (wanted.parameters) add_lag_products(dy, z, shares + rows_of.lags(), last + 1);
      }
      if (wanted.input) source.take_input_grad(s, begin, rows, buffers.dz);
    }
    for (int64_t v = 0; v < task.vectors && wanted.parameters; ++v) {
      V* const shares = memory.shares + v * rows_of.count();
      if (goes_on)
        add_contracted_grad(
            constants.transfer.data(), constants.num_moments, n, memory.products + v * n * n, shares);
      flush(shares, rows_of.count(), sums[v]);
    }
    source.end_chunk();
  }
}

// The gradients of a task's sequences. sums[vector] [SumRows::count(), lanes] start at zero.
template <typename V, typename Source>
HYENAREC_INLINE void backward_task(
    const LegendreTables<LaneOf<V>>& tables,
    const Task& task,
    const TileWeights<V>* weights,
    const Wanted& wanted,
    Source& source,
    Scratch& scratch,
    double* const* sums) {
  const SumRows rows_of{tables.num_coeffs, tables.chunk};
  const BackwardMemory<V> memory(
      scratch, task, tables.num_coeffs, tables.chunk, rows_of.count(), wanted.parameters);
  if (wanted.output || wanted.parameters) sweep_forwards(tables, task, weights, wanted, memory, source, sums);
  if (wanted.input || wanted.parameters) sweep_backwards(tables, task, weights, wanted, memory, source, sums);
}

// Calls run(task, scratch) for each task in [0, count), largest first if they come so, on all threads.
template <typename Run>
void run_tasks(int64_t count, const Run& run) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Scratch scratch;
    for (int64_t task = next++; task < count; task = next++) run(task, scratch);
  });
}

}  // namespace hyenarec::scan
