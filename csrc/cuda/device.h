// What every kernel file uses: typed loads and stores, sums over a block, one checked launch.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../common/types.h"

#define SRK_ISA cuda  // the namespace of common/penalty.h

namespace srk::cuda {

constexpr int kThreads = 256;

// Dtypes

// Arithmetic is in fp32, in fp64 where an operand is.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

__device__ __forceinline__ float absolute(float x) { return std::fabs(x); }
__device__ __forceinline__ double absolute(double x) { return std::fabs(x); }
__device__ __forceinline__ float square_root(float x) { return std::sqrt(x); }
__device__ __forceinline__ double square_root(double x) { return std::sqrt(x); }

template <class T, class A>
__device__ __forceinline__ T narrow(A x) {
  if constexpr (sizeof(T) >= 4)
    return T(x);
  else if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(float(x));
  else
    return __float2bfloat16_rn(float(x));
}

// V consecutive elements

// Bytes of one access: 16 where V elements are whole words of 16, else one element.
template <class T, int V>
constexpr int kAccess = V * int(sizeof(T)) % 16 == 0 ? 16 : int(sizeof(T));

// `from` must be aligned to kAccess<T, V>.
template <int V, class T, class A>
__device__ __forceinline__ void load(const T* from, A (&to)[V]) {
  constexpr int per = kAccess<T, V> / int(sizeof(T));
  if constexpr (per == 1) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = A(widen(from[i]));
  } else {
#pragma unroll
    for (int i = 0; i < V; i += per) {
      const uint4 word = __ldg(reinterpret_cast<const uint4*>(from + i));
      T part[per];
      memcpy(static_cast<void*>(part), &word, 16);
#pragma unroll
      for (int j = 0; j < per; ++j) to[i + j] = A(widen(part[j]));
    }
  }
}

template <int V, class T, class A>
__device__ __forceinline__ void store(T* to, const A (&from)[V]) {
  constexpr int per = kAccess<T, V> / int(sizeof(T));
  if constexpr (per == 1) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = narrow<T>(from[i]);
  } else {
#pragma unroll
    for (int i = 0; i < V; i += per) {
      T part[per];
#pragma unroll
      for (int j = 0; j < per; ++j) part[j] = narrow<T>(from[i + j]);
      uint4 word;
      memcpy(&word, part, 16);
      // A plain assignment is a copy of a struct, which the optimiser may take apart into one store
      // per element; this is the instruction itself.
      __stwb(reinterpret_cast<uint4*>(to + i), word);
    }
  }
}

// The same where the type is known at run time only. The switch is uniform and paid once for V
// elements. fp64 occurs only where the computation is in fp64.
template <class A, class F>
__device__ __forceinline__ void with_element(DType dtype, F&& f) {
  if constexpr (sizeof(A) == 8) {
    if (dtype == DType::f64) return f(double());
  }
  if (dtype == DType::f32) return f(float());
  if (dtype == DType::bf16) return f(__nv_bfloat16());
  f(__half());
}

template <int V, class A>
__device__ __forceinline__ void load(const void* data, DType dtype, int64_t offset, A (&to)[V]) {
  with_element<A>(dtype,
                  [&](auto tag) { load<V>(static_cast<const decltype(tag)*>(data) + offset, to); });
}

template <int V, class A>
__device__ __forceinline__ void store(void* data, DType dtype, int64_t offset, const A (&from)[V]) {
  with_element<A>(dtype,
                  [&](auto tag) { store<V>(static_cast<decltype(tag)*>(data) + offset, from); });
}

// Indices

// quotient and remainder, in 32 bits where both fit: a 64-bit division is a subroutine.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b, int64_t& remainder) {
  if (((a | b) >> 32) == 0) {
    const uint32_t q = uint32_t(a) / uint32_t(b);
    remainder = uint32_t(a) - q * uint32_t(b);
    return q;
  }
  const int64_t q = a / b;
  remainder = a - q * b;
  return q;
}

__device__ __forceinline__ int64_t thread_index() {
  return int64_t(blockIdx.x) * kThreads + threadIdx.x;
}

// Sums in one fixed order, hence deterministic

// Sum over each aligned group of `width` lanes (a power of two up to 32), in the group's first
// lane.
__device__ __forceinline__ double group_sum(double x, int width) {
  for (int offset = width / 2; offset > 0; offset /= 2)
    x += __shfl_down_sync(0xffffffffu, x, offset, width);
  return x;
}

// Sum over the block, in thread 0. `scratch` may be reused after the next barrier.
__device__ __forceinline__ double block_sum(double x, double (&scratch)[kThreads / 32]) {
  x = group_sum(x, 32);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0)
    for (int i = 0; i < kThreads / 32; ++i) total += scratch[i];
  return total;
}

// True in all threads of the block that arrives last of `blocks`; what thread 0 of each block wrote
// before is then visible, to volatile reads. The ticket wraps to zero by itself.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, unsigned blocks) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(ticket, blocks - 1) == blocks - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// Launch

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// All grids are one-dimensional: y and z stop at 65,535.
template <class... P>
void launch(const char* name, void (*kernel)(P...), int64_t blocks, void* stream, P... args) {
  if (blocks > 0x7fffffff) throw std::runtime_error(std::string(name) + ": tensor too large");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, args...);
  const cudaError_t pending = cudaGetLastError();
  const cudaError_t status = launched != cudaSuccess ? launched : pending;
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(status));
}

// Calls f with a value of the element type of `dtype`.
template <class F>
void dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(float());
    case DType::bf16:
      return f(__nv_bfloat16());
    case DType::f16:
      return f(__half());
    case DType::f64:
      return f(double());
  }
  throw std::runtime_error("unknown dtype code " + std::to_string(int(dtype)));
}

// What a vector access needs, decided at launch

inline bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % uintptr_t(bytes) == 0;
}

}  // namespace srk::cuda
