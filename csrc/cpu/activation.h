// Backward pass through an activation on CPU: one entry per instruction set.
#pragma once
#include "../common/activation.h"

namespace srk {

#define SRK_DECLARE_ACTIVATION(isa)                          \
  namespace isa {                                            \
  void activation_backward(const ActivationArguments& args); \
  void relu_in_place(const ReluArguments& args);             \
  }
SRK_DECLARE_ACTIVATION(baseline)
SRK_DECLARE_ACTIVATION(avx2)
SRK_DECLARE_ACTIVATION(avx512)
#undef SRK_DECLARE_ACTIVATION

}  // namespace srk
