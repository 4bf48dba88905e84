// Gradients of 3x3 convolutions' filters on Intel AMX, bf16 channels_last.
#pragma once
#include "convolution.h"

namespace srk {

// out: (co, ci, 3, 3) bf16, dense: `scale` times the gradient.
struct FilterGradient {
  uint16_t* out;
  int64_t co, ci;
  float scale;
};

// x: (n, h, w, ci), grad: (n, h, w, co). The output channels of all filters lie one after another
// in grad; each filter has read the first of x's channels. All channels are multiples of 32.
struct WeightGradientArguments {
  int64_t n, h, w, ci, co;
  Pixels x, grad;
  const FilterGradient* filters;
  int64_t count;
  int threads;
};

namespace amx {
void weight_gradient(const WeightGradientArguments& args);
}  // namespace amx

}  // namespace srk
