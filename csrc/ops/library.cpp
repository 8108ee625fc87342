// The namespace `hyenarec` of torch's dispatcher. Each operator's schema stands in its own folder.
#include <torch/library.h>

TORCH_LIBRARY(hyenarec, m) { static_cast<void>(m); }
