// The scan's backward pass over a task, from the last section to the first: each once forwards for its chunks' states,
// from those that the forward pass handed on to it, then everything else from its last chunk to its first. So what is
// kept meanwhile is that of one section, and its inputs are still in a cache when they are read again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "forward.h"

namespace hyenarec::scan {

// Which gradients a backward pass is asked for.
struct Wanted {
  bool input;       // of z
  bool output;      // the output before the post gate, for that gate's gradient
  bool parameters;  // of coeffs, decay, skip
};

// Whether it needs the states that the forward pass computed; else the transposed scan alone will do.
inline bool needs_states(const Wanted& wanted) { return wanted.output || wanted.parameters; }

// The sums over a task that become the parameters' gradients, rows of lanes: those of each scan part's coefficients,
// lags [C], the gradient of the near kernel, and far_decay [1].
struct SumRows {
  int64_t whole, cut, between, lags, far_decay, count;

  template <typename scalar_t>
  explicit SumRows(const SectionTables<scalar_t>& tables)
      : whole(0),
        cut(whole + tables.whole.tables.num_degrees),
        between(cut + tables.cut.tables.num_degrees),
        lags(between + tables.num_coeffs),
        far_decay(lags + tables.chunk),
        count(far_decay + 1) {}
  // Of a part, as Contractions::parts() numbers them.
  int64_t part(int64_t number) const { return number == 0 ? whole : number == 1 ? cut : between; }
};

// Chunks of sequences whose sums are added up in the activations' precision before they are flushed.
constexpr int64_t kMostUnflushed = 4;

// Adds rows of sums in the activations' precision to those of a task, and clears them.
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

// A backward task's memory, in vectors.
template <typename V>
class BackwardMemory {
 public:
  // Of the section at hand: the states that were handed on to it, for the sequences that have it, and its moments, for
  // those that go on after it.
  StateRows<V> handed_on, section_moments;
  StateRows<V> grads;            // of the states that chunks end with, then of those they start with
  StateRows<V> handed_on_grads;  // the same of the states between sections
  StateRows<V> moment_grads, section_moment_grads;
  V* local;  // [N]
  DirectBasis<V> basis{nullptr};

  // With `keep` there is room for the states and moments of a section's chunks. `reached`: the contractions that the
  // task's sequences need, the first of the call's.
  BackwardMemory(
      Scratch& scratch,
      const Task& task,
      const Scan<V>& scan,
      const Contractions<LaneOf<V>>& reached,
      bool keep)
      : n_(scan.num_coeffs()),
        vectors_(task.vectors),
        sum_rows_(SumRows(scan.tables).count),
        product_rows_(reached.rows_within) {
    const Group& group = task.group;
    int64_t most_state = 0, most_moments = 0;  // of any chunk
    for (int64_t index = 0; index * scan.tables.section < group.longest(); ++index) {
      const Section<V> section(scan, index);
      for (int64_t i = 0; i < section.chunks(); ++i) {
        most_moments = std::max(most_moments, section.num_moments(i));
        if (section.has_past(i)) most_state = std::max(most_state, section.tables.chunks[i].num_state);
      }
    }
    // Of the sequences of these all others are a part.
    const int64_t going_on = group.longer_than(scan.chunk()) * vectors_;
    const int64_t passing = group.longer_than(scan.tables.section) * vectors_;
    const int64_t in_section = std::min(group.longest(), scan.tables.section);
    const int64_t chunks = keep ? (in_section + scan.chunk() - 1) / scan.chunk() : 0;
    const int64_t kept = chunks * going_on * (most_state + most_moments) + 2 * passing * n_;
    const int64_t cleared = going_on * most_state + passing * n_ + vectors_ * (sum_rows_ + product_rows_);
    const int64_t others =
        going_on * most_moments + passing * n_ + 2 * n_ * n_ + n_ + DirectBasis<V>::size(n_);
    V* next = scratch.get<V>(kept + cleared + others);
    const auto take = [&](int64_t size) { return std::exchange(next, next + size); };
    const auto take_rows = [&](int64_t count, int64_t pitch) {
      return StateRows<V>{take(count * pitch), vectors_, pitch};
    };
    states_ = take_rows(chunks * going_on, most_state);
    moments_ = take_rows(chunks * going_on, most_moments);
    kept_of_chunk_ = going_on;
    handed_on = take_rows(passing, n_);
    section_moments = take_rows(passing, n_);
    std::fill_n(next, cleared, V{});
    grads = take_rows(going_on, most_state);
    handed_on_grads = take_rows(passing, n_);
    shares_ = take(vectors_ * sum_rows_);
    products_ = take(vectors_ * product_rows_);
    moment_grads = take_rows(going_on, most_moments);
    section_moment_grads = take_rows(passing, n_);
    between_products_ = take(2 * n_ * n_);
    local = take(n_);
    basis = DirectBasis<V>(next);
  }

