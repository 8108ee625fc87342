// legendre_step's kernel beside legendre_conv's oracle, whole histories through streams: all events in one
// launch or a few each, and streams at different positions.
#include "device_test.h"

#include "ops/legendre_scan/cuda/host_tables.h"
#include "ops/legendre_scan/tables.h"
#include "ops/legendre_step/cuda.cuh"

namespace {

using namespace device_test;
using namespace hyenarec;
using cuda_on_cpu::BFloat16;
using cuda_on_cpu::Half;

// What legendre_step_weights gives, in double.
std::vector<double> make_weights(const oracle::Case& expected, const LegendreStepWork& work) {
  const auto& coeffs = expected["coeffs"].values;
  const auto& decay = expected["decay"].values;
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  std::vector<double> weights;
  for (int64_t n = 0; n < work.num_coeffs; ++n) {
    for (int64_t d = 0; d < work.channels; ++d) weights.push_back(coeffs[at(d * work.num_coeffs + n)]);
  }
  for (int64_t lag = 0; lag < work.chunk; ++lag) {
    for (int64_t d = 0; d < work.channels; ++d) {
      double sum = 0, current = 1, previous = 0;
      for (int64_t n = 0; n < work.num_coeffs && lag < work.horizon; ++n) {
        sum += coeffs[at(d * work.num_coeffs + n)] * current;
        const double next = legendre_next(n, legendre_position(lag, work.horizon), current, previous);
        previous = current;
        current = next;
      }
      sum *= std::exp(-decay[at(d)] * static_cast<double>(lag));
      weights.push_back(lag == 0 && expected.has("skip") ? sum + expected["skip"].values[at(d)] : sum);
    }
  }
  for (int64_t j = 0; j <= work.chunk; ++j) {
    for (double rate : decay) weights.push_back(std::exp(-rate * static_cast<double>(j)));
  }
  for (double rate : decay) weights.push_back(std::expm1(-rate * static_cast<double>(work.chunk)));
  return weights;
}

// The streams of a case; states are NaN until their position 0.
template <typename scalar_t>
class Streams {
 public:
  using T = accumulate_t<scalar_t>;

  explicit Streams(const oracle::Case& expected)
      : work_{expected["u"].sizes[0],      expected["u"].sizes[1],
              expected["u"].sizes[2],      expected.integer("horizon"),
              expected["coeffs"].sizes[1], legendre_chunk_length(expected["coeffs"].sizes[1])},
        u_(expected["u"].values),
        pre_(values(expected, "pre_gate")),
        post_(values(expected, "post_gate")),
        weights_(make_weights(expected, work_)),
        flat_(make_tables(work_)),
        positions_(work_.streams),
        states_(work_.streams * (work_.num_coeffs + work_.chunk) * work_.channels) {}

  // `events_at_once` events a launch, each stream on from its position.
  std::vector<double> run(int64_t events_at_once, BlockOrder order) {
    Buffer<scalar_t> out(work_.streams * work_.length * work_.channels);
    for (int64_t first = 0; first < work_.length; first += events_at_once) {
      auto work = work_;
      work.length = std::min(events_at_once, work_.length - first);
      for (int64_t b = 0; b < work.streams; ++b) positions_[b] = first;
      Buffer<scalar_t> part(work.streams * work.length * work.channels);
      step(work, first, part, order);
      for (int64_t b = 0; b < work.streams; ++b) {
        std::copy_n(
            part.data() + b * work.length * work.channels, work.length * work.channels,
            out.data() + (b * work_.length + first) * work.channels);
      }
    }
    return out.values();
  }

  const LegendreStepWork& work() const { return work_; }
  Buffer<int64_t>& positions() { return positions_; }
  const Buffer<T>& states() const { return states_; }

  // The events [first, first + work.length) of every stream.
  void step(const LegendreStepWork& work, int64_t first, Buffer<scalar_t>& out, BlockOrder order) {
    const auto tables = flat_.placed([](const auto& array) { return array.data(); });
    launch(
        legendre_step_shape<T>(work), order, legendre_step_forward<scalar_t>, work, tables, weights_.data(),
        positions_.data(), events(u_, first), events(pre_, first), events(post_, first), states_.data(),
        out.data());
  }

 private:
  // As the operator asks for them.
  static HostScanTables<T> make_tables(const LegendreStepWork& work) {
    if (work.num_coeffs == 0) return {};
    return make_scan_tables<T>(work.horizon, work.chunk, work.num_coeffs, work.horizon, 0);
  }
  static std::vector<double> values(const oracle::Case& expected, const char* name) {
    return expected.has(name) ? expected[name].values : std::vector<double>();
  }
  Activation<const scalar_t> events(const Buffer<scalar_t>& buffer, int64_t first) const {
    if (buffer.size() == 0) return {nullptr, 0, 0};
    return {buffer.data() + first * work_.channels, work_.length * work_.channels, work_.channels};
  }

  LegendreStepWork work_;
  Buffer<scalar_t> u_, pre_, post_;
  Buffer<T> weights_;
  HostScanTables<T> flat_;
  Buffer<int64_t> positions_;
  Buffer<T> states_;
};

template <typename scalar_t>
void check(const oracle::Case& expected) {
  const auto all_at_once = Streams<scalar_t>(expected).run(1 << 20, BlockOrder::ascending);
  EXPECT_LT(relative_error(all_at_once, expected["out"].values), kTolerance<scalar_t>);
  // A launch an event would be many launches; a few events each, then, in the other order of blocks.
  if (is_large(expected)) return;
  EXPECT_EQ(all_at_once, Streams<scalar_t>(expected).run(30, BlockOrder::descending));
}

// Padded cases with something in them.
std::vector<oracle::Case> cases() {
  std::vector<oracle::Case> found;
  for (auto& expected : oracle::cases_of(HYENAREC_ORACLE_TABLES, "legendre_conv")) {
    if (!expected.has("offsets") && !expected["out"].values.empty()) found.push_back(expected);
  }
  return found;
}

class LegendreStepDevice : public testing::TestWithParam<oracle::Case> {};

TEST_P(LegendreStepDevice, EqualsTheOracle) {
  SCOPED_TRACE(GetParam().name());
  check<float>(GetParam());
  if (is_large(GetParam())) return;
  check<double>(GetParam());
  check<BFloat16>(GetParam());
  check<Half>(GetParam());
}

// NaN for an event beyond the horizon or before the start; its stream's state stays, the others go on.
TEST_P(LegendreStepDevice, LeavesAloneWhatIsOutside) {
  Streams<float> streams(GetParam());
  auto work = streams.work();
  work.length = 1;
  const int64_t state_size = streams.states().size() / work.streams;
  for (int64_t outside : {work.horizon, int64_t{-1}}) {
    for (int64_t b = 0; b < work.streams; ++b) streams.positions()[b] = b == 0 ? outside : 0;
    Buffer<float> out(work.streams * work.channels);
    streams.step(work, 0, out, BlockOrder::ascending);
    for (int64_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out[i]), i < work.channels);
    for (int64_t i = 0; i < state_size; ++i) EXPECT_TRUE(std::isnan(streams.states()[i]));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, LegendreStepDevice, testing::ValuesIn(cases()), [](const auto& info) {
  return case_name(info.param);
});

}  // namespace
