// A tile of scores as the softmax of every device gets it; tiles.h makes it of tensors. No torch here.
#pragma once

#include <cstdint>
#include <type_traits>

namespace hyenarec {

// n rows and C classes; every pointer starts at the first row. T is the type of sums.
template <typename scalar_t, typename logit_t>
struct CrossEntropyRows {
  using T = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

  int64_t rows, classes;
  const logit_t* logits;      // [n, C]: products of hidden and weight
  const T* shift;             // [C]: what is added to them
  const int64_t* target;      // [n]: an item, or -1
  const int64_t* candidates;  // [C]: the classes' items; nullptr: the classes are all items
  const T* target_score;      // [n], beside candidates
  const T* row_weight;        // [n]: what the gradient of a row is multiplied by; nullptr: 1
  T smoothing;
  // To be written.
  T* losses;           // [n]
  scalar_t* gradient;  // [n, C], by the scores; maybe where the logits are; nullptr: not needed
  T* of_target;        // [n], by target_score; nullptr: not needed
};

}  // namespace hyenarec