  // The states that the section's chunk i starts with, for the sequences that have it, if it has a past.
  HYENAREC_INLINE StateRows<V> states(int64_t i) const { return of_chunk(states_, i); }
  // Its moments, for the sequences that go on after it.
  HYENAREC_INLINE StateRows<V> moments(int64_t i) const { return of_chunk(moments_, i); }
  // Names what is kept of a sequence's chunk to a LookAhead that fetches `rows` rows.
  HYENAREC_INLINE void watch(int64_t i, int64_t s, int64_t rows, LookAhead& ahead) const {
    if (rows == 0) return;
    for (const auto& kept : {states(i), moments(i)}) {
      const int64_t bytes = (kept.size(1) * sizeof(V) + rows - 1) / rows;
      ahead.read(kept.of(s, 0), bytes, bytes);
    }
  }
  // A vector's share of the sums, as SumRows says, for vectors from `v` on.
  HYENAREC_INLINE Members<V> shares(int64_t v) const { return {shares_ + v * sum_rows_, sum_rows_}; }
  // Moments by gradients of states, summed: over the task for each contraction within sections, ...
  HYENAREC_INLINE Members<V> products(int64_t v) const {
    return {products_ + v * product_rows_, product_rows_};
  }
  // ... and [N, N] for two vectors and one contraction between sections.
  HYENAREC_INLINE Members<V> between_products() const { return {between_products_, n_ * n_}; }

 private:
  HYENAREC_INLINE StateRows<V> of_chunk(const StateRows<V>& all, int64_t i) const {
    return {all.data + i * kept_of_chunk_ * all.pitch, vectors_, all.pitch};
  }

