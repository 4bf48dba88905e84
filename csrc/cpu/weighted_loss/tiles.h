// How images are cut: into tiles, each some rows of a plane and of a block of channels or, of
// channels_last images, some rows of pixels.
//
//   for (tile = 0; tile < tiles; ++tile)               // each thread takes a range of them
//     for (c = tile.first_channel; c < tile.last_channel; ++c)
//       for (run = 0; run < runs of the tile; ++run)   // one for each row, or one in all
//         for (i = 0; i < size of the run; ++i) ...    // runs.h, signs.h
//
// A tile is small enough for its resized weight to stay in the first cache while all its channels
// use it. Tiles do not depend on the number of threads, and their sums are added in order: the
// result is the same on any number.
#pragma once
#include "../../common/weighted_loss.h"
#include "../simd.h"

namespace srk::SRK_ISA {
namespace {

// Weights of a tile: 16 KiB, so that weights and operands share the first cache.
constexpr int64_t kTileElements = 4096;
constexpr int kSignGroup = 16;             // elements whose signs share a word
constexpr int64_t kGrainElements = 16384;  // fewest elements worth a second thread

// A tile is `rows` rows of one image and, in planes, of a block of `channels` channels.
struct Tiling {
  bool pixels;  // channels_last runs; otherwise runs within one channel's plane
  bool joined;  // neighbouring rows are contiguous: a tile is one run (per channel)
  int64_t rows, channels;
  int64_t row_elements;  // of a run: w, or w * c
  int64_t row_blocks, channel_blocks, tiles;
};

bool rows_joined(const Operand& o, bool pixels, int64_t w, int64_t c) {
  return !o.data || (pixels ? o.stride.h == w * c : o.stride.h == w);
}

Tiling tiling(const WeightedLossArguments& a) {
  Tiling t;
  t.pixels = !(a.input.stride.w == 1 && a.target.stride.w == 1);
  t.row_elements = t.pixels && a.shape.c > 0 ? a.shape.w * a.shape.c : a.shape.w;
  t.joined = true;
  const Operand* const images[] = {&a.input, &a.target, &a.grad_input, &a.grad_target};
  for (const Operand* o : images)
    t.joined = t.joined && rows_joined(*o, t.pixels, a.shape.w, a.shape.c);
  if (a.reduction == Reduction::none) {
    t.joined = t.joined && rows_joined(a.out, t.pixels, a.shape.w, a.shape.c) &&
               rows_joined(a.grad, t.pixels, a.shape.w, a.shape.c);
  }
  t.rows = kTileElements / t.row_elements;
  if (a.signs) {  // tiles of whole sign words: at most 16 rows join into some
    int64_t step = kSignGroup;
    while (step > 1 && t.row_elements * (step / 2) % kSignGroup == 0) step /= 2;
    t.rows = t.rows / step * step;
    if (t.rows < step) t.rows = step;
  }
  if (t.rows < 1) t.rows = 1;
  if (t.rows > a.shape.h) t.rows = a.shape.h;
  t.channels = t.pixels ? a.shape.c : 4 * kGrainElements / (t.rows * t.row_elements);
  if (t.channels < 1) t.channels = 1;
  if (t.channels > a.shape.c) t.channels = a.shape.c;
  t.row_blocks = (a.shape.h + t.rows - 1) / t.rows;
  t.channel_blocks = t.channels > 0 ? (a.shape.c + t.channels - 1) / t.channels : 0;
  t.tiles = a.shape.n * t.row_blocks * t.channel_blocks;
  return t;
}

struct Tile {
  int64_t n, first_channel, last_channel, first_row, rows;
};

Tile tile_at(const WeightedLossArguments& a, const Tiling& t, int64_t index) {
  Tile tile;
  const int64_t block = index % t.channel_blocks, rest = index / t.channel_blocks;
  tile.n = rest / t.row_blocks;
  tile.first_row = rest % t.row_blocks * t.rows;
  tile.rows = a.shape.h - tile.first_row < t.rows ? a.shape.h - tile.first_row : t.rows;
  tile.first_channel = t.pixels ? 0 : block * t.channels;
  tile.last_channel = t.pixels ? 1
                      : tile.first_channel + t.channels < a.shape.c
                          ? tile.first_channel + t.channels
                          : a.shape.c;
  return tile;
}

// body(channel, image row, offset of its weights in the tile, elements) for each run of a tile.
template <class Body>
SRK_HD void for_each_run(const Tiling& t, const Tile& tile, int64_t channel, const Body& body) {
  if (t.joined) {
    body(channel, tile.first_row, int64_t(0), tile.rows * t.row_elements);
  } else {
    for (int64_t i = 0; i < tile.rows; ++i)
      body(channel, tile.first_row + i, i * t.row_elements, t.row_elements);
  }
}

// Fewest tiles worth a second thread.
int64_t grain(const Tiling& t) {
  const int64_t elements = t.rows * t.row_elements * (t.pixels ? 1 : t.channels);
  return 1 + kGrainElements / (elements > 0 ? elements : 1);
}

}  // namespace
}  // namespace srk::SRK_ISA
