// linear_cross_entropy on the CPU: matrix products by the BLAS that torch brings, and between them the
// softmax of a tile of scores, its rows shared among torch's threads.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>

#include <string>

#include "../common/cpu/tensors.h"
#include "arguments.h"
#include "cpu.h"
#include "tiles.h"

namespace hyenarec {
namespace {

using cpu::linear_cross_entropy::Hits, cpu::linear_cross_entropy::kBlockRows;

constexpr int64_t kTileScores = 1 << 20;  // 4 MB of float: they stay in the last-level cache
constexpr int64_t kMaxTileRows = 1024;

// Of a vector or a matrix. Values are looked at on the CPU only.
void check_items(const char* name, const at::Tensor& items, int64_t lowest, int64_t count) {
  const auto contiguous = items.contiguous();
  const auto* values = contiguous.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < items.numel(); ++i) {
    if (values[i] >= lowest && values[i] < count) continue;
    const std::string row = items.dim() == 1 ? "" : std::to_string(i / items.size(1)) + ", ";
    const int64_t place = items.dim() == 1 ? i : i % items.size(1);
    TORCH_CHECK(
        false, "linear_cross_entropy: ", name, " must be in [0, V) with V = ", count,
        lowest < 0 ? ", or -1 for none" : "", ", got ", values[i], " at ", row, place);
  }
}

void check_values(const CrossEntropyArguments& arguments) {
  detail::check_cpu_activation_type({"linear_cross_entropy", "hidden", arguments.hidden});
  check_items("target", arguments.target, -1, arguments.weight.size(0));
  if (arguments.adjusted) check_items("adjusted", *arguments.adjusted, -1, arguments.weight.size(0));
  if (arguments.candidates) check_items("candidates", *arguments.candidates, 0, arguments.weight.size(0));
}

Hits hits_of(const OptionalTensor& candidates) {
  if (!candidates) return {nullptr, 0};
  const auto items = candidates->contiguous();
  return {items.const_data_ptr<int64_t>(), items.size(0)};
}

// What CrossEntropyWalk asks of a backend.
class CpuTiles {
 public:
  explicit CpuTiles(const CrossEntropyArguments& arguments) : hits_(hits_of(arguments.candidates)) {
    check_values(arguments);
  }

  static int64_t rows_of_tile(int64_t classes) {
    return detail::rows_of_tile(kTileScores, classes, kMaxTileRows);
  }
  static at::ScalarType logits_type(at::ScalarType type) { return type; }

  static void multiply(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) { at::mm_out(out, a, b); }

  void softmax(detail::CrossEntropyTile& tile) const {
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, tile.logits.scalar_type(), "linear_cross_entropy", [&] {
      softmax_of<scalar_t>(tile);
    });
  }

  static void add_rows(
      at::Tensor& out, const at::Tensor& index, const at::Tensor& rows, const OptionalTensor& factor) {
    const auto items = index.contiguous(), from = rows.contiguous();
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, from.scalar_type(), "linear_cross_entropy", [&] {
      using sum_t = at::opmath_type<scalar_t>;
      const auto* factors = factor ? factor->const_data_ptr<sum_t>() : nullptr;
      // Each thread looks at all rows and adds up its own part of the items.
      const int64_t part = at::divup(out.size(0), at::get_num_threads());
      at::parallel_for(0, out.size(0), part, [&](int64_t first, int64_t last) {
        cpu::linear_cross_entropy::add_rows(
            items.const_data_ptr<int64_t>(), data_or_null<const memory_t<scalar_t>>(from), factors,
            items.size(0), out.size(1), first, last, out.mutable_data_ptr<sum_t>());
      });
    });
  }

 private:
  template <typename scalar_t>
  void softmax_of(detail::CrossEntropyTile& tile) const {
    using sum_t = at::opmath_type<scalar_t>;
    const auto rows = tile.rows<memory_t<scalar_t>, memory_t<scalar_t>>();
    const int64_t blocks = at::divup(rows.rows, kBlockRows);
    const bool needs_shift = tile.of_shift.defined();
    const at::Tensor block_sums = at::empty({needs_shift ? blocks : 0, rows.classes}, tile.losses.options());
    auto* of_shift = data_or_null<sum_t>(block_sums);
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      tile.smoothing > 0 ? cpu::linear_cross_entropy::softmax<true>(rows, hits_, of_shift, first, last)
                         : cpu::linear_cross_entropy::softmax<false>(rows, hits_, of_shift, first, last);
    });
    if (!needs_shift) return;
    auto* sums = tile.of_shift.mutable_data_ptr<sum_t>();
    at::parallel_for(0, rows.classes, cpu::linear_cross_entropy::kSummed, [&](int64_t first, int64_t last) {
      cpu::linear_cross_entropy::add_block_sums(of_shift, blocks, rows.classes, first, last, sums);
    });
  }

  const Hits hits_;
};

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CPU, m) {
  using namespace detail;
  m.impl("linear_cross_entropy_with_gradients", checked<cross_entropy_with_gradients<CpuTiles>>);
  m.impl("linear_cross_entropy_backward", checked<cross_entropy_backward<CpuTiles>>);
}

}  // namespace hyenarec
