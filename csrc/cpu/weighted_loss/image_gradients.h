// Weighted losses on CPU, backward to the images. With g, the loss's cotangent over its divisor,
// it computes
//
//   for (n, c, y, x) {
//     w = g * resized(map)[n][c][y][x];          // g without a map
//     grad_input[n][c][y][x] = w * rho'(input[n][c][y][x] - target[n][c][y][x]);
//     grad_target[n][c][y][x] = -grad_input[n][c][y][x];
//   }
//
// and without a reduction multiplies by the cotangent of each element.
//
// 1. Cut the images into tiles, as forward does (tiles.h).
// 2. Resize the map for a tile, times g, once for all its channels (resize.h).
// 3. Multiply by the penalty's slope, run by run: from both images (runs.h) or, of L1 without
// reading
//    them, from the words that forward kept (signs.h).
#pragma once
#include "../parallel.h"
#include "../streaming.h"
#include "resize.h"
#include "runs.h"
#include "signs.h"
#include "tiles.h"

namespace srk::SRK_ISA {
namespace {

// From both images.
template <class F>
void gradient_of_operands(const WeightedLossArguments& a, F scale) {
  const Tiling t = tiling(a);
  const Runs<F> by_input = runs(a.kind, a.input.dtype, a.target.dtype, F(0));
  const Runs<F> by_target = runs(a.kind, a.target.dtype, a.input.dtype, F(0));
  const F parameter = F(a.parameter);
  const bool none = a.reduction == Reduction::none;
  parallel_ranges(t.tiles, grain(t), a.launch.threads, [&](int64_t begin, int64_t end) {
    Buffer<F> scratch(none ? t.rows * t.row_elements : 1);
    ResizedWeight<F> resized(a, t);
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tile_at(a, t, index);
      const F* w = nullptr;
      for (int64_t c = tile.first_channel; c < tile.last_channel; ++c) {
        if (a.weight.data && (c == tile.first_channel || a.weight_shape.c > 1))
          w = static_cast<const F*>(
              resized.tile(tile.n, c, tile.first_row, tile.rows, scale, run_blend<F>));
        for_each_run(t, tile, c, [&](int64_t channel, int64_t row, int64_t from, int64_t size) {
          const F* slope = w ? w + from : nullptr;
          if (none) {
            read(a.grad.dtype, address(a.grad, offset(a.grad, tile.n, channel, row)), scratch.data,
                 size);
            if (w)
              for (int64_t i = 0; i < size; ++i) scratch[i] *= w[from + i];
            slope = scratch.data;
          }
          void* to_input = row_of(a.grad_input, tile.n, channel, row);
          void* to_target = row_of(a.grad_target, tile.n, channel, row);
          const void* x = address(a.input, offset(a.input, tile.n, channel, row));
          const void* y = address(a.target, offset(a.target, tile.n, channel, row));
          if (to_input) by_input.gradient(x, y, slope, scale, to_input, size, parameter);
          if (to_target) by_target.gradient(y, x, slope, scale, to_target, size, parameter);
        });
      }
    }
  });
}

// From sign words, whose images are dense. The gradients are all that this writes and nearly all
// that it moves, so large ones go past the caches.
void gradient_from_signs(const WeightedLossArguments& a, float scale) {
  const Tiling t = tiling(a);
  const Operand* const outputs[] = {&a.grad_input, &a.grad_target};
  SignedRuns run[2];
  bool stream[2];
  for (int i = 0; i < 2; ++i) {
    const Operand& g = *outputs[i];
    run[i] = signed_runs(g.dtype);
    const int64_t elements = a.shape.n * a.shape.c * a.shape.h * a.shape.w;
    stream[i] = g.data && worth_streaming(g.data, elements * element_size(g.dtype));
  }
  parallel_ranges(t.tiles, grain(t), a.launch.threads, [&](int64_t begin, int64_t end) {
    ResizedWeight<float> resized(a, t, 2);
    for (int64_t index = begin; index < end; ++index) {
      const Tile tile = tile_at(a, t, index);
      const void* slopes[2] = {};
      for (int64_t c = tile.first_channel; c < tile.last_channel; ++c) {
        if (a.weight.data && (c == tile.first_channel || a.weight_shape.c > 1)) {
          for (int i = 0; i < 2; ++i)
            if (outputs[i]->data)
              slopes[i] =
                  resized.tile(tile.n, c, tile.first_row, tile.rows, scale, run[i].blend, i);
        }
        for_each_run(t, tile, c, [&](int64_t channel, int64_t row, int64_t from, int64_t size) {
          const uint32_t* signs = signs_of(a, t.pixels, tile.n, channel, row);
          for (int i = 0; i < 2; ++i) {
            const Operand& g = *outputs[i];
            if (!g.data) continue;
            const void* slope = slopes[i];
            if (slope) slope = static_cast<const char*>(slope) + from * element_size(g.dtype);
            void* to = row_of(g, tile.n, channel, row);
            const bool past_caches = stream[i] && aligned_for_streaming(to, 0);
            const auto kernel = past_caches ? run[i].streaming : run[i].gradient;
            kernel(signs, i == 1, slope, scale, to, size);
          }
        });
      }
    }
    drain_streams();
  });
}

}  // namespace
}  // namespace srk::SRK_ISA
