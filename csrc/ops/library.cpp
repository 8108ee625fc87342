// The namespace `hyenarec` of torch's dispatcher and every operator in it.
#include <torch/library.h>

TORCH_LIBRARY(hyenarec, m) {
  m.def(
      "dropout_add_layer_norm(Tensor branch, Tensor? residual, Tensor weight, Tensor bias, float p=0., float "
      "eps=1e-05, Tensor? seed=None) -> (Tensor, Tensor)");
  m.def(
      "dropout_add_layer_norm_with_statistics(Tensor branch, Tensor? residual, Tensor weight, Tensor bias, "
      "float p, float eps, Tensor? seed) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "dropout_add_layer_norm_backward(Tensor? grad_normed, Tensor? grad_sum, Tensor sum, Tensor mean, "
      "Tensor rstd, Tensor weight, float p, Tensor? seed, ScalarType branch_dtype, bool[4] needs_grad) -> "
      "(Tensor, Tensor, Tensor, Tensor)");

  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? "
      "candidates=None, Tensor? log_q=None, float label_smoothing=0., str reduction=\"mean\") -> Tensor");
  m.def(
      "linear_cross_entropy_with_gradients(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, "
      "Tensor? candidates, Tensor? log_q, float label_smoothing, bool[3] needs_grad) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, "
      "Tensor? candidates, Tensor? log_q, float label_smoothing, bool[3] needs_grad) -> (Tensor, Tensor, "
      "Tensor)");
}