  const int64_t n_, vectors_, sum_rows_, product_rows_;
  int64_t kept_of_chunk_;  // sequences by vectors
  StateRows<V> states_, moments_;
  V *shares_, *products_, *between_products_;
};

// Takes a chunk's moments, of the sequences that go on after it.
template <typename V, typename Source>
HYENAREC_INLINE void keep_moments(
    const Section<V>& section,
    int64_t i,
    const Task& task,
    const StateRows<V>& moments,
    ChunkBuffers<V>& buffers,
    Source& source) {
  const auto& tables = section.tables;
  const int64_t chunk = tables.chunk, begin = section.begin + i * chunk;
  const int64_t going_on = task.group.longer_than(begin + chunk);
  for (int64_t s = 0; s < going_on; ++s) {
    source.load_input(s, begin, chunk, buffers.z);
    const Place next = next_place(task.group, s, begin, going_on, chunk, chunk);
    LookAhead ahead(next.rows, task.vectors);
    if (next.rows > 0 && next.begin < section.end) source.watch_inputs(next.s, next.begin, ahead);
    for (int64_t v = 0; v < task.vectors; ++v) {
      ahead.fetch();
      take_moments(
          tables.basis_by_column.data(), tables.num_coeffs, chunk, section.num_moments(i), buffers.z.of(v),
          section.scan.weights[v].lift, buffers.folded, moments.of(s, v));
    }
  }
}

// Computes the states that a section's chunks start with and the moments of chunks and section, and keeps them.
template <typename V, typename Source>
HYENAREC_INLINE void keep_states(
    const Section<V>& section,
    const Task& task,
    const BackwardMemory<V>& memory,
    ChunkBuffers<V>& buffers,
    Source& source) {
  const Group& group = task.group;
  const int64_t chunk = section.tables.chunk;
  const int64_t passing = group.longer_than(section.end);
  std::fill_n(memory.section_moments.data, memory.section_moments.size(passing), V{});
  if (section.index > 0) enter(section, group.longer_than(section.begin), memory.handed_on, memory.states(0));
  for (int64_t i = 0; i < section.chunks(); ++i) {
    const int64_t going_on = group.longer_than(section.begin + (i + 1) * chunk);
    if (going_on == 0) break;
    const auto moments = memory.moments(i);
    keep_moments(section, i, task, moments, buffers, source);
    if (i + 1 < section.chunks()) {
      const auto states = memory.states(i + 1);
      if (section.has_past(i))
        std::copy_n(memory.states(i).data, states.size(going_on), states.data);
      else
        std::fill_n(states.data, states.size(going_on), V{});
      advance_within(section, i, going_on, moments, states);
    }
    if (passing > 0) gather_moments(section, i, passing, moments, memory.section_moments);
  }
}

// sum over the sequences of a[s] b[s], rows of vector v.
template <typename V>
HYENAREC_INLINE V
inner_product(const StateRows<V>& a, const StateRows<V>& b, int64_t v, int64_t sequences, int64_t count) {
  V sum = {};
  for (int64_t s = 0; s < sequences; ++s)
    sum += weighted_product<V>(a.of(s, v), b.of(s, v), count, [](int64_t) { return LaneOf<V>(1); });
  return sum;
}

// Moves the gradients of the states between sections from the section's end to its start, all but what goes into
// the section, and finds the gradients of its moments.
template <typename V>
HYENAREC_INLINE void take_back(
    const Section<V>& section, int64_t sequences, bool parameters, const BackwardMemory<V>& memory) {
  const Scan<V>& scan = section.scan;
  const auto& constants = section.between();
  const auto shape = section.shape_between();
  const int64_t n = scan.num_coeffs();
  const SumRows rows(scan.tables);
  const auto& grads = memory.handed_on_grads;
  std::fill_n(memory.section_moment_grads.data, memory.section_moment_grads.size(sequences), V{});
  in_pairs(grads.vectors, [&](auto size, int64_t v) HYENAREC_INLINE_LAMBDA {
    const auto products = memory.between_products(), shares = memory.shares(v);
    for (int m = 0; m < size() && parameters; ++m) {
      std::fill_n(products.of(m), shape.size(), V{});
      add_moment_products(
          shape, sequences, memory.section_moments.members(v + m), grads.members(v + m), products.of(m));
    }
    if (parameters)
      add_contracted_grad<size(), V>(
          constants.transfer.data(), shape, {products.first, products.stride},
          {shares.first + rows.between, shares.stride});
    for (int m = 0; m < size(); ++m) {
      add_moment_grads(
          section.contracted_between(v + m), shape, sequences, grads.members(v + m),
          memory.section_moment_grads.members(v + m));
      if (section.index == 0) continue;
      advance_transposed(
          constants.restriction_change.data(), n, constants.num_state, constants.num_next,
          *scan.weights[v + m].section_step, sequences, grads.members(v + m));
      if (!parameters) continue;
      const V product = inner_product(grads, memory.handed_on, v + m, sequences, constants.num_state);
      shares.of(m)[rows.far_decay] -= static_cast<LaneOf<V>>(scan.tables.section) * product;
    }
  });
}

// The gradients of chunk i's moments through those of the section, which then are those at its start.
template <typename V>
HYENAREC_INLINE void scatter_moment_grads(
    const Section<V>& section,
    int64_t i,
    int64_t sequences,
    bool parameters,
    const BackwardMemory<V>& memory) {
  const Scan<V>& scan = section.scan;
  const auto& gather = section.gather(i);
  const int64_t moments = section.between().num_moments;
  const auto& grads = memory.moment_grads;
  for (int64_t v = 0; v < grads.vectors; ++v) {
    const V& step = *scan.weights[v].chunk_step;
    for (int64_t s = 0; s < sequences; ++s) {
      V* const from = memory.section_moment_grads.of(s, v);
      multiply_upper(
          gather.by_column.data(), gather.num_moments, gather.num_moments, moments, from, grads.of(s, v));
      for (int64_t q = 0; q < moments; ++q) from[q] += step * from[q];
    }
    if (!parameters) continue;
    const auto events_left = static_cast<LaneOf<V>>(scan.tables.section - (i + 1) * scan.chunk());
    memory.shares(v).first[SumRows(scan.tables).far_decay] -=
        events_left * inner_product(memory.moments(i), grads, v, sequences, gather.num_moments);
  }
}

// Moves the gradients of the states from the end of chunk i to its start, where the section goes on, and adds to
// the gradients of its moments.
template <typename V>
HYENAREC_INLINE void take_back_within(
    const Section<V>& section,
    int64_t i,
    int64_t sequences,
    bool parameters,
    const BackwardMemory<V>& memory) {
  const Scan<V>& scan = section.scan;
  const auto& tables = section.tables;
  const auto& constants = tables.chunks[i];
  const auto shape = section.part.shape(i);
  for (int64_t v = 0; v < memory.grads.vectors; ++v) {
    const auto grads = memory.grads.members(v);
    if (parameters)
      add_moment_products(
          shape, sequences, memory.moments(i).members(v), grads,
          memory.products(v).first + section.part.rows[i]);
    add_moment_grads(section.contracted(i, v), shape, sequences, grads, memory.moment_grads.members(v));
    if (!section.has_past(i)) continue;
    advance_transposed(
        constants.restriction_change.data(), tables.num_coeffs, constants.num_state, constants.num_next,
        *scan.weights[v].chunk_step, sequences, grads);
    if (!parameters) continue;
    const V product = inner_product(memory.grads, memory.states(i), v, sequences, constants.num_state);
    memory.shares(v).first[SumRows(scan.tables).far_decay] -= static_cast<LaneOf<V>>(tables.chunk) * product;
  }
}

// dstate += the gradient of chunk i's first `rows` outputs, dy, through `evaluate_state`; the chunk has a past.
template <typename V>
HYENAREC_INLINE void add_state_grad(
    const Section<V>& section,
    int64_t i,
    int64_t rows,
    const LaneOf<V>* basis,
    const TileWeights<V>& weights,
    const V* dy,
    V* folded,
    V* dlocal,
    V* dstate) {
  const auto& tables = section.tables;
  const int64_t n = tables.num_coeffs;
  const auto& constants = tables.chunks[i];
  if (basis) {
    add_direct_grads(basis, padded(rows), constants.num_state, dy, weights.fade, dstate);
  } else {
    take_moments(
        tables.basis_by_column.data(), n, tables.chunk, constants.num_local, dy, weights.fade, folded,
        dlocal);
    add_transposed_upper(
        constants.local.data(), n, constants.num_local, constants.num_state, dlocal, V{}, dstate);
  }
}

// One chunk of every sequence that has it, after its moments' gradients.
template <typename V, typename Source>
HYENAREC_INLINE void backward_chunk(
    const Section<V>& section,
    int64_t i,
    const Task& task,
    const Wanted& wanted,
    const BackwardMemory<V>& memory,
    ChunkBuffers<V>& buffers,
    Source& source) {
  using lane_t = LaneOf<V>;
  const auto& tables = section.tables;
  const int64_t chunk = tables.chunk, begin = section.begin + i * chunk;
  const SumRows rows_of(section.scan.tables);
  const Group& group = task.group;
  const bool has_past = section.has_past(i);
  const int64_t alive = group.longer_than(begin), going_on = group.longer_than(begin + chunk);
  const auto lag = [](int64_t t) { return static_cast<lane_t>(t); };
  const auto to_end = [chunk](int64_t t) { return static_cast<lane_t>(chunk - t); };
  for (int64_t s = 0; s < alive; ++s) {
    const int64_t rows = std::min(chunk, group.lengths[s] - begin);
    const int64_t last = padded(rows) - 1;
    source.load_input(s, begin, rows, buffers.z);
    source.load_output_grad(s, begin, rows, buffers.dy);
    // Behind the section's first chunk, keep_states goes on with the first one of the section before. (Without states
    // it is the last one. That is fetched when it is needed.)
    const bool leaves = i == 0 && s + 1 == alive;
    const Place next =
        next_place(group, s, begin, alive, chunk, leaves ? -section.scan.tables.section : -chunk);
    LookAhead ahead(next.rows, 4 * task.vectors);
    if (next.rows > 0 && leaves)
      source.watch_inputs(next.s, next.begin, ahead);
    else if (next.rows > 0)
      source.watch_backward(next.s, next.begin, ahead);
    if (s < going_on && i > 1) memory.watch(i - 1, s, next.rows, ahead);
    const auto* const basis = memory.basis.fill(section, i, rows);
    for (int64_t v = 0; v < task.vectors; ++v) {
      const TileWeights<V>& weights = section.scan.weights[v];
      V* const shares = memory.shares(v).first;
      V* const z = buffers.z.of(v);
      V* const y = buffers.y.of(v);
      V* const dy = buffers.dy.of(v);
      V* const dz = buffers.dz.of(v);
      clear_rest(z, rows, padded(rows));
      clear_rest(dy, rows, has_past ? chunk : padded(rows));
      ahead.fetch();
      if (wanted.parameters || wanted.output)
        evaluate_state(
            section, i, rows, basis, weights, has_past ? memory.states(i).of(s, v) : nullptr, memory.local,
            y);
      if (wanted.parameters && has_past) shares[rows_of.far_decay] -= weighted_product(dy, y, rows, lag);
      if (wanted.output) add_near<1>(weights.near, z, y, padded(rows));
      ahead.fetch();
      if (s < going_on) {
        evaluate(
            tables.basis.data(), chunk, section.num_moments(i), memory.moment_grads.of(s, v), weights.lift,
            dz);
        if (wanted.parameters) shares[rows_of.far_decay] -= weighted_product(z, dz, chunk, to_end);
      } else {
        clear_rest(dz, 0, padded(rows));
      }
      if (has_past)
        add_state_grad(
            section, i, rows, basis, weights, dy, buffers.folded, memory.local, memory.grads.of(s, v));
      ahead.fetch();
      add_near<-1>(weights.near, dy + last, dz + last, last + 1);
      ahead.fetch();
      if (wanted.parameters) add_lag_products(dy, z, shares + rows_of.lags, last + 1);
    }
    if (wanted.output) source.take_output(s, begin, rows, buffers.y);
    if (wanted.input) source.take_input_grad(s, begin, rows, buffers.dz);
  }
}

// The gradients of the states that a section began with go to those handed on to it.
template <typename V>
HYENAREC_INLINE void leave(const Section<V>& section, int64_t sequences, const BackwardMemory<V>& memory) {
  const auto& between = section.between();
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t v = 0; v < memory.grads.vectors; ++v) {
      V* const from = memory.grads.of(s, v);
      V* const to = memory.handed_on_grads.of(s, v);
      const int64_t rows =
          std::min(section.is_cut ? between.num_state : between.num_local, memory.grads.pitch);
      if (section.is_cut) {
        for (int64_t k = 0; k < rows; ++k) to[k] += from[k];
      } else {
        add_transposed_upper(
            between.local.data(), section.scan.num_coeffs(), rows, between.num_state, from, V{}, to);
      }
      std::fill_n(from, memory.grads.pitch, V{});
    }
  }
}

