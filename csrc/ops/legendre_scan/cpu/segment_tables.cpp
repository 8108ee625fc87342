#include "segment_tables.h"

#include <utility>

#include "../table_builder.h"
#include "../table_cache.h"

namespace hyenarec {
namespace {

using detail::LegendreTableBuilder;
using detail::Scale;

template <typename scalar_t>
class SegmentTablesBuilder {
 public:
  SegmentTablesBuilder(const SegmentTablesBuilder&) = delete;  // its parts refer to it
  SegmentTablesBuilder(int64_t horizon, int64_t chunk, int64_t num_coeffs)
      : horizon_(horizon),
        chunk_(chunk),
        n_(num_coeffs),
        segment_(segment_length(horizon, chunk)),
        ones_(num_coeffs, 1.0),
        between_(horizon, segment_, n_, ones_, [this](int64_t lags) { return window_scale(lags); }) {}

  SegmentTables<scalar_t> build(int64_t length) const {
    SegmentTables<scalar_t> tables{
        horizon_, chunk_, n_, segment_, between_.first_values(chunk_), {}, {}, between_.tables(), {}};
    between_.fill_chunks(length, true, tables.between);
    const auto segments = static_cast<int64_t>(tables.between.chunks.size());
    fill_within(segment_, tables.whole);
    if (segments > 0 && tables.is_cut(segments - 1)) fill_within(horizon_ % segment_, tables.cut);
    if (segment_ < horizon_) fill_gather(tables);
    return tables;
  }

 private:
  // The kernel's coefficients on its first lags from those on all.
  std::vector<double> first_lags(int64_t lags) const {
    return between_.restricted(detail::events(0, horizon_), detail::events(0, lags));
  }
  // Of the kernel in a window of so many lags: the first ones, whose coefficients are the largest (for
  // windows of more than half the horizon to 10%).
  Scale window_scale(int64_t lags) const { return detail::row_maxima(first_lags(lags), ones_); }

  void fill_within(int64_t size, WithinSegment<scalar_t>& within) const {
    Scale kernel = window_scale(size);
    kernel.resize(LegendreTableBuilder<scalar_t>::count(kernel));
    within.restriction = first_lags(size);
    within.restriction.resize(kernel.size() * n_);
    const LegendreTableBuilder<scalar_t> builder(
        size, chunk_, n_, std::move(kernel), [this](int64_t lags) { return window_scale(lags); });
    within.tables = builder.tables();
    builder.fill_basis(within.tables);
    builder.fill_chunks(size, size == horizon_, within.tables);
  }

  void fill_gather(SegmentTables<scalar_t>& tables) const {
    const Scale scale = window_scale(segment_);
    for (int64_t start = 0; start < segment_; start += chunk_) {
      const auto matrix =
          between_.restricted(detail::events(0, segment_), detail::events(start, start + chunk_));
      const int64_t moments = LegendreTableBuilder<scalar_t>::count(detail::row_maxima(matrix, scale));
      auto kept = detail::upper_rows<scalar_t>(matrix, moments, n_);
      auto by_column = detail::transposed(kept, moments, n_);
      tables.gather.push_back({moments, std::move(kept), std::move(by_column)});
    }
  }

  const int64_t horizon_, chunk_, n_, segment_;
  const Scale ones_;
  const LegendreTableBuilder<scalar_t> between_;
};

}  // namespace

template <typename scalar_t>
std::shared_ptr<const SegmentTables<scalar_t>> segment_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length) {
  static detail::LegendreTableCache<SegmentTables<scalar_t>> cache;
  return cache.get(horizon, chunk, num_coeffs, length, [&](int64_t reach) {
    return SegmentTablesBuilder<scalar_t>(horizon, chunk, num_coeffs).build(reach);
  });
}

template HYENAREC_API std::shared_ptr<const SegmentTables<float>> segment_tables(
    int64_t, int64_t, int64_t, int64_t);
template HYENAREC_API std::shared_ptr<const SegmentTables<double>> segment_tables(
    int64_t, int64_t, int64_t, int64_t);

}  // namespace hyenarec
