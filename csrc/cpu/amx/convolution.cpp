// 3x3 convolution with its epilogue on Intel AMX, bf16 channels_last. It computes
//
//   for (n, y, x, o) {
//     s = bias[o];
//     for (ty, tx, i)                            // 3 x 3 taps, input channels
//       s += weight[o][i][ty][tx] * input[n][y + ty - 1][x + tx - 1][i];   // 0 beyond the image
//     s = activation(s);                         // or s *= activation'(kept[n][y][x][o])
//     output[n][y][x][o] = scale * s + residual[n][y][x][o];
//     sums[o] += output[n][y][x][o];
//   }
//
// A tile register holds 16 rows of 64 bytes. One instruction multiplies a tile of 16 pixels x 32
// input channels by one of 32 input x 16 output channels and adds the product to a tile of sums: it
// is the loop above for one tap.
//
// 1. pack_filters copies the filters into such tiles, Copy the pixels with zeros around them; both
//    copies stay in the second cache.
// 2. add_up keeps the sums of four rows of 16 pixels x 16 output channels in registers while all
//    taps and input channels pass. A row of pixels serves up to three rows of sums, so nine tiles
//    are loaded for twelve products.
// 3. Epilogue turns sums into what is stored.
// 4. run deals four rows of a strip of columns at a time to the threads. The products leave the
//    processor's other units idle, which do the epilogue of the sums before and the copy of the
//    next rows in the meantime, in small portions between the products.
// 5. The sums of each channel are taken for every four rows by themselves and added in order: the
//    result does not depend on the number of threads.
//
// Zeros beyond the image are multiplied like pixels: filters that are not finite give NaN there.
#include "convolution.h"

#include "../parallel.h"
#include "tiles.h"

#if defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace srk::amx {

#if !defined(__AMX_BF16__)

void convolution(const ConvolutionArguments&) {}

#else

namespace {

constexpr int64_t kDepth = 32;                     // input channels of a tile
constexpr int64_t kTileHalves = kTile * kDepth;    // bf16 values of a tile
constexpr int64_t kTileSums = kTile * kTile;       // fp32 values of a tile of sums
constexpr int64_t kFilterTiles = 9 * kTileHalves;  // bf16 values of the tiles of all taps
constexpr int64_t kRows = 4;                       // rows of pixels whose sums are in registers
constexpr int64_t kCopied = kRows + 2;             // with the rows around them
constexpr int64_t kStrip = 96;                     // columns worked on at once
constexpr int64_t kPortion = 8;                    // pixels of a portion of the epilogue
constexpr int64_t kPortions = kRows * kTile / kPortion;

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// The filters of 16 output and 32 input channels as tiles [column of the filter][row], each [pair
// of input channels][output channel][channel of the pair].
void pack_filters(const ConvolutionArguments& a, int64_t out, int64_t in, uint16_t* to) {
  const uint16_t* weight = a.weight + out * a.weight_out + in * a.weight_in;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i outputs = _mm512_mullo_epi32(lane, _mm512_set1_epi32(int(a.weight_out)));
  for (int64_t column = 0; column < 3; ++column)
    for (int64_t row = 0; row < 3; ++row) {
      const uint16_t* tap = weight + row * a.weight_row + column * a.weight_column;
      for (int64_t i = 0; i < kDepth; i += 2, to += 2 * kTile) {
        // Lanes of 32 bits hold two neighbours in memory: the first of the pair comes with what
        // follows it, the second with what precedes it, so nothing beyond the filters is read.
        const uint16_t* pair = tap + i * a.weight_in;
        const __m512i first = _mm512_i32gather_epi32(outputs, pair, 2);
        const __m512i second = _mm512_i32gather_epi32(outputs, pair + a.weight_in - 1, 2);
        _mm512_store_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, first, second));
      }
    }
}

// Four rows of a strip of columns of an image.
struct Unit {
  int64_t index, n, y, x, rows, columns;
  int64_t wide;  // pixels of a copied row: a multiple of 16, and one on both sides
};

struct Units {
  int64_t bands, strips, count;

  explicit Units(const ConvolutionArguments& a)
      : bands(blocks(a.h, kRows)), strips(blocks(a.w, kStrip)), count(a.n * bands * strips) {}

  Unit at(const ConvolutionArguments& a, int64_t index) const {
    const int64_t y = index % bands * kRows, x = index / bands % strips * kStrip;
    const int64_t rows = a.h - y < kRows ? a.h - y : kRows;
    const int64_t columns = a.w - x < kStrip ? a.w - x : kStrip;
    return {index, index / bands / strips, y, x, rows, columns, blocks(columns, kTile) * kTile + 2};
  }
};

