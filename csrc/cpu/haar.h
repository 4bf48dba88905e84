// Haar transform on CPU: arguments, and one entry per instruction set.
#pragma once
#include "../common/haar.h"

namespace srk {

// Analysis reads x and writes low and high; synthesis the reverse. A null band is not wanted, or
// zero.
struct HaarArguments {
  DType dtype;
  int64_t n, c, h, w;  // of the image
  void* x;
  Strides x_stride;
  void* low;
  Strides low_stride;
  void* high;
  BandStrides high_stride;
  HaarPlan plan;
  Pad pad;
  int threads;
};

#define SRK_DECLARE_HAAR(isa)                     \
  namespace isa {                                 \
  void haar_analysis(const HaarArguments& args);  \
  void haar_synthesis(const HaarArguments& args); \
  }
SRK_DECLARE_HAAR(baseline)
SRK_DECLARE_HAAR(avx2)
SRK_DECLARE_HAAR(avx512)
#undef SRK_DECLARE_HAAR

}  // namespace srk
