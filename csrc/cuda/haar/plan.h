// Which of the three kernels a call takes, and how it is cut: decided on the host, from shapes,
// strides and alignment alone.
//
//   rows     image and bands have their columns side by side, rows of whole words of 16 bytes;
//   pixels   they have their channels side by side, and runs of cells are whole words;
//   strided  everything else, odd sizes among it.
#pragma once
#include "../../common/haar.h"
#include "../device.h"

namespace srk::cuda {
namespace {

// Shared memory for what comes in, and for what goes out: six blocks share an SM of 228 KB.
constexpr int kStageBytes = 16384;

// A run of cells of one row is a run of memory in the image's two rows and in each band. High bands
// packed into one pixel (3 C values a cell) are one run, bands of their own images are three.
struct Runs {
  int64_t segments;  // runs of a row
  int cells;         // of a run; the last one of a row may be shorter
  int channels;
  bool packed;
  int band, channel;  // strides inside a packed pixel
  int high_count;     // runs of the high bands: 0, 1 or 3
};

// PyTorch leaves the stride of a dimension of one element arbitrary; it must not decide anything.
Strides tidy(const Strides& s, int64_t n, int64_t c, int64_t h, int64_t w) {
  return {n > 1 ? s.n : 0, c > 1 ? s.c : 0, h > 1 ? s.h : 0, w > 1 ? s.w : 1};
}

// Rows (or pixels, where C channels interleave) can be cut into 16-byte words.
bool vectors(const void* data, const Strides& s, int64_t vector) {
  return data == nullptr ||
         (aligned(data, 16) && s.n % vector == 0 && s.c % vector == 0 && s.h % vector == 0);
}

// What was decided. Neither rows nor pixels: strided.
struct Layout {
  Shape shape, cells;
  Strides x, low, high;  // high: without its band stride, which is `band`
  int64_t band;
  bool rows, pixels;
  Runs runs;
};

Layout layout_of(const HaarArguments& a, int64_t element_size) {
  Layout l{};
  l.shape = a.shape;
  l.cells = {a.shape.n, a.shape.c, (a.shape.h + 1) / 2, (a.shape.w + 1) / 2};
  const int64_t n = l.cells.n, c = l.cells.c, h = l.cells.h, w = l.cells.w;
  l.x = tidy(a.x_stride, n, c, a.shape.h, a.shape.w);
  l.low = tidy(a.low_stride, n, c, h, w);
  const BandStrides& b = a.high_stride;
  l.high = tidy({b.n, b.c, b.h, b.w}, n, c, h, w);
  l.band = b.band;

  const bool even = a.shape.h % 2 == 0 && a.shape.w % 2 == 0;
  const int64_t v = 16 / element_size;
  const bool bands = l.band % v == 0;
  l.rows = even && w % v == 0 && l.x.w == 1 && vectors(a.x, l.x, v) &&
           (!a.low || (l.low.w == 1 && vectors(a.low, l.low, v))) &&
           (!a.high || (l.high.w == 1 && bands && vectors(a.high, l.high, v)));

  // A run is a multiple of `step` cells, so that it starts and ends on a 16-byte boundary.
  const int64_t step = c % v == 0 ? 1 : v, room = kStageBytes / element_size / 4;
  const bool packed = a.high && !a.plan.sum && l.high.w == 3 * c;
  const bool packed_in_order =
      packed && ((l.high.c == 1 && l.band == c) || (l.high.c == 3 && l.band == 1));
  const bool separate = a.high && l.high.w == c && l.high.c == 1 && bands;
  const auto pixels = [&](const void* data, const Strides& s) {
    return s.c == 1 && s.w == c && vectors(data, {s.n, 0, s.h, 0}, v);
  };
  l.pixels = even && c > 1 && w > 1 && (w * c) % v == 0 && step * c <= room && pixels(a.x, l.x) &&
             (!a.low || pixels(a.low, l.low)) &&
             (!a.high ||
              ((packed_in_order || separate) && vectors(a.high, {l.high.n, 0, l.high.h, 0}, v)));
  if (l.pixels) {
    const int64_t most = room / (step * c) * step;
    const int64_t even_share = ceil_div(w, ceil_div(w, most));
    const int64_t cells = ceil_div(even_share, step) * step;
    l.runs = {ceil_div(w, cells),
              int(cells),
              int(c),
              packed,
              int(l.band),
              int(l.high.c),
              !a.high                ? 0
              : packed || a.plan.sum ? 1
                                     : 3};
  }
  return l;
}

}  // namespace
}  // namespace srk::cuda
