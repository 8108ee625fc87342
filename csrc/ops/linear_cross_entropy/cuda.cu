// linear_cross_entropy on CUDA: matrix products by cuBLAS, in float for 16-bit arguments, and between them
// one launch over a tile of scores. No atomics, deterministic, and no value is looked at by the host.
#include <ATen/Dispatch.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/mm.h>
#include <c10/cuda/CUDAGuard.h>

#include <limits>

#include "../common/cuda/launch.cuh"
#include "arguments.h"
#include "cuda.cuh"
#include "tiles.h"

namespace hyenarec {
namespace {

constexpr int64_t kTileScores = 1 << 26;  // 256 MiB of float

// What CrossEntropyWalk asks of a backend.
class CudaTiles {
 public:
  explicit CudaTiles(const CrossEntropyArguments& arguments) : guard_(arguments.hidden.device()) {}

  static int64_t rows_of_tile(int64_t classes) {
    return detail::rows_of_tile(kTileScores, classes, std::numeric_limits<int32_t>::max());
  }
  static at::ScalarType logits_type(at::ScalarType type) { return detail::parameter_type(type); }

  static void multiply(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
    if (out.scalar_type() == a.scalar_type()) {
      at::mm_out(out, a, b);
    } else {
      at::mm_out(out, a, b, out.scalar_type());
    }
  }

  void softmax(detail::CrossEntropyTile& tile) const {
    const auto type = tile.gradient.scalar_type();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "linear_cross_entropy", [&] {
      const auto rows = tile.rows<scalar_t, accumulate_t<scalar_t>>();
      launch(cross_entropy_shape<scalar_t>(rows.rows, rows.classes), cross_entropy_rows<scalar_t>, rows);
    });
    if (tile.of_shift.defined()) tile.of_shift.add_(tile.gradient.sum(0, false, tile.of_shift.scalar_type()));
  }

  // index_put_ sorts the index, so that the order of its sums is fixed. Factors of rows without an item are
  // 0.
  static void add_rows(
      at::Tensor& out, const at::Tensor& index, const at::Tensor& rows, const OptionalTensor& factor) {
    auto terms = rows.to(out.scalar_type());
    if (factor) terms = terms.mul(factor->unsqueeze(1));
    out.index_put_({index.clamp_min(0)}, terms, /*accumulate=*/true);
  }

 private:
  const c10::cuda::CUDAGuard guard_;
};

}  // namespace

TORCH_LIBRARY_IMPL(hyenarec, CUDA, m) {
  using namespace detail;
  m.impl("linear_cross_entropy_with_gradients", checked<cross_entropy_with_gradients<CudaTiles>>);
  m.impl("linear_cross_entropy_backward", checked<cross_entropy_backward<CudaTiles>>);
}

}  // namespace hyenarec
