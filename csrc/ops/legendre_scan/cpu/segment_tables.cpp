#include "segment_tables.h"

#include <algorithm>
#include <utility>

#include "../table_builder.h"
#include "../table_cache.h"

namespace hyenarec {
namespace {

using detail::LegendreTableBuilder;
using detail::Scale;

template <typename scalar_t>
class SectionTablesBuilder {
 public:
  SectionTablesBuilder(const SectionTablesBuilder&) = delete;  // its parts refer to it
  SectionTablesBuilder(int64_t horizon, int64_t chunk, int64_t num_coeffs)
      : horizon_(horizon),
        chunk_(chunk),
        n_(num_coeffs),
        section_(section_length(horizon, chunk)),
        ones_(num_coeffs, 1.0),
        between_(horizon, section_, n_, ones_, [this](int64_t lags) { return window_scale(lags); }) {}

  SectionTables<scalar_t> build(int64_t length) const {
    SectionTables<scalar_t> tables{
        horizon_, chunk_, n_, section_, between_.first_values(chunk_), {}, {}, between_.tables(), {}};
    between_.fill_chunks(length, true, tables.between);
    const auto sections = static_cast<int64_t>(tables.between.chunks.size());
    fill_within(section_, tables.whole);
    if (sections > 0 && tables.is_cut(sections - 1)) fill_within(horizon_ % section_, tables.cut);
    if (section_ < horizon_) fill_gather(tables);
    return tables;
  }

 private:
  static int64_t significant(const Scale& scale) {
    return detail::significant(scale, LegendreTableBuilder<scalar_t>::kTolerance);
  }

  // The kernel's coefficients on its first lags from those on all.
  std::vector<double> first_lags(int64_t lags) const {
    return between_.restricted(detail::events(0, horizon_), detail::events(0, lags));
  }
  // Of the kernel in a window of so many lags: the first ones, whose coefficients are the largest (for windows of
  // more than half the horizon to 10%).
  Scale window_scale(int64_t lags) const { return detail::row_maxima(first_lags(lags), ones_); }

  void fill_within(int64_t size, WithinSection<scalar_t>& within) const {
    Scale kernel = window_scale(size);
    kernel.resize(significant(kernel));
    within.restriction = first_lags(size);
    within.restriction.resize(kernel.size() * n_);
    const LegendreTableBuilder<scalar_t> builder(
        size, chunk_, n_, std::move(kernel), [this](int64_t lags) { return window_scale(lags); });
    within.tables = builder.tables();
    builder.fill_basis(within.tables);
    builder.fill_chunks(size, size == horizon_, within.tables);
  }

  void fill_gather(SectionTables<scalar_t>& tables) const {
    const Scale scale = window_scale(section_);
    for (int64_t start = 0; start < section_; start += chunk_) {
      const auto matrix =
          between_.restricted(detail::events(0, section_), detail::events(start, start + chunk_));
      const int64_t moments = significant(detail::row_maxima(matrix, scale));
      auto kept = detail::upper_rows<scalar_t>(matrix, moments, n_);
      auto by_column = detail::transposed(kept, moments, n_);
      tables.gather.push_back({moments, std::move(kept), std::move(by_column)});
    }
  }

  const int64_t horizon_, chunk_, n_, section_;
  const Scale ones_;
  const LegendreTableBuilder<scalar_t> between_;
};

}  // namespace

template <typename scalar_t>
std::shared_ptr<const SectionTables<scalar_t>> section_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length) {
  static detail::LegendreTableCache<SectionTables<scalar_t>> cache;
  return cache.get(horizon, chunk, num_coeffs, length, [&](int64_t reach) {
    return SectionTablesBuilder<scalar_t>(horizon, chunk, num_coeffs).build(reach);
  });
}

template HYENAREC_API std::shared_ptr<const SectionTables<float>> section_tables(
    int64_t, int64_t, int64_t, int64_t);
template HYENAREC_API std::shared_ptr<const SectionTables<double>> section_tables(
    int64_t, int64_t, int64_t, int64_t);

}  // namespace hyenarec