// The transposed scan through a section, from its last chunk to its first. `flush_chunks(sequences)` is called after
// each.
template <typename V, typename Source, typename FlushChunks>
HYENAREC_INLINE void sweep_backwards(
    const Section<V>& section,
    const Task& task,
    const Wanted& wanted,
    const BackwardMemory<V>& memory,
    ChunkBuffers<V>& buffers,
    Source& source,
    const FlushChunks& flush_chunks) {
  const int64_t chunk = section.tables.chunk;
  const Group& group = task.group;
  const int64_t passing = group.longer_than(section.end);
  const int64_t last = std::min(section.chunks(), (group.longest() - section.begin + chunk - 1) / chunk) - 1;
  for (int64_t i = last; i >= 0; --i) {
    const int64_t going_on = group.longer_than(section.begin + (i + 1) * chunk);
    std::fill_n(memory.moment_grads.data, memory.moment_grads.size(going_on), V{});
    if (passing > 0) scatter_moment_grads(section, i, passing, wanted.parameters, memory);
    if (going_on > 0 && i + 1 < section.chunks())
      take_back_within(section, i, going_on, wanted.parameters, memory);
    backward_chunk(section, i, task, wanted, memory, buffers, source);
    flush_chunks(group.longer_than(section.begin + i * chunk));
    source.end_chunk();
  }
}