// The pixels of a unit and those around it, to[input block][row][column][channel], with zeros
// beyond the image.
class Copy {
 public:
  Copy(const ConvolutionArguments& a, const Unit& u, uint16_t* to) : a_(a), u_(u), to_(to) {}

  int64_t pixels() const { return kCopied * u_.wide; }

  void some(int64_t count) {
    while (count > 0 && row_ < kCopied) {
      // Up to the end of the row, of the image's pixels or of those beyond it.
      const int64_t y = u_.y + row_ - 1, x = u_.x + column_ - 1;
      const bool inside = y >= 0 && y < a_.h && x >= 0 && x < a_.w;
      int64_t run = u_.wide - column_;
      if (inside && a_.w - x < run) run = a_.w - x;
      if (x < 0) run = 1;
      if (run > count) run = count;
      const int64_t first = ((u_.n * a_.h + y) * a_.w + x) * a_.x.pixel;
      uint16_t* to = to_ + (row_ * u_.wide + column_) * kDepth;
      for (int64_t c = 0; c < a_.ci; c += kDepth, to += pixels() * kDepth)
        for (int64_t i = 0; i < run; ++i)
          _mm512_store_si512(to + i * kDepth,
                             inside ? _mm512_loadu_si512(a_.x.data + first + i * a_.x.pixel + c)
                                    : _mm512_setzero_si512());
      count -= run;
      column_ += run;
      if (column_ == u_.wide) ++row_, column_ = 0;
    }
  }

 private:
  const ConvolutionArguments& a_;
  const Unit u_;
  uint16_t* const to_;
  int64_t row_ = 0, column_ = 0;
};

inline __m512 load(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}

// From the sums of 4 x 16 pixels to what is stored.
template <int kActivation, bool kDerivative>
class Epilogue {
 public:
  // parts: sums of each channel, for each unit; null: not wanted.
  Epilogue(const ConvolutionArguments& a, double* parts) : a_(a), parts_(parts) {}

  void start(const Unit& u, int64_t x, int64_t o, const float* sums) {
    u_ = u;
    x_ = x;
    o_ = o;
    sums_ = sums;
    left_ = kPortions;
    total_ = _mm512_setzero_ps();
  }

  void some(int64_t portions) {
    for (; portions > 0 && left_ > 0; --portions, --left_) {
      const int64_t done = (kPortions - left_) * kPortion;
      const int64_t row = done / kTile, x = x_ + done % kTile;
      if (row < u_.rows && x < u_.columns) portion(sums_ + done * kTile, row, x);
      if (left_ == 1 && parts_)
        for (int64_t i = 0; i < kTile; ++i) parts_[u_.index * a_.co + o_ + i] += double(total_[i]);
    }
  }

 private:
  void portion(const float* sums, int64_t row, int64_t x) {
    const int64_t pixel = (u_.n * a_.h + u_.y + row) * a_.w + u_.x + x;
    const int64_t left = u_.columns - x, columns = left < kPortion ? left : kPortion;
    const auto at = [&](const Pixels& p, int64_t c) { return p.data + (pixel + c) * p.pixel + o_; };
    const __m512 zero = _mm512_setzero_ps(), bias = a_.bias ? load(a_.bias + o_) : zero;
    const __m512 slope = _mm512_set1_ps(a_.negative_slope), scale = _mm512_set1_ps(a_.scale);
    __m512 total = total_;
    for (int64_t c = 0; c < columns; ++c) {
      __m512 s = _mm512_add_ps(_mm512_load_ps(sums + c * kTile), bias);
      if (kActivation != int(Activation::none)) {
        const __m512 sign = kDerivative ? load(at(a_.kept, c)) : s;
        if (kActivation == int(Activation::relu))  // NaN passes, as in PyTorch
          s = _mm512_mask_mov_ps(s, _mm512_cmp_ps_mask(sign, zero, _CMP_LE_OQ), zero);
        else
          s = _mm512_mask_mul_ps(s, _mm512_cmp_ps_mask(sign, zero, _CMP_NGT_UQ), s, slope);
      }
      s = _mm512_mul_ps(s, scale);
      if (a_.residual.data) s = _mm512_add_ps(s, load(at(a_.residual, c)));
      total = _mm512_add_ps(total, s);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at(a_.y, c)),
                          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(s)));
    }
    total_ = total;
  }

  const ConvolutionArguments& a_;
  double* const parts_;
  Unit u_{};
  int64_t x_ = 0, o_ = 0, left_ = 0;  // portions
  const float* sums_ = nullptr;
  __m512 total_ = _mm512_setzero_ps();
};

