// The scan's forward pass over a task, section by section, and in it chunk by chunk. What it shares with the
// backward pass comes first.
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
// Those for gradients belong to a backward pass, whose chunks come from the last to the first.
#pragma once

#include <algorithm>
#include <cstdint>

#include "look_ahead.h"
#include "stages.h"
#include "tasks.h"
#include "weights.h"

namespace hyenarec::scan {

// What all of a call's tasks read.
template <typename V>
struct Scan {
  const SectionTables<LaneOf<V>>& tables;
  const Contractions<LaneOf<V>>& contractions;
  const TileWeights<V>* weights;  // [vector]

  int64_t chunk() const { return tables.chunk; }
  int64_t num_coeffs() const { return tables.num_coeffs; }
};

// One section of it: the events [begin, end) of every sequence that has them.
template <typename V>
struct Section {
  const Scan<V>& scan;
  int64_t index;
  int64_t begin, end;
  bool is_cut;
  const ScanPart<LaneOf<V>>& part;
  const LegendreTables<LaneOf<V>>& tables;

  HYENAREC_INLINE Section(const Scan<V>& of, int64_t at)
      : scan(of),
        index(at),
        begin(at * of.tables.section),
        end(begin + of.tables.section),
        is_cut(of.tables.is_cut(at)),
        part(of.contractions.within(is_cut)),
        tables(*part.tables) {}

  HYENAREC_INLINE int64_t chunks() const { return static_cast<int64_t>(tables.chunks.size()); }
  // Whether something happened before its chunk i.
  HYENAREC_INLINE bool has_past(int64_t i) const { return index > 0 || i > 0; }
  // Moments to be taken of chunk i: for the next chunk's state, and for the section's moments, even where no sequence
  // goes on to another section: how many they are must not depend on the batch, for rounding does on them.
  HYENAREC_INLINE int64_t num_moments(int64_t i) const {
    const int64_t moments = tables.chunks[i].num_moments;
    return has_gather() ? std::max(moments, gather(i).num_moments) : moments;
  }
  HYENAREC_INLINE const V* contracted(int64_t i, int64_t v) const {
    return scan.weights[v].contracted + part.rows[i];
  }

  // The scan from section to section. Only of a section that has a successor there is a contraction.
  HYENAREC_INLINE const LegendreChunk<LaneOf<V>>& between() const {
    return scan.tables.between.chunks[index];
  }
  HYENAREC_INLINE bool has_gather() const { return !is_cut && !scan.tables.gather.empty(); }
  HYENAREC_INLINE const Gather<LaneOf<V>>& gather(int64_t i) const { return scan.tables.gather[i]; }
  HYENAREC_INLINE ContractionShape shape_between() const { return scan.contractions.between.shape(index); }
  HYENAREC_INLINE const V* contracted_between(int64_t v) const {
    return scan.weights[v].contracted + scan.contractions.between.rows[index];
  }
};

inline int64_t padded(int64_t rows) { return (rows + kBlock - 1) / kBlock * kBlock; }

// The states that a section begins with: its part of those handed on to it.
template <typename V>
HYENAREC_INLINE void enter(
    const Section<V>& section, int64_t sequences, const StateRows<V>& handed_on, const StateRows<V>& states) {
  const auto& between = section.between();
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t v = 0; v < states.vectors; ++v) {
      const V* const from = handed_on.of(s, v);
      V* const to = states.of(s, v);
      const int64_t rows = std::min(section.is_cut ? between.num_state : between.num_local, states.pitch);
      if (section.is_cut)
        std::copy_n(from, rows, to);
      else
        multiply_upper(between.local_by_column.data(), between.num_local, rows, between.num_state, from, to);
      for (int64_t k = rows; k < states.pitch; ++k) to[k] = V{};
    }
  }
}

// Whether the state is better evaluated at each of the first `rows` events of chunk i by itself than on the chunk as
// a whole: at a sequence's end, where that is less work. And at a horizon's, where the chunk's interval would reach
// beyond the state's, and polynomials explode.
template <typename V>
HYENAREC_INLINE bool is_direct(const Section<V>& section, int64_t i, int64_t rows) {
  const auto& constants = section.tables.chunks[i];
  const int64_t chunk = section.tables.chunk, local = constants.num_local, state = constants.num_state;
  if (!section.has_past(i)) return false;
  if ((i + 1) * chunk > section.tables.horizon) return true;
  return padded(rows) * state < local * (2 * state - local + 1) / 2 + chunk / 2 * local;
}

// y = what the events before chunk i contribute to its first `rows` events and the rest of their block. `basis` is
// that of those events if they are evaluated directly, else nullptr.
template <typename V>
HYENAREC_INLINE void evaluate_state(
    const Section<V>& section,
    int64_t i,
    int64_t rows,
    const LaneOf<V>* basis,
    const TileWeights<V>& weights,
    const V* state,
    V* local,
    V* y) {
  const auto& tables = section.tables;
  const auto& constants = tables.chunks[i];
  if (!section.has_past(i)) {
    for (int64_t t = 0; t < padded(rows); ++t) y[t] = V{};
  } else if (basis) {
    evaluate_directly(basis, padded(rows), constants.num_state, state, weights.fade, y);
  } else {
    multiply_upper(
        constants.local_by_column.data(), constants.num_local, constants.num_local, constants.num_state,
        state, local);
    evaluate(tables.basis.data(), tables.chunk, constants.num_local, local, weights.fade, y);
  }
}

