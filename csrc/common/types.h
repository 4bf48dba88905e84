// Types shared by the CPU and CUDA cores. Codes match srkernels/ops/*.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define SRK_HD __host__ __device__ __forceinline__
#else
#define SRK_HD inline __attribute__((always_inline))
#endif

namespace srk {

enum class DType : int { f32, bf16, f16, f64 };

struct Shape {
  int64_t n, c, h, w;
};

// Strides in elements over (n, c, row, column).
struct Strides {
  int64_t n, c, h, w;
};

// A tensor as kernels see it. Null data: not wanted (outputs), zeros or absent (inputs).
struct Operand {
  DType dtype;
  void* data;
  Strides stride;
};

// Where a launch runs: the CPU core reads `threads`, the CUDA core `stream`.
struct Launch {
  int threads;
  void* stream;
};

}  // namespace srk
