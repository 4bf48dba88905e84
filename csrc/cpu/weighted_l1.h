// Weighted L1 loss on CPU: arguments, and one entry per instruction set.
#pragma once
#include "../common/weighted_l1.h"

namespace srk {

struct Operand {
  DType dtype;
  void* data;  // null: left out
  Strides stride;
};

struct WeightedL1Arguments {
  int64_t n, c, h, w;
  Operand input, target;
  Operand weight;  // fp32, or fp64 where the computation is
  int64_t weight_n, weight_c, weight_h, weight_w;
  Reduction reduction;
  bool by_weight;  // forward: statistics are wanted; backward: they normalise
  bool align_corners;
  bool fp64;     // compute in fp64; input, target and weight are then fp64
  Operand out;   // forward: 0-dim, or of the image's shape for Reduction::none
  Operand grad;  // backward: the cotangent of out
  // sign(x - t), two bits an element: for each 16 in order of memory a word with the positive ones
  // in its lower half and the negative ones in its upper. Forward writes it if given; backward then
  // reads it instead of both images.
  uint32_t* signs;
  void* statistics;                 // two compute-type values: loss, sum of the resized weight
  Operand grad_input, grad_target;  // of their tensors' dtypes
  Operand grad_weight;              // of the weight's shape, in the compute type
  int threads;
};

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
