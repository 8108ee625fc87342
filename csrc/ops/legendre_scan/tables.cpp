#include "tables.h"

#include "table_builder.h"
#include "table_cache.h"

namespace hyenarec {

int64_t legendre_chunk_length(int64_t num_coeffs) {
  return num_coeffs <= kMaxShortChunkCoeffs ? kShortChunk : kLongChunk;
}

template <typename scalar_t>
std::shared_ptr<const LegendreTables<scalar_t>> legendre_tables(
    int64_t horizon, int64_t chunk, int64_t num_coeffs, int64_t length) {
  static detail::LegendreTableCache<LegendreTables<scalar_t>> cache;
  return cache.get(horizon, chunk, num_coeffs, length, [&](int64_t reach) {
    const detail::Scale ones(num_coeffs, 1.0);
    const detail::LegendreTableBuilder<scalar_t> builder(
        horizon, chunk, num_coeffs, ones, [&](int64_t) { return ones; });
    auto tables = builder.tables();
    builder.fill_basis(tables);
    builder.fill_chunks(reach, true, tables);
    builder.fill_tail(tables);
    return tables;
  });
}

template HYENAREC_API std::shared_ptr<const LegendreTables<float>> legendre_tables(
    int64_t, int64_t, int64_t, int64_t);
template HYENAREC_API std::shared_ptr<const LegendreTables<double>> legendre_tables(
    int64_t, int64_t, int64_t, int64_t);

}  // namespace hyenarec
