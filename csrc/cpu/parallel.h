// A parallel region over contiguous ranges. The caller passes torch's thread count; nothing global
// is changed.
#pragma once
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace srk {

// fn(begin, end) over [0, total) on up to `threads` threads, each with at least `grain` items.
template <class Fn>
inline __attribute__((always_inline)) void parallel_ranges(int64_t total, int64_t grain,
                                                           int threads, const Fn& fn) {
  const int64_t useful = total / (grain > 0 ? grain : 1);
  if (useful < threads) threads = int(useful);
  if (threads <= 1) {
    if (total > 0) fn(int64_t(0), total);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  {
    const int64_t workers = omp_get_num_threads(), worker = omp_get_thread_num();
    const int64_t begin = total * worker / workers, end = total * (worker + 1) / workers;
    if (begin < end) fn(begin, end);
  }
#else
  fn(int64_t(0), total);
#endif
}

}  // namespace srk
