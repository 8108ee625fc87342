// Which gradients a backward pass of the scan is asked for, on any device. No torch here.
#pragma once

namespace hyenarec {

struct GradientMask {
  bool input;       // of what is convolved
  bool output;      // of the convolution's output, for the gate behind it
  bool parameters;  // of coeffs, decay, skip

  bool any() const { return input || output || parameters; }
  // Whether the states that the forward pass computed are needed; else the transposed scan alone will do.
  bool needs_states() const { return output || parameters; }
};

}  // namespace hyenarec
