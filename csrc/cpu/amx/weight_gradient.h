// Gradient of a 3x3 convolution's filters on Intel AMX, bf16 channels_last.
#pragma once
#include "../../common/types.h"

namespace srk {

// x: (n, h, w, ci), grad: (n, h, w, co), both dense but for their pixels' strides, so that channels
// may be a slice of wider pixels. ci and co are multiples of 32. out: (co, ci, 3, 3) bf16, dense.
struct WeightGradientArguments {
  int64_t n, h, w, ci, co;
  const uint16_t *x, *grad;
  int64_t x_pixel,
      grad_pixel;  // elements between neighbouring pixels; rows and images are dense in them
  uint16_t* out;
  float scale;
  int threads;
};

namespace amx {
// Asks the kernel for the tile registers; false where processor or kernel have none.
bool available();
void weight_gradient(const WeightGradientArguments& args);
}  // namespace amx

}  // namespace srk