// Room for the basis of a chunk's events, which stays empty where they are not evaluated directly.
template <typename V>
class DirectBasis {
 public:
  // In vectors; `memory` has so many.
  static int64_t size(int64_t num_coeffs) { return num_coeffs * kMaxChunk / simd::kLanes<V> + 1; }
  HYENAREC_INLINE explicit DirectBasis(V* memory) : memory_(reinterpret_cast<LaneOf<V>*>(memory)) {}

  HYENAREC_INLINE const LaneOf<V>* fill(const Section<V>& section, int64_t i, int64_t rows) const {
    if (!is_direct(section, i, rows)) return nullptr;
    const auto& tables = section.tables;
    fill_basis(tables.horizon - i * tables.chunk, padded(rows), tables.chunks[i].num_state, memory_);
    return memory_;
  }

 private:
  LaneOf<V>* memory_;
};

// Moves the states of a task's first sequences from the start of chunk i to its end, where the section goes on.
template <typename V>
HYENAREC_INLINE void advance_within(
    const Section<V>& section,
    int64_t i,
    int64_t sequences,
    const StateRows<V>& moments,
    const StateRows<V>& states) {
  const auto& tables = section.tables;
  const auto& constants = tables.chunks[i];
  for (int64_t v = 0; v < states.vectors; ++v) {
    if (section.has_past(i))
      advance(
          constants.restriction_change_by_column.data(), tables.num_coeffs, constants.num_state,
          constants.num_next, *section.scan.weights[v].chunk_step, sequences, states.members(v));
    add_moments(
        section.contracted(i, v), section.contracted(i, std::min(v + 1, states.vectors - 1)),
        section.part.shape(i), sequences, moments.members(v), states.members(v));
  }
}

// Adds the moments of chunk i to those of the section, which decay meanwhile.
template <typename V>
HYENAREC_INLINE void gather_moments(
    const Section<V>& section,
    int64_t i,
    int64_t sequences,
    const StateRows<V>& moments,
    const StateRows<V>& section_moments) {
  const auto& gather = section.gather(i);
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t v = 0; v < moments.vectors; ++v)
      add_transposed_upper(
          gather.matrix.data(), section.scan.num_coeffs(), gather.num_moments, section.between().num_moments,
          moments.of(s, v), *section.scan.weights[v].chunk_step, section_moments.of(s, v));
  }
}

// Moves the states between sections from the section's start to its end.
template <typename V>
HYENAREC_INLINE void hand_on(
    const Section<V>& section,
    int64_t sequences,
    const StateRows<V>& section_moments,
    const StateRows<V>& handed_on) {
  const auto& constants = section.between();
  const int64_t n = section.scan.num_coeffs();
  for (int64_t v = 0; v < handed_on.vectors; ++v) {
    if (section.index > 0)
      advance(
          constants.restriction_change_by_column.data(), n, constants.num_state, constants.num_next,
          *section.scan.weights[v].section_step, sequences, handed_on.members(v));
    add_moments(
        section.contracted_between(v), section.contracted_between(std::min(v + 1, handed_on.vectors - 1)),
        section.shape_between(), sequences, section_moments.members(v), handed_on.members(v));
  }
}

// Saves the states that a section hands on; `handed_on` has those of `sequences` sequences.
template <typename V>
HYENAREC_INLINE void save_states(
    const SavedStates<LaneOf<V>>& saved,
    const Section<V>& section,
    const Task& task,
    int64_t sequences,
    const StateRows<V>& handed_on) {
  for (int64_t s = 0; s < sequences; ++s) {
    LaneOf<V>* const row = saved.row(task.group.sequences[s], section.index);
    for (int64_t k = 0; k < saved.num_coeffs; ++k) {
      for_each_vector<V>(task, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        const V value = k < section.between().num_next ? handed_on.of(s, v)[k] : V{};
        simd::store_first(value, row + k * saved.channels + first_channel<V>(task, v), channels);
      });
    }
  }
}

// What `save_states` saved for the section, at least the second one.
template <typename V>
HYENAREC_INLINE void load_states(
    const SavedStates<const LaneOf<V>>& saved,
    const Section<V>& section,
    const Task& task,
    const StateRows<V>& handed_on) {
  for (int64_t s = 0; s < task.group.longer_than(section.begin); ++s) {
    const LaneOf<V>* const row = saved.row(task.group.sequences[s], section.index - 1);
    for (int64_t k = 0; k < section.between().num_state; ++k) {
      for_each_vector<V>(task, [&](int64_t v, int64_t channels) HYENAREC_INLINE_LAMBDA {
        handed_on.of(s, v)[k] =
            simd::load_first<V>(row + k * saved.channels + first_channel<V>(task, v), channels);
      });
    }
  }
}