// Sums of 4 x 16 pixels, to[row][column][channel], from `input`, the copied pixel up and left of
// the first, with `row` elements between its rows, and the filters' tiles. What runs between the
// products is called three times for 32 input channels.
template <class Between, class After>
void add_up(const uint16_t* input, int64_t row, const uint16_t* filters, int64_t depth, float* to,
            const Between& between, const After& after) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth; ++k, input += kCopied * row)
    for (int64_t column = 0; column < 3; ++column, filters += 3 * kTileHalves) {
      // The sums take turns: a product waits for the one before it into the same register.
      const uint16_t* from = input + column * kDepth;
      _tile_loadd(5, filters, kLine);
      _tile_loadd(4, from, kLine);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(4, from + 3 * row, kLine);
      _tile_loadd(7, filters + 2 * kTileHalves, kLine);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(6, filters + kTileHalves, kLine);
      _tile_dpbf16ps(2, 4, 6);
      _tile_dpbf16ps(3, 4, 5);
      _tile_loadd(4, from + row, kLine);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 5);
      between();
      _tile_loadd(4, from + 4 * row, kLine);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 4, 6);
      _tile_loadd(4, from + 2 * row, kLine);
      _tile_dpbf16ps(0, 4, 7);
      _tile_dpbf16ps(1, 4, 6);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(4, from + 5 * row, kLine);
      _tile_dpbf16ps(3, 4, 7);
      after();
    }
  _tile_stored(0, to, kLine);
  _tile_stored(1, to + kTileSums, kLine);
  _tile_stored(2, to + 2 * kTileSums, kLine);
  _tile_stored(3, to + 3 * kTileSums, kLine);
}

template <int kActivation, bool kDerivative>
void run(const ConvolutionArguments& a) {
  const int64_t depth = a.ci / kDepth, filters = a.co / kTile * depth;
  Aligned<uint16_t> packed(filters * kFilterTiles);
  parallel_ranges(filters, 1, a.threads, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i)
      pack_filters(a, i / depth * kTile, i % depth * kDepth, packed.data + i * kFilterTiles);
  });

  const Units units(a);
  const int64_t widest = units.strips > 1 ? kStrip : blocks(a.w, kTile) * kTile;
  const int64_t copied = kCopied * (widest + 2) * a.ci;
  Aligned<double> parts(a.sums ? units.count * a.co : 1);
  if (a.sums)
    for (int64_t i = 0; i < units.count * a.co; ++i) parts.data[i] = 0;
  parallel_ranges(units.count, 1, a.threads, [&](int64_t from, int64_t to) {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
    Aligned<uint16_t> input(2 * copied);  // of this unit and of the next one
    alignas(64) float sums[2][kRows * kTileSums];
    Epilogue<kActivation, kDerivative> epilogue(a, a.sums ? parts.data : nullptr);
    Copy first(a, units.at(a, from), input.data);
    first.some(first.pixels());
    for (int64_t index = from, step = 0; index < to; ++index) {
      const Unit u = units.at(a, index);
      const uint16_t* here = input.data + (index - from) % 2 * copied;
      Copy next(a, units.at(a, index + 1), input.data + (index - from + 1) % 2 * copied);
      const int64_t calls = 3 * depth, steps = blocks(u.columns, kTile) * (a.co / kTile);
      const int64_t portions = blocks(kPortions, calls);
      const int64_t pixels = index + 1 < to ? blocks(next.pixels(), calls * steps) : 0;
      for (int64_t x = 0; x < u.columns; x += kTile)
        for (int64_t o = 0; o < a.co; o += kTile, ++step) {
          add_up(
              here + x * kDepth, u.wide * kDepth, packed.data + o / kTile * depth * kFilterTiles,
              depth, sums[step % 2], [&] { epilogue.some(portions); }, [&] { next.some(pixels); });
          epilogue.start(u, x, o, sums[step % 2]);
        }
    }
    epilogue.some(kPortions);
    _tile_release();
  });
  if (!a.sums) return;
  for (int64_t o = 0; o < a.co; ++o) a.sums[o] = 0;
  for (int64_t unit = 0; unit < units.count; ++unit)
    for (int64_t o = 0; o < a.co; ++o) a.sums[o] += parts.data[unit * a.co + o];
}

}  // namespace

void convolution(const ConvolutionArguments& a) {
  constexpr int kNone = int(Activation::none), kRelu = int(Activation::relu);
  constexpr int kLeaky = int(Activation::leaky_relu);
  const bool derivative = a.kept.data;
  if (a.activation == Activation::relu)
    return derivative ? run<kRelu, true>(a) : run<kRelu, false>(a);
  if (a.activation == Activation::leaky_relu)
    return derivative ? run<kLeaky, true>(a) : run<kLeaky, false>(a);
  run<kNone, false>(a);
}

#endif

}  // namespace srk::amx
