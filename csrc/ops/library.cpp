// The namespace `hyenarec` of torch's dispatcher and every operator in it.
#include <torch/library.h>

TORCH_LIBRARY(hyenarec, m) {
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
