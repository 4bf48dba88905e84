// Haar transform on CUDA. Of one channel, of even sizes, analysis computes
//
//   for (i = 0; i < h / 2; ++i)
//     for (j = 0; j < w / 2; ++j) {
//       a = x[2 * i][2 * j], b = x[2 * i][2 * j + 1];
//       c = x[2 * i + 1][2 * j], d = x[2 * i + 1][2 * j + 1];
//       low[i][j] = k.low * (a + b + c + d);
//       high_v[i][j] = k.v * (a + b - c - d) + k.shift;
//       high_h[i][j] = k.h * (a - b + c - d) + k.shift;
//       high_d[i][j] = k.d * (a - b - c + d) + k.shift;
//     }
//
// in the convention's order of bands. The 4x4 matrix of these sums, the butterfly, is symmetric, so
// synthesis, the adjoint, applies it again:
//
//   (a, b, c, d) = butterfly(k.low * low, k.v * (high_v - k.shift), k.h * (high_h - k.shift), ...)
//
// An odd size appends one sample that repeats an earlier one (or is zero); the adjoint adds what
// synthesis gives for the appended sample to the sample it repeats.
//
// No cell needs another, so the two loops become threads. Time is bytes moved, and all that matters
// is the shape of the accesses:
//
// 1. The host looks at the layout and picks one of three kernels (plan.h).
// 2. rows.h reads and writes in words of 16 bytes; pixels.h too, through shared memory;
//    strided.h takes anything, value by value.
// 3. What each does to a cell is in cells.h.
//
// No streaming hints: at training sizes the next kernel finds the bands in L2.
#include "../ops.h"
#include "cells.h"
#include "pixels.h"
#include "plan.h"
#include "rows.h"
#include "strided.h"

namespace srk::cuda {
namespace {

// One launch of whichever kernel fits. `first`, `second` and `third` are its operands in order.
template <class A, class X, class Y, class Z, class Rows, class Pixels, class Strided>
void run(const char* name, const HaarArguments& a, const Layout& l, int vector, X first, Y second,
         Z third, Rows rows, Pixels pixels, Strided strided) {
  const Factors<A> k(a.plan);
  const auto& [n, c, h, w] = l.cells;
  if (l.rows) {
    const Shape groups{n, c, h, w / vector};
    launch(name, rows, ceil_div(n * c * h * groups.w, kThreads), a.launch.stream, first, second,
           third, groups, k);
  } else if (l.pixels) {
    launch(name, pixels, n * h * l.runs.segments, a.launch.stream, first, second, third, l.cells,
           l.runs, k);
  } else {
    launch(name, strided, ceil_div(n * c * h * w, kThreads), a.launch.stream, first, second, third,
           l.shape, l.cells, a.pad, l.x.c < l.x.w, k);
  }
}

}  // namespace

void haar_analysis(const HaarArguments& a) {
  if (a.shape.n * a.shape.c * a.shape.h * a.shape.w == 0 || (!a.low && !a.high)) return;
  dispatch(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    const Layout l = layout_of(a, sizeof(T));
    run<typename Compute<T>::type>(
        "haar_analysis", a, l, kVector<T>, Image<const T>{static_cast<const T*>(a.x), l.x},
        Image<T>{static_cast<T*>(a.low), l.low},
        High<T>{static_cast<T*>(a.high), {l.high.n, l.band, l.high.c, l.high.h, l.high.w}},
        haar_analysis_rows<T>, haar_analysis_pixels<T>, haar_analysis_strided<T>);
  });
}

void haar_synthesis(const HaarArguments& a) {
  if (a.shape.n * a.shape.c * a.shape.h * a.shape.w == 0) return;
  dispatch(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    const Layout l = layout_of(a, sizeof(T));
    run<typename Compute<T>::type>("haar_synthesis", a, l, kVector<T>,
                                   Image<const T>{static_cast<const T*>(a.low), l.low},
                                   High<const T>{static_cast<const T*>(a.high),
                                                 {l.high.n, l.band, l.high.c, l.high.h, l.high.w}},
                                   Image<T>{static_cast<T*>(a.x), l.x}, haar_synthesis_rows<T>,
                                   haar_synthesis_pixels<T>, haar_synthesis_strided<T>);
  });
}

}  // namespace srk::cuda
