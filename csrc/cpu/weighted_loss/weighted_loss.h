// Weighted losses on CPU: one entry per instruction set. The weight and its gradient are in the
// compute type: fp64 if the images are, which then both are, fp32 otherwise.
#pragma once
#include "../../common/weighted_loss.h"

namespace srk {

#define SRK_DECLARE_WEIGHTED_LOSS(isa)                            \
  namespace isa {                                                 \
  void weighted_loss_forward(const WeightedLossArguments& args);  \
  void weighted_loss_backward(const WeightedLossArguments& args); \
  }
SRK_DECLARE_WEIGHTED_LOSS(baseline)
SRK_DECLARE_WEIGHTED_LOSS(avx2)
SRK_DECLARE_WEIGHTED_LOSS(avx512)
#undef SRK_DECLARE_WEIGHTED_LOSS

}  // namespace srk
