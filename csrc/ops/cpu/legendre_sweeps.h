// The Legendre scan over whole sequences: tasks of a few sequences by one vector of channels, walked chunk by
// chunk, all sequences of a task in step, so that what depends on chunk and channel only (the contraction of
// coefficients and transfer table) is computed once for all of them.
//
// Where inputs come from and where results go is a Source's business (legendre_conv and hyena_mixer have one
// each); its members are called with the index of a sequence within the task.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "../legendre_math.h"
#include "../legendre_tables.h"
#include "legendre_scan.h"
#include "sequences.h"

namespace hyenarec::scan {

constexpr int64_t kMaxChunk = 64;
// A task's size: enough sequences to share a contraction, enough events to outweigh what a task costs.
constexpr int64_t kTaskSequences = 4;
constexpr int64_t kTaskEvents = 8192;

// Memory for vectors, aligned for them, reused from task to task.
class Scratch {
 public:
  template <typename V>
  V* get(int64_t count) {
    const size_t needed = count * sizeof(V) / sizeof(Line) + 1;
    if (lines_.size() < needed) lines_ = std::vector<Line>(needed);
    return reinterpret_cast<V*>(lines_.data());
  }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::vector<Line> lines_;
};

// Sequences that a task walks in step, longest first.
struct Group {
  std::vector<int64_t> sequences;
  std::vector<int64_t> lengths;
  int64_t longest() const { return lengths.front(); }
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
  int64_t events = kTaskEvents, members = kTaskSequences;
  for (const int64_t s : order) {
    if (sequences.size(s) == 0) break;
    if (events >= kTaskEvents && members >= kTaskSequences) {
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

// A group's sequences by one vector of channels; the last of them may be absent.
struct Task {
  int64_t index;
  const Group& group;
  int64_t first_channel;
  int64_t channels;
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
  static int64_t rows(int64_t chunk, int64_t num_coeffs) { return 3 * chunk + 1 + num_coeffs; }
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
  std::fill_n(rows, (3 * chunk + 1 + n) * lanes, compute_t(0));
  for (int64_t lane = 0; lane < count; ++lane) {
    const NearKernel kernel(problem, basis, first + lane);
    compute_t* to = rows + lane;
    const auto put = [&](double value) {
      *to = static_cast<compute_t>(value);
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

// y = what the events before the chunk contribute to its events.
template <typename V>
HYENAREC_INLINE void evaluate_state(
    const LegendreTables<LaneOf<V>>& tables,
    int64_t index,
    const TileWeights<V>& weights,
    const V* state,
    V* local,
    V* y) {
  const int64_t chunk = tables.chunk, n = tables.num_coeffs;
  const auto& constants = tables.chunks[index];
  if (index == 0) {
    for (int64_t t = 0; t < chunk; ++t) y[t] = V{};
  } else if ((index + 1) * chunk <= tables.horizon) {
    multiply_upper(constants.local_by_column.data(), constants.num_local, n, state, local);
    evaluate(tables.basis.data(), chunk, constants.num_local, local, weights.fade, y);
  } else {
    const int64_t rows = tables.horizon - index * chunk;
    for (int64_t t = 0; t < chunk; ++t) {
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

// Buffers for one chunk of one sequence, on the stack: they stay in the first-level cache.
template <typename V>
struct ChunkBuffers {
  V z_with_zeros[kZerosBefore + kMaxChunk];
  V y[kMaxChunk], dy[kMaxChunk], dz[kMaxChunk], folded[kMaxChunk];
  V* z = z_with_zeros + kZerosBefore;

  HYENAREC_INLINE ChunkBuffers() {
    for (auto& zero : z_with_zeros) zero = V{};
  }
};

template <typename V>
HYENAREC_INLINE void clear_rest(V* values, int64_t rows, int64_t chunk) {
  for (int64_t t = rows; t < chunk; ++t) values[t] = V{};
}

// Asks for the rows that follow those of sequence s at `begin` in a forward sweep: the next sequence's same
// chunk, or the first one's next.
template <typename Source>
HYENAREC_INLINE void prefetch_after(
    const Source& source, const Group& group, int64_t s, int64_t begin, int64_t chunk) {
  const bool same_chunk = s + 1 < group.count() && group.lengths[s + 1] > begin;
  const int64_t next = same_chunk ? s + 1 : 0;
  const int64_t next_begin = same_chunk ? begin : begin + chunk;
  if (group.lengths[next] > next_begin)
    source.prefetch(next, next_begin, std::min(chunk, group.lengths[next] - next_begin));
}

// y = kernel * z of every sequence of a group, from first chunk to last.
template <typename V, typename Source>
HYENAREC_INLINE void forward_task(
    const LegendreTables<LaneOf<V>>& tables,
    const Group& group,
    const TileWeights<V>& weights,
    Source& source,
    Scratch& scratch) {
  const int64_t n = tables.num_coeffs, chunk = tables.chunk;
  V* const states = scratch.get<V>(group.count() * n + n * n + 2 * n);
  V* const contracted = states + group.count() * n;
  V* const moments = contracted + n * n;
  V* const local = moments + n;
  for (int64_t i = 0; i < group.count() * n; ++i) states[i] = V{};
  ChunkBuffers<V> buffers;
  for (int64_t index = 0, begin = 0; begin < group.longest(); ++index, begin += chunk) {
    const auto& constants = tables.chunks[index];
    if (group.longest() > begin + chunk)
      contract(constants.transfer_by_run.data(), constants.num_moments, n, weights.coeffs, contracted);
    for (int64_t s = 0; s < group.count() && group.lengths[s] > begin; ++s) {
      const int64_t rows = std::min(chunk, group.lengths[s] - begin);
      V* const state = states + s * n;
      source.load_input(s, begin, rows, buffers.z);
      prefetch_after(source, group, s, begin, chunk);
      clear_rest(buffers.z, rows, chunk);
      evaluate_state(tables, index, weights, state, local, buffers.y);
      add_near<1>(weights.near, buffers.z, buffers.y, padded(rows));
      source.store_output(s, begin, rows, buffers.y);
      if (group.lengths[s] > begin + chunk) {
        take_moments(
            tables.basis_by_column.data(), n, chunk, constants.num_moments, buffers.z, weights.lift,
            buffers.folded, moments);
        advance(
            constants.restriction_change_by_column.data(), n, *weights.step, contracted, moments,
            constants.num_moments, state);
      }
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

// The gradients of a group's sequences: once forwards, to have outputs, states and moments, then backwards
// through the transposed scan. `sums` [SumRows::count(), lanes] are overwritten.
template <typename V, typename Source>
HYENAREC_INLINE void backward_task(
    const LegendreTables<LaneOf<V>>& tables,
    const Group& group,
    const TileWeights<V>& weights,
    const Wanted& wanted,
    Source& source,
    Scratch& scratch,
    double* sums) {
  const int64_t n = tables.num_coeffs, chunk = tables.chunk;
  const SumRows rows_of{n, chunk};
  const int64_t most_chunks = (group.longest() + chunk - 1) / chunk;
  // saved [chunk][sequence][2 N]: the state that a chunk starts with, and its moments.
  const int64_t saved_size = most_chunks * group.count() * 2 * n;
  V* const saved = scratch.get<V>(saved_size + group.count() * n + 2 * n * n + 2 * n + rows_of.count());
  V* const states = saved + saved_size;
  V* const contracted = states + group.count() * n;
  V* const products = contracted + n * n;
  V* const local = products + n * n;
  V* const dmoments = local + n;
  V* const shares = dmoments + n;
  ChunkBuffers<V> buffers;
  std::fill_n(sums, rows_of.count() * simd::kLanes<V>, 0.0);
  for (int64_t i = 0; i < rows_of.count(); ++i) shares[i] = V{};
  for (int64_t i = 0; i < group.count() * n; ++i) states[i] = V{};
  V* const coeffs_shares = shares;
  V* const lag_shares = shares + rows_of.lags();
  V* const decay_share = shares + rows_of.far_decay();
  const auto saved_at = [&](int64_t index, int64_t s)
                            HYENAREC_INLINE_LAMBDA { return saved + (index * group.count() + s) * 2 * n; };

  for (int64_t index = 0, begin = 0; begin < group.longest(); ++index, begin += chunk) {
    const auto& constants = tables.chunks[index];
    if (group.longest() > begin + chunk)
      contract(constants.transfer_by_run.data(), constants.num_moments, n, weights.coeffs, contracted);
    for (int64_t s = 0; s < group.count() && group.lengths[s] > begin; ++s) {
      const int64_t rows = std::min(chunk, group.lengths[s] - begin);
      V* const state = states + s * n;
      source.load_input(s, begin, rows, buffers.z);
      clear_rest(buffers.z, rows, chunk);
      evaluate_state(tables, index, weights, state, local, buffers.y);
      if (wanted.parameters || wanted.output) source.load_output_grad(s, begin, rows, buffers.dy);
      if (wanted.parameters) {
        for (int64_t t = 1; t < rows; ++t)
          *decay_share -= static_cast<LaneOf<V>>(t) * buffers.dy[t] * buffers.y[t];
      }
      if (wanted.output) {
        add_near<1>(weights.near, buffers.z, buffers.y, padded(rows));
        source.take_output(s, begin, rows, buffers.y);
      }
      if (group.lengths[s] > begin + chunk) {
        V* const kept = saved_at(index, s);
        for (int64_t k = 0; k < n; ++k) kept[k] = state[k];
        take_moments(
            tables.basis_by_column.data(), n, chunk, constants.num_moments, buffers.z, weights.lift,
            buffers.folded, kept + n);
        advance(
            constants.restriction_change_by_column.data(), n, *weights.step, contracted, kept + n,
            constants.num_moments, state);
      }
    }
    flush(decay_share, 1, sums + rows_of.far_decay() * simd::kLanes<V>);
    source.end_chunk();
  }
  if (!wanted.input && !wanted.parameters) return;

  V* const dstates = states;
  for (int64_t i = 0; i < group.count() * n; ++i) dstates[i] = V{};
  for (int64_t index = most_chunks - 1; index >= 0; --index) {
    const int64_t begin = index * chunk;
    const auto& constants = tables.chunks[index];
    const int64_t num_moments = constants.num_moments;
    const bool goes_on = group.longest() > begin + chunk;
    if (goes_on) {
      contract(constants.transfer_by_run.data(), num_moments, n, weights.coeffs, contracted);
      for (int64_t i = 0; i < num_moments * n; ++i) products[i] = V{};
    }
    for (int64_t s = 0; s < group.count() && group.lengths[s] > begin; ++s) {
      const int64_t rows = std::min(chunk, group.lengths[s] - begin);
      V* const dstate = dstates + s * n;
      source.load_input(s, begin, rows, buffers.z);
      source.load_output_grad(s, begin, rows, buffers.dy);
      clear_rest(buffers.z, rows, chunk);
      clear_rest(buffers.dy, rows, chunk);
      if (group.lengths[s] > begin + chunk) {
        const V* const state = saved_at(index, s);
        const V* const moments = state + n;
        add_moment_grad(contracted, num_moments, n, dstate, moments, dmoments, products);
        evaluate(tables.basis.data(), chunk, num_moments, dmoments, weights.lift, buffers.dz);
        advance_transposed(constants.restriction_change.data(), n, *weights.step, dstate);
        if (wanted.parameters) {
          V by_step = {}, by_lift = {};
          for (int64_t k = 0; k < n; ++k) by_step += dstate[k] * state[k];
          for (int64_t t = 0; t < chunk; ++t)
            by_lift += static_cast<LaneOf<V>>(chunk - t) * buffers.z[t] * buffers.dz[t];
          *decay_share -= static_cast<LaneOf<V>>(chunk) * by_step + by_lift;
        }
      } else {
        clear_rest(buffers.dz, 0, chunk);
      }
      if (index > 0) add_state_grad(tables, index, weights, buffers.dy, buffers.folded, local, dstate);
      const int64_t last = padded(rows) - 1;
      add_near<-1>(weights.near, buffers.dy + last, buffers.dz + last, last + 1);
      if (wanted.parameters) add_lag_products(buffers.dy, buffers.z, lag_shares, last + 1);
      if (wanted.input) source.take_input_grad(s, begin, rows, buffers.dz);
    }
    if (wanted.parameters) {
      if (goes_on)
        add_contracted_grad(constants.transfer_by_run.data(), num_moments, n, products, coeffs_shares);
      flush(shares, rows_of.count(), sums);
    }
    source.end_chunk();
  }
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
