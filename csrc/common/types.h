// Types shared by the CPU and CUDA cores. Codes match srkernels/_native.py and srkernels/ops/*.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define SRK_HD __host__ __device__ __forceinline__
#else
#define SRK_HD inline __attribute__((always_inline))
#endif

namespace srk {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

// Strides in elements over (n, c, row, column).
struct Strides {
  int64_t n, c, h, w;
};

}  // namespace srk
