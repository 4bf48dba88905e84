// Haar transform on CPU: one entry per instruction set.
#pragma once
#include "../../common/haar.h"

namespace srk {

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
