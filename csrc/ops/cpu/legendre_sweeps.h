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
//   take_output(s, begin, rows, y)        after load_output_grad of the same chunk
//   take_input_grad(s, begin, rows, dz)   after load_input and take_output of the same chunk
//   end_chunk()                           after all sequences' same chunk
//   watch_inputs, watch_forward, watch_backward(s, begin, ahead)   names the rows that load_input, a forward sweep
//                                         and a backward sweep will touch in a chunk, to a LookAhead
//
// The last four belong to a backward pass, whose chunks come from the last to the first.
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
#include "look_ahead.h"
#include "sequences.h"

namespace hyenarec::scan {

constexpr int64_t kMaxChunk = 64;
constexpr int64_t kMaxVectors = 4;  // of a task: four cache lines side by side
// A task's size: enough sequences to share a contraction, enough events to outweigh what a task costs, and a few
// tasks for the threads of a small machine.
constexpr int64_t kTaskSequences = 4;
constexpr int64_t kLeastTaskEvents = 2048, kMostTaskEvents = 4096, kTasks = 8;

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
    V* dstate,
    V* rests) {
  const int64_t chunk = tables.chunk, n = tables.num_coeffs;
  const auto& constants = tables.chunks[index];
  if ((index + 1) * chunk <= tables.horizon) {
    take_moments(
        tables.basis_by_column.data(), n, chunk, constants.num_local, dy, weights.fade, folded, dlocal);
    add_transposed_upper(constants.local.data(), constants.num_local, n, dlocal, dstate, rests);
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

// N vectors for each sequence and each vector of a task: states, moments, their gradients.
template <typename V>
struct StateRows {
  V* data;
  int64_t vectors;
  int64_t pitch;  // N, or as many as are used

  HYENAREC_INLINE V* of(int64_t s, int64_t v) const { return data + (s * vectors + v) * pitch; }
  HYENAREC_INLINE Members<V> members(int64_t v) const { return {of(0, v), vectors * pitch}; }
  HYENAREC_INLINE int64_t size(int64_t sequences) const { return sequences * vectors * pitch; }
};

// The coefficients of the vectors from `v` on, which lie as far apart as all vectors' weights do.
template <typename V>
HYENAREC_INLINE Members<const V> coeffs_from(const TileWeights<V>* weights, int64_t v) {
  return {weights[v].coeffs, weights[1].coeffs - weights[0].coeffs};
}

// Names a chunk's tables to a LookAhead that fetches `rows` rows.
template <typename T>
HYENAREC_INLINE void watch_tables(
    std::initializer_list<const std::vector<T>*> tables, int64_t rows, LookAhead& ahead) {
  for (const auto* table : tables) {
    const int64_t bytes = (static_cast<int64_t>(table->size() * sizeof(T)) + rows - 1) / rows;
    ahead.read(table->data(), bytes, bytes);
  }
}

// Moves the states of a task's first sequences from the chunk's start to its end. `contracted` is room for
// 2 [N, N], of which so little is used that it stays in the first-level cache for all sequences.
template <typename V>
HYENAREC_INLINE void advance_all(
    const LegendreTables<LaneOf<V>>& tables,
    int64_t index,
    const TileWeights<V>* weights,
    int64_t sequences,
    const StateRows<V>& moments,
    const StateRows<V>& states,
    const StateRows<V>& rests,
    V* contracted) {
  const auto& constants = tables.chunks[index];
  const int64_t n = tables.num_coeffs;
  in_pairs(states.vectors, [&](auto size, int64_t v) HYENAREC_INLINE_LAMBDA {
    const Members<V> of_vectors{contracted, n * n};
    contract<size(), V>(
        constants.transfer.data(), constants.num_moments, n, coeffs_from(weights, v), of_vectors);
    for (int m = 0; m < size(); ++m)
      advance(
          constants.restriction_change_by_column.data(), n, *weights[v + m].step, of_vectors.of(m),
          constants.num_moments, sequences, moments.members(v + m), states.members(v + m),
          rests.members(v + m));
  });
}

template <typename V>
HYENAREC_INLINE void clear_rest(V* values, int64_t rows, int64_t chunk) {
  for (int64_t t = rows; t < chunk; ++t) values[t] = V{};
}

// The chunk that a sweep computes after that of sequence `s` at `begin`: of the next sequence, or `step` events
// on of the first. `alive` sequences have a chunk at `begin`. Without rows where the sweep ends.
struct Place {
  int64_t s, begin, rows;
};
HYENAREC_INLINE Place
next_place(const Group& group, int64_t s, int64_t begin, int64_t alive, int64_t chunk, int64_t step) {
  if (s + 1 < alive) return {s + 1, begin, std::min(chunk, group.lengths[s + 1] - begin)};
  const int64_t next = begin + step;
  return {0, next, next < 0 ? 0 : std::clamp<int64_t>(group.longest() - next, 0, chunk)};
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
  // Sequences of one chunk have no state.
  const int64_t rows_size = group.longer_than(chunk) * task.vectors * n;
  StateRows<V> states{scratch.get<V>(3 * rows_size + 2 * n * n + n), task.vectors, n};
  const StateRows<V> rests{states.data + rows_size, task.vectors, n};
  const StateRows<V> moments{rests.data + rows_size, task.vectors, n};
  V* const contracted = moments.data + rows_size;
  V* const local = contracted + 2 * n * n;
  for (int64_t i = 0; i < 2 * rows_size; ++i) states.data[i] = V{};  // rests, too
  ChunkBuffers<V> buffers(chunk);
  for (int64_t index = 0, begin = 0; begin < group.longest(); ++index, begin += chunk) {
    const int64_t alive = group.longer_than(begin), going_on = group.longer_than(begin + chunk);
    for (int64_t s = 0; s < alive; ++s) {
      const int64_t rows = std::min(chunk, group.lengths[s] - begin);
      source.load_input(s, begin, rows, buffers.z);
      const Place next = next_place(group, s, begin, alive, chunk, chunk);
      LookAhead ahead(next.rows, 3 * task.vectors);
      if (next.rows > 0) source.watch_forward(next.s, next.begin, ahead);
      if (next.rows > 0 && s == 0 && going_on > 0) {
        const auto& coming = tables.chunks[index + 1];
        watch_tables(
            {&coming.local_by_column, &coming.transfer, &coming.restriction_change_by_column}, next.rows,
            ahead);
      }
      for (int64_t v = 0; v < task.vectors; ++v) {
        V* const z = buffers.z.of(v);
        V* const y = buffers.y.of(v);
        clear_rest(z, rows, padded(rows));
        evaluate_state(tables, index, rows, weights[v], states.of(s, v), local, y);
        ahead.fetch();
        add_near<1>(weights[v].near, z, y, padded(rows));
        ahead.fetch();
        if (s < going_on)
          take_moments(
              tables.basis_by_column.data(), n, chunk, tables.chunks[index].num_moments, z, weights[v].lift,
              buffers.folded, moments.of(s, v));
        ahead.fetch();
      }
      source.store_output(s, begin, rows, buffers.y);
    }
    if (going_on > 0) advance_all(tables, index, weights, going_on, moments, states, rests, contracted);
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

// Adds rows of sums in the activations' precision, which hold one chunk's share, to those of a task, and clears
// them.
template <typename V>
HYENAREC_INLINE void flush(V* shares, int64_t rows, double* sums) {
  constexpr int kHalf = simd::kLanes<V> / 2;  // as doubles they fill a register
  using Half = simd::Vector<LaneOf<V>, kHalf>;
  using Doubles = simd::Vector<double, kHalf>;
  const LaneOf<V>* share = reinterpret_cast<const LaneOf<V>*>(shares);
  for (int64_t i = 0; i < 2 * rows; ++i, share += kHalf, sums += kHalf) {
    const auto wide = __builtin_convertvector(simd::load_lanes<Half>(share), Doubles);
    simd::store(simd::load_lanes<Doubles>(sums) + wide, sums);
  }
  for (int64_t row = 0; row < rows; ++row) shares[row] = V{};
}

// A backward task's memory, in vectors. Sequences of one chunk have no state.
template <typename V>
class BackwardMemory {
 public:
  V* contracted;       // 2 [N, N]
  V* products;         // 2 [N, N] moments by gradients of states, summed over the sequences
  V* local;            // [N]
  StateRows<V> grads;  // of the states that chunks end with, then of those they start with
  StateRows<V> rests;  // of the states' sums going forward, of their gradients' going back

  // With `keep` there is room for the states and moments of all chunks, else for the moments of one.
  BackwardMemory(Scratch& scratch, const Task& task, const LegendreTables<LaneOf<V>>& tables, bool keep)
      : n_(tables.num_coeffs), vectors_(task.vectors), sum_rows_(SumRows{n_, tables.chunk}.count()) {
    int64_t kept = 0;
    for (int64_t end = tables.chunk, index = 0; end < task.group.longest(); end += tables.chunk, ++index) {
      before_.push_back(kept);
      if (keep) kept += task.group.longer_than(end);
      most_moments_ = std::max(most_moments_, tables.chunks[index].num_moments);
    }
    const int64_t going_on = task.group.longer_than(tables.chunk);
    const int64_t moments = std::max(kept, going_on) * vectors_ * most_moments_;
    const int64_t cleared = vectors_ * (2 * going_on * n_ + sum_rows_);
    states_ = scratch.get<V>(kept * vectors_ * n_ + moments + cleared + 4 * n_ * n_ + n_);
    moments_ = states_ + kept * vectors_ * n_;
    grads = {moments_ + moments, vectors_, n_};
    rests = {grads.data + grads.size(going_on), vectors_, n_};
    shares_ = rests.data + rests.size(going_on);
    contracted = shares_ + vectors_ * sum_rows_;
    products = contracted + 2 * n_ * n_;
    local = products + 2 * n_ * n_;
    for (int64_t i = 0; i < cleared; ++i) grads.data[i] = V{};
  }

  // The states that chunk `index`, at least 1, starts with; for the sequences that have it.
  HYENAREC_INLINE StateRows<V> states(int64_t index) const {
    return {states_ + before_[index - 1] * vectors_ * n_, vectors_, n_};
  }
  // The moments of chunk `index`, for the sequences that go on after it.
  HYENAREC_INLINE StateRows<V> moments(int64_t index) const {
    return {moments_ + before_[index] * vectors_ * most_moments_, vectors_, most_moments_};
  }
  // Names what is kept of a sequence's chunk to a LookAhead that fetches `rows` rows.
  HYENAREC_INLINE void watch(int64_t index, int64_t s, int64_t rows, LookAhead& ahead) const {
    const auto kept_states = states(index), kept_moments = moments(index);
    if (rows == 0) return;
    for (const auto& kept : {kept_states, kept_moments}) {
      const int64_t bytes = (kept.size(1) * sizeof(V) + rows - 1) / rows;
      ahead.read(kept.of(s, 0), bytes, bytes);
    }
  }
  // One chunk's share of a vector's sums, rows as SumRows says.
  HYENAREC_INLINE V* shares(int64_t v) const { return shares_ + v * sum_rows_; }

 private:
  const int64_t n_, vectors_, sum_rows_;
  std::vector<int64_t> before_;  // [chunk] sequences that went on after an earlier chunk
  int64_t most_moments_ = 0;
  V* states_;
  V* moments_;
  V* shares_;
};

// Computes the states that the chunks start with and their moments, and keeps them.
template <typename V, typename Source>
HYENAREC_INLINE void keep_states(
    const LegendreTables<LaneOf<V>>& tables,
    const Task& task,
    const TileWeights<V>* weights,
    const BackwardMemory<V>& memory,
    Source& source) {
  const int64_t n = tables.num_coeffs, chunk = tables.chunk;
  const Group& group = task.group;
  ChunkBuffers<V> buffers(chunk);
  for (int64_t index = 0, begin = 0; begin + chunk < group.longest(); ++index, begin += chunk) {
    const int64_t going_on = group.longer_than(begin + chunk);
    const auto moments = memory.moments(index), states = memory.states(index + 1);
    for (int64_t s = 0; s < going_on; ++s) {
      source.load_input(s, begin, chunk, buffers.z);
      const Place next = next_place(group, s, begin, going_on, chunk, chunk);
      LookAhead ahead(next.rows, task.vectors);
      if (next.rows > 0) source.watch_inputs(next.s, next.begin, ahead);
      if (next.rows > 0 && s == 0) {
        const auto& coming = tables.chunks[index + 1];
        watch_tables({&coming.transfer, &coming.restriction_change_by_column}, next.rows, ahead);
      }
      for (int64_t v = 0; v < task.vectors; ++v) {
        ahead.fetch();
        take_moments(
            tables.basis_by_column.data(), n, chunk, tables.chunks[index].num_moments, buffers.z.of(v),
            weights[v].lift, buffers.folded, moments.of(s, v));
      }
    }
    if (index > 0)
      std::copy_n(memory.states(index).data, states.size(going_on), states.data);
    else
      std::fill_n(states.data, states.size(going_on), V{});
    advance_all(tables, index, weights, going_on, moments, states, memory.rests, memory.contracted);
  }
  std::fill_n(memory.rests.data, memory.rests.size(group.longer_than(chunk)), V{});
}

// Moves the gradients of the states of a task's first sequences from the chunk's end to its start. The chunk's
// moments become their gradients; with `parameters` the sums for coeffs and decay are added to.
template <typename V>
HYENAREC_INLINE void pass_state_grads(
    const LegendreTables<LaneOf<V>>& tables,
    int64_t index,
    const TileWeights<V>* weights,
    int64_t sequences,
    bool parameters,
    const BackwardMemory<V>& memory) {
  const auto& constants = tables.chunks[index];
  const int64_t n = tables.num_coeffs, num_moments = constants.num_moments;
  const auto moments = memory.moments(index);
  const auto one = [](int64_t) { return LaneOf<V>(1); };
  in_pairs(memory.grads.vectors, [&](auto size, int64_t v) HYENAREC_INLINE_LAMBDA {
    const Members<V> products{memory.products, n * n}, contracted{memory.contracted, n * n};
    const Members<V> shares{memory.shares(v), memory.shares(1) - memory.shares(0)};
    if (parameters) {
      for (int m = 0; m < size(); ++m)
        multiply_moments(
            num_moments, n, sequences, moments.members(v + m), memory.grads.members(v + m), products.of(m));
      add_contracted_grad<size(), V>(
          constants.transfer.data(), num_moments, n, {products.first, products.stride}, shares);
    }
    contract<size(), V>(constants.transfer.data(), num_moments, n, coeffs_from(weights, v), contracted);
    for (int m = 0; m < size(); ++m) {
      const auto grads = memory.grads.members(v + m);
      take_moment_grads(contracted.of(m), num_moments, n, sequences, grads, moments.members(v + m));
      advance_transposed(
          constants.restriction_change.data(), n, *weights[v + m].step, sequences, grads,
          memory.rests.members(v + m));
      if (!parameters || index == 0) continue;
      V by_step = {};
      for (int64_t s = 0; s < sequences; ++s)
        by_step += weighted_product<V>(grads.of(s), memory.states(index).of(s, v + m), n, one);
      V* const far_decay = shares.of(m) + SumRows{n, tables.chunk}.far_decay();
      *far_decay -= static_cast<LaneOf<V>>(tables.chunk) * by_step;
    }
  });
}

// The transposed scan, from the last chunk to the first, after pass_state_grads for each chunk.
template <typename V, typename Source>
HYENAREC_INLINE void sweep_backwards(
    const LegendreTables<LaneOf<V>>& tables,
    const Task& task,
    const TileWeights<V>* weights,
    const Wanted& wanted,
    const BackwardMemory<V>& memory,
    Source& source,
    double* const* sums) {
  using lane_t = LaneOf<V>;
  const int64_t n = tables.num_coeffs, chunk = tables.chunk;
  const SumRows rows_of{n, chunk};
  const Group& group = task.group;
  const auto lag = [](int64_t t) { return static_cast<lane_t>(t); };
  const auto to_end = [chunk](int64_t t) { return static_cast<lane_t>(chunk - t); };
  ChunkBuffers<V> buffers(chunk);
  for (int64_t index = (group.longest() - 1) / chunk; index >= 0; --index) {
    const int64_t begin = index * chunk;
    const int64_t alive = group.longer_than(begin), going_on = group.longer_than(begin + chunk);
    if (going_on > 0) pass_state_grads(tables, index, weights, going_on, wanted.parameters, memory);
    for (int64_t s = 0; s < alive; ++s) {
      const int64_t rows = std::min(chunk, group.lengths[s] - begin);
      const int64_t last = padded(rows) - 1;
      source.load_input(s, begin, rows, buffers.z);
      source.load_output_grad(s, begin, rows, buffers.dy);
      const Place next = next_place(group, s, begin, alive, chunk, -chunk);
      LookAhead ahead(next.rows, 4 * task.vectors);
      if (next.rows > 0) source.watch_backward(next.s, next.begin, ahead);
      if (s < going_on && index > 1) memory.watch(index - 1, s, next.rows, ahead);
      if (next.rows > 0 && s == 0 && index > 0) {
        const auto& coming = tables.chunks[index - 1];
        watch_tables(
            {&coming.local, &coming.local_by_column, &coming.transfer, &coming.restriction_change}, next.rows,
            ahead);
      }
      for (int64_t v = 0; v < task.vectors; ++v) {
        V* const shares = memory.shares(v);
        V* const z = buffers.z.of(v);
        V* const y = buffers.y.of(v);
        V* const dy = buffers.dy.of(v);
        V* const dz = buffers.dz.of(v);
        clear_rest(z, rows, padded(rows));
        clear_rest(dy, rows, index > 0 ? chunk : padded(rows));
        ahead.fetch();
        if (wanted.parameters || wanted.output)
          evaluate_state(
              tables, index, rows, weights[v], index > 0 ? memory.states(index).of(s, v) : nullptr,
              memory.local, y);
        if (wanted.parameters && index > 0) shares[rows_of.far_decay()] -= weighted_product(dy, y, rows, lag);
        if (wanted.output) add_near<1>(weights[v].near, z, y, padded(rows));
        ahead.fetch();
        if (s < going_on) {
          evaluate(
              tables.basis.data(), chunk, tables.chunks[index].num_moments, memory.moments(index).of(s, v),
              weights[v].lift, dz);
          if (wanted.parameters) shares[rows_of.far_decay()] -= weighted_product(z, dz, chunk, to_end);
        } else {
          clear_rest(dz, 0, padded(rows));
        }
        if (index > 0)
          add_state_grad(
              tables, index, weights[v], dy, buffers.folded, memory.local, memory.grads.of(s, v),
              memory.rests.of(s, v));
        ahead.fetch();
        add_near<-1>(weights[v].near, dy + last, dz + last, last + 1);
        ahead.fetch();
        if (wanted.parameters) add_lag_products(dy, z, shares + rows_of.lags(), last + 1);
      }
      if (wanted.output) source.take_output(s, begin, rows, buffers.y);
      if (wanted.input) source.take_input_grad(s, begin, rows, buffers.dz);
    }
    for (int64_t v = 0; v < task.vectors && wanted.parameters; ++v)
      flush(memory.shares(v), rows_of.count(), sums[v]);
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
  const bool needs_states = wanted.output || wanted.parameters;
  const BackwardMemory<V> memory(scratch, task, tables, needs_states);
  if (needs_states) keep_states(tables, task, weights, memory, source);
  sweep_backwards(tables, task, weights, wanted, memory, source, sums);
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
