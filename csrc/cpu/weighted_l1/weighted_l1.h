// Weighted L1 loss on CPU: one entry per instruction set. The weight and its gradient are in the
// compute type: fp64 if the images are, which then both are, fp32 otherwise.
#pragma once
#include "../../common/weighted_l1.h"

namespace srk {

#define SRK_DECLARE_WEIGHTED_L1(isa)                          \
  namespace isa {                                             \
  void weighted_l1_forward(const WeightedL1Arguments& args);  \
  void weighted_l1_backward(const WeightedL1Arguments& args); \
  }
SRK_DECLARE_WEIGHTED_L1(baseline)
SRK_DECLARE_WEIGHTED_L1(avx2)
SRK_DECLARE_WEIGHTED_L1(avx512)
#undef SRK_DECLARE_WEIGHTED_L1

}  // namespace srk
