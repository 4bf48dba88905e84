// The part of CUDA that csrc/cuda uses, on one host thread: this directory, first on the include
// path, takes the place of the toolkit's headers, so that the same kernel sources run without a
// GPU.
//
// A block is a set of fibers that run one after the other and switch only at barriers and shuffles;
// blocks run one after the other too, so a __shared__ variable is a static one. What this shows:
// indices, masks, reductions, the last-block ticket, alignment of vector accesses, a barrier that
// not all threads reach. What it cannot: memory ordering, and what the compiler makes of it.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline dim3 threadIdx, blockIdx, gridDim;

namespace emulation {

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "cuda emulation: %s\n", what);
  std::abort();
}

// Threads wait here for each other, `size` at a time.
struct Barrier {
  int size = 0, arrived = 0;
  unsigned generation = 0;
};

struct Fiber {
  ucontext_t context;  // where the fiber starts
  jmp_buf here;        // where it goes on: unlike swapcontext, a jump is no system call
  bool started = false, done = false;
};

struct Block {
  static constexpr size_t kStack = 128 * 1024;
  static constexpr int kWarp = 32;
  std::vector<Fiber> fibers;
  std::vector<char> stacks;
  std::vector<Barrier> warps;
  std::vector<double> exchange[2];  // a lane's value in a shuffle; every other one uses the same
  Barrier all;
  jmp_buf scheduler;
  bool progress = false;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;

  void wait(Barrier& barrier) {
    const unsigned generation = barrier.generation, thread = threadIdx.x;
    progress = true;
    if (++barrier.arrived == barrier.size) {
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    while (barrier.generation == generation)
      if (_setjmp(fibers[thread].here) == 0) _longjmp(scheduler, 1);
    progress = true;
  }

  static void enter();

  __attribute__((noinline)) void resume(Fiber& fiber) {
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }

  void run(int threads) {
    if (fibers.empty()) {
      fibers.resize(size_t(threads));
      stacks.resize(kStack * size_t(threads));
      for (auto& values : exchange) values.resize(size_t(threads));
      for (Fiber& fiber : fibers) getcontext(&fiber.context);
    }
    if (int(fibers.size()) != threads) die("blocks of several sizes");
    all = {threads, 0, 0};
    warps.assign(size_t(threads / kWarp), {kWarp, 0, 0});
    for (int i = 0; i < threads; ++i) {
      Fiber& fiber = fibers[size_t(i)];
      fiber.started = fiber.done = false;
      fiber.context.uc_stack.ss_sp = stacks.data() + kStack * size_t(i);
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, enter, 0);
    }
    for (int left = threads; left > 0;) {
      progress = false;
      for (int i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[size_t(i)];
        if (fiber.done) continue;
        threadIdx = dim3(unsigned(i));
        resume(fiber);
        if (fiber.done) --left, progress = true;
      }
      if (!progress) die("a barrier that not all threads reach");
    }
  }
};

inline Block block;

inline void Block::enter() {
  block.body(block.argument);
  block.fibers[threadIdx.x].done = true;
  _longjmp(block.scheduler, 1);
}

template <class F>
void for_each_block(dim3 grid, dim3 threads, F body) {
  block.body = [](void* f) { (*static_cast<F*>(f))(); };
  block.argument = &body;
  gridDim = grid;
  for (unsigned i = 0; i < grid.x; ++i) {
    blockIdx = dim3(i);
    block.run(int(threads.x));
  }
}

template <class T>
void check_alignment(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0) die("misaligned vector access");
}

}  // namespace emulation

inline void __syncthreads() { emulation::block.wait(emulation::block.all); }
inline void __threadfence() {}

template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width) {
  using emulation::block;
  if (mask != 0xffffffffu) emulation::die("shuffle by part of a warp");
  const unsigned thread = threadIdx.x;
  emulation::Barrier& warp = block.warps[thread / 32];
  std::vector<double>& exchange = block.exchange[warp.generation % 2];
  exchange[thread] = double(value);
  block.wait(warp);
  const bool inside = int(thread % unsigned(width)) + delta < width;
  return T(exchange[inside ? thread + unsigned(delta) : thread]);
}

inline unsigned atomicInc(unsigned* address, unsigned most) {
  const unsigned old = *address;
  *address = old >= most ? 0 : old + 1;
  return old;
}

template <class T>
void __stwb(T* to, T value) {
  emulation::check_alignment(to);
  *to = value;
}
template <class T>
T __ldg(const T* from) {
  emulation::check_alignment(from);
  return *from;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... args) {
  emulation::for_each_block(config->gridDim, config->blockDim, [&] { kernel(args...); });
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