// Names the first vector's contraction, with which advance_within begins, to a LookAhead that fetches `rows` rows.
template <typename V>
HYENAREC_INLINE void watch_contraction(const Section<V>& section, int64_t i, int64_t rows, LookAhead& ahead) {
  if (rows == 0) return;
  const int64_t size = section.part.shape(i).size() * sizeof(V);
  const int64_t bytes = (size + rows - 1) / rows;
  ahead.read(section.contracted(i, 0), bytes, bytes);
}

// A forward task's memory, in vectors.
template <typename V>
struct ForwardMemory {
  StateRows<V> states, moments;             // of the sequences that go on after a chunk
  StateRows<V> handed_on, section_moments;  // of those that go on after a section
  V* local;                                 // [N]
  DirectBasis<V> basis{nullptr};

  ForwardMemory(Scratch& scratch, const Task& task, const Scan<V>& scan) {
    const int64_t n = scan.num_coeffs();
    const int64_t going_on = task.group.longer_than(scan.chunk()) * task.vectors * n;
    const int64_t passing = task.group.longer_than(scan.tables.section) * task.vectors * n;
    V* next = scratch.get<V>(2 * (going_on + passing) + n + DirectBasis<V>::size(n));
    const auto rows = [&](int64_t size) {
      const StateRows<V> result{next, task.vectors, n};
      std::fill_n(next, size, V{});
      next += size;
      return result;
    };
    states = rows(going_on);
    moments = rows(going_on);
    handed_on = rows(passing);
    section_moments = rows(passing);
    local = next;
    basis = DirectBasis<V>(next + n);
  }
};

// One chunk of every sequence that has it.
template <typename V, typename Source>
HYENAREC_INLINE void forward_chunk(
    const Section<V>& section,
    int64_t i,
    const Task& task,
    const ForwardMemory<V>& memory,
    ChunkBuffers<V>& buffers,
    Source& source) {
  const auto& tables = section.tables;
  const int64_t chunk = tables.chunk, begin = section.begin + i * chunk;
  const Group& group = task.group;
  const int64_t alive = group.longer_than(begin), going_on = group.longer_than(begin + chunk);
  for (int64_t s = 0; s < alive; ++s) {
    const int64_t rows = std::min(chunk, group.lengths[s] - begin);
    source.load_input(s, begin, rows, buffers.z);
    const Place next = next_place(group, s, begin, alive, chunk, chunk);
    LookAhead ahead(next.rows, 3 * task.vectors);
    if (next.rows > 0) source.watch_forward(next.s, next.begin, ahead);
    if (s + 1 == going_on && i + 1 < section.chunks()) watch_contraction(section, i, next.rows, ahead);
    const auto* const basis = memory.basis.fill(section, i, rows);
    for (int64_t v = 0; v < task.vectors; ++v) {
      const TileWeights<V>& weights = section.scan.weights[v];
      V* const z = buffers.z.of(v);
      V* const y = buffers.y.of(v);
      clear_rest(z, rows, padded(rows));
      evaluate_state(section, i, rows, basis, weights, memory.states.of(s, v), memory.local, y);
      ahead.fetch();
      add_near<1>(weights.near, z, y, padded(rows));
      ahead.fetch();
      if (s < going_on)
        take_moments(
            tables.basis_by_column.data(), tables.num_coeffs, chunk, section.num_moments(i), z, weights.lift,
            buffers.folded, memory.moments.of(s, v));
      ahead.fetch();
    }
    source.store_output(s, begin, rows, buffers.y);
  }
}

// y = kernel * z of every sequence of a task, from first chunk to last. The states that sections hand on are saved if
// `saved` has memory.
template <typename V, typename Source>
HYENAREC_INLINE void forward_task(
    const Scan<V>& scan,
    const Task& task,
    const SavedStates<LaneOf<V>>& saved,
    Source& source,
    Scratch& scratch) {
  const Group& group = task.group;
  const int64_t chunk = scan.chunk();
  const ForwardMemory<V> memory(scratch, task, scan);
  ChunkBuffers<V> buffers(chunk);
  for (int64_t index = 0; index * scan.tables.section < group.longest(); ++index) {
    const Section<V> section(scan, index);
    const int64_t passing = group.longer_than(section.end);
    if (index > 0) enter(section, group.longer_than(section.begin), memory.handed_on, memory.states);
    std::fill_n(memory.section_moments.data, memory.section_moments.size(passing), V{});
    for (int64_t i = 0; i < section.chunks() && section.begin + i * chunk < group.longest(); ++i) {
      forward_chunk(section, i, task, memory, buffers, source);
      const int64_t going_on = group.longer_than(section.begin + (i + 1) * chunk);
      if (going_on > 0 && i + 1 < section.chunks())
        advance_within(section, i, going_on, memory.moments, memory.states);
      if (passing > 0) gather_moments(section, i, passing, memory.moments, memory.section_moments);
    }
    if (passing == 0) continue;
    hand_on(section, passing, memory.section_moments, memory.handed_on);
    if (saved.data) save_states(saved, section, task, passing, memory.handed_on);
  }
}

}  // namespace hyenarec::scan