// Carries the products within sections to the sums of the task.
template <typename V>
HYENAREC_INLINE void finish_sums(
    const Scan<V>& scan,
    const Contractions<LaneOf<V>>& reached,
    int64_t vectors,
    const BackwardMemory<V>& memory,
    double* const* sums) {
  const SumRows rows_of(scan.tables);
  in_pairs(vectors, [&](auto size, int64_t v) HYENAREC_INLINE_LAMBDA {
    const auto products = memory.products(v), shares = memory.shares(v);
    for (const bool is_cut : {false, true}) {
      const auto& part = reached.within(is_cut);
      const int64_t row = is_cut ? rows_of.cut : rows_of.whole;
      for (int64_t i = 0; i < part.count(); ++i) {
        add_contracted_grad<size(), V>(
            part.tables->chunks[i].transfer.data(), part.shape(i),
            {products.first + part.rows[i], products.stride}, {shares.first + row, shares.stride});
        for (int m = 0; m < size(); ++m)
          flush(shares.of(m) + row, part.num_degrees(), sums[v + m] + row * simd::kLanes<V>);
      }
    }
  });
}

// The gradients of a task's sequences. sums[vector] [SumRows::count, lanes] start at zero.
template <typename V, typename Source>
HYENAREC_INLINE void backward_task(
    const Scan<V>& scan,
    const Task& task,
    const Wanted& wanted,
    const SavedStates<const LaneOf<V>>& saved,
    Source& source,
    Scratch& scratch,
    double* const* sums) {
  const SumRows rows_of(scan.tables);
  const Group& group = task.group;
  const bool keep = needs_states(wanted);
  const Contractions<LaneOf<V>> reached(scan.tables, group.longest());
  const BackwardMemory<V> memory(scratch, task, scan, reached, keep);
  ChunkBuffers<V> buffers(scan.chunk());
  const auto flush_rows = [&](int64_t first, int64_t end) HYENAREC_INLINE_LAMBDA {
    for (int64_t v = 0; v < task.vectors && wanted.parameters; ++v)
      flush(memory.shares(v).first + first, end - first, sums[v] + first * simd::kLanes<V>);
  };
  int64_t unflushed = 0;  // sequences' chunks
  for (int64_t index = (group.longest() - 1) / scan.tables.section; index >= 0; --index) {
    const Section<V> section(scan, index);
    const int64_t passing = group.longer_than(section.end);
    if (keep) {
      if (index > 0) load_states(saved, section, task, memory.handed_on);
      keep_states(section, task, memory, buffers, source);
    }
    if (passing > 0) {
      take_back(section, passing, wanted.parameters, memory);
      flush_rows(rows_of.between, rows_of.lags);
    }
    sweep_backwards(
        section, task, wanted, memory, buffers, source, [&](int64_t sequences) HYENAREC_INLINE_LAMBDA {
          unflushed += sequences;
          if (unflushed < kMostUnflushed) return;
          flush_rows(rows_of.lags, rows_of.count);
          unflushed = 0;
        });
    if (index > 0) leave(section, group.longer_than(section.begin), memory);
  }
  flush_rows(rows_of.lags, rows_of.count);
  if (wanted.parameters) finish_sums(scan, reached, task.vectors, memory, sums);
}

}  // namespace hyenarec::scan
