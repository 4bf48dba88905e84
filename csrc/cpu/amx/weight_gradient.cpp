// Gradients of 3x3 convolutions' filters on Intel AMX, bf16 channels_last. It computes
//
//   for (o, i, ty, tx) {
//     sum = 0;
//     for (n, y, x)
//       sum += grad[n][y][x][o] * input[n][y + ty - 1][x + tx - 1][i];   // 0 beyond the image
//     out[o][i][ty][tx] = scale * sum;
//   }
//
// For one tap that is a matrix product whose long side is the pixels. One instruction multiplies a
// tile of 16 input channels x 32 pixels by one of 32 pixels x 16 output channels and adds the
// product to a tile of sums.
//
// 1. transpose_row makes rows of pixels for each input channel, with zeros around: a shift by tx is
//    then a shift of the tile's address. pair_row puts two pixels of the gradient side by side,
//    which is how the instruction takes its other operand.
// 2. add_block keeps the tiles of three rows of the gradient in registers, for a row of the input
//    meets three of them, one for each row of the filters: two tiles are loaded for three products.
//    It works on a band of a few rows, of which what 16 x 16 channels read fits the first cache:
//    the three shifts pass over it in turn.
// 3. The bands are dealt to a fixed number of shares, whose sums store_block adds in order: the
//    result does not depend on the number of threads.
//
// Zeros beyond the image are multiplied like pixels: an infinity that meets them gives NaN.
#include "weight_gradient.h"

#include "../parallel.h"
#include "tiles.h"

#if defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace srk::amx {

#if !defined(__AMX_BF16__)

void weight_gradient(const WeightGradientArguments&) {}

#else

namespace {

constexpr int64_t kPixels = 32;               // pixels of a tile
constexpr int64_t kTileSums = kTile * kTile;  // fp32 values of a tile of sums
constexpr int64_t kBand = 4;                  // rows of the gradient worked on at once
constexpr int64_t kRead = kBand + 2;          // rows of the input that these meet
constexpr int64_t kShares = 8;                // fixed, whatever the number of threads

inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// Interleaving two vectors of 32 channels within 128 bits leaves channels in two halves, `half` 0
// and 1; this is the one in lane k of a half.
inline int64_t channel_of(int64_t half, int64_t k) { return k / 4 * 8 + half * 4 + k % 4; }

struct Layout {
  int64_t steps;      // of 32 pixels in a row
  int64_t wide;       // elements of a transposed row of one channel: zeros, the row
  int64_t input_row;  // elements of a transposed row of all channels, and zeros
  int64_t grad_row;   // elements of a row of pixel pairs

  explicit Layout(const WeightGradientArguments& a)
      : steps((a.w + kPixels - 1) / kPixels),
        wide(steps * kPixels + kPixels),
        input_row(wide * a.ci + kPixels),
        grad_row(steps * kPixels * a.co) {}
};

inline __m512i pixel(const uint16_t* row, int64_t stride, int64_t x, int64_t width) {
  return x < width ? _mm512_loadu_si512(row + x * stride) : _mm512_setzero_si512();
}

// Row y of the input (zeros beyond the image), to[channel][32 + column].
void transpose_row(const WeightGradientArguments& a, const Layout& l, int64_t n, int64_t y,
                   uint16_t* to) {
  if (y < 0 || y >= a.h) {
    for (int64_t i = 0; i < l.input_row; i += kPixels)
      _mm512_store_si512(to + i, _mm512_setzero_si512());
    return;
  }
  for (int64_t i = 0; i < l.input_row; i += l.wide)  // before, between and behind the channels
    _mm512_store_si512(to + i, _mm512_setzero_si512());
  const uint16_t* row = a.x.data + (n * a.h + y) * a.w * a.x.pixel;
  for (int64_t c = 0; c < a.ci; c += kPixels)
    for (int64_t x = 0; x < a.w; x += kPixels) {
      __m512i low[16], high[16];
      for (int i = 0; i < 16; ++i) {
        const __m512i even = pixel(row + c, a.x.pixel, x + 2 * i, a.w);
        const __m512i odd = pixel(row + c, a.x.pixel, x + 2 * i + 1, a.w);
        low[i] = _mm512_unpacklo_epi16(even, odd);
        high[i] = _mm512_unpackhi_epi16(even, odd);
      }
      uint16_t* at = to + c * l.wide + kPixels + x;
      transpose(low);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(at + channel_of(0, i) * l.wide, low[i]);
      transpose(high);
      for (int i = 0; i < 16; ++i) _mm512_store_si512(at + channel_of(1, i) * l.wide, high[i]);
    }
}

// Row y of the gradient, to[output tile][pair of columns][channel][column of the pair].
void pair_row(const WeightGradientArguments& a, const Layout& l, int64_t n, int64_t y,
              uint16_t* to) {
  const uint16_t* row = a.grad.data + (n * a.h + y) * a.w * a.grad.pixel;
  const int64_t tile = l.steps * kPixels * kTile;
  for (int64_t c = 0; c < a.co; c += kPixels, to += 2 * tile)
    for (int64_t x = 0; x < l.steps * kPixels; x += 2) {
      const __m512i even = pixel(row + c, a.grad.pixel, x, a.w);
      const __m512i odd = pixel(row + c, a.grad.pixel, x + 1, a.w);
      _mm512_store_si512(to + x * kTile, _mm512_unpacklo_epi16(even, odd));
      _mm512_store_si512(to + x * kTile + tile, _mm512_unpackhi_epi16(even, odd));
    }
}

// Tiles of 16 input and 16 output channels that some filter has.
struct Block {
  int64_t in, out;
};

// Row j of the input meets three rows of the gradient, of which one is new: the registers' numbers
// are part of the instructions.
#define SRK_ROW(now, before, earlier)                    \
  if (j == rows + 2) break;                              \
  _tile_loadd(4, input[j] + at, stride);                 \
  if (j < rows) {                                        \
    _tile_loadd(now, by, kLine);                         \
    _tile_dpbf16ps(0, 4, now);                           \
  }                                                      \
  if (j >= 1 && j <= rows) _tile_dpbf16ps(1, 4, before); \
  if (j >= 2) _tile_dpbf16ps(2, 4, earlier);             \
  ++j, by += l.grad_row;

// sums[column of the filter][row] += of a band of rows, for one block.
void add_block(const Layout& l, const Block& b, int64_t rows, uint16_t* const* input,
               const uint16_t* grad, float* all) {
  const int64_t stride = l.wide * 2;
  const int64_t x = b.in * kTile * l.wide + kPixels - 1;
  const uint16_t* g = grad + b.out * l.steps * kPixels * kTile;
  constexpr int64_t kOrder[] = {1, 0, 2};  // what lies on whole lines first
  for (const int64_t tx : kOrder) {
    float* sums = all + tx * 3 * kTileSums;
    _tile_loadd(0, sums, kLine);
    _tile_loadd(1, sums + kTileSums, kLine);
    _tile_loadd(2, sums + 2 * kTileSums, kLine);
    for (int64_t step = 0; step < l.steps; ++step) {
      const int64_t at = x + step * kPixels + tx;
      const uint16_t* by = g + step * kPixels * kTile;
      for (int64_t j = 0;;) {
        SRK_ROW(5, 7, 6)
        SRK_ROW(6, 5, 7)
        SRK_ROW(7, 6, 5)
      }
    }
    _tile_stored(0, sums, kLine);
    _tile_stored(1, sums + kTileSums, kLine);
    _tile_stored(2, sums + 2 * kTileSums, kLine);
  }
}
#undef SRK_ROW

// Adds up the shares, sums[share][column][row][input][output] with `size` between shares, to
// out[output][input][row][column].
void store_block(const WeightGradientArguments& a, const Block& b, const float* sums, int64_t size,
                 int64_t shares) {
  int64_t f = 0, o = b.out * kTile;
  for (; o >= a.filters[f].co; ++f) o -= a.filters[f].co;
  const FilterGradient& filter = a.filters[f];
  const __m512 scale = _mm512_set1_ps(filter.scale);
  alignas(64) uint16_t rounded[3][3][kTile][kTile];  // [row][column][input][output]
  for (int64_t column = 0; column < 3; ++column)
    for (int64_t row = 0; row < 3; ++row)
      for (int64_t i = 0; i < kTile; ++i, sums += kTile) {
        __m512 total = _mm512_setzero_ps();
        for (int64_t share = 0; share < shares; ++share)
          total = _mm512_add_ps(total, _mm512_load_ps(sums + share * size));
        _mm256_store_si256(
            reinterpret_cast<__m256i*>(rounded[row][column][i]),
            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_mul_ps(total, scale))));
      }
  for (int64_t k = 0; k < kTile; ++k) {
    const int64_t out = o / kPixels * kPixels + channel_of(o / kTile % 2, k);
    uint16_t* to = filter.out + (out * filter.ci + b.in * kTile) * 9;
    for (int64_t i = 0; i < kTile; ++i)
      for (int64_t tap = 0; tap < 9; ++tap) *to++ = rounded[tap / 3][tap % 3][i][k];
  }
}

}  // namespace

void weight_gradient(const WeightGradientArguments& a) {
  const Layout l(a);
  int64_t count = 0, at = 0;
  for (int64_t f = 0; f < a.count; ++f) count += a.filters[f].co * a.filters[f].ci / kTileSums;
  Aligned<Block> blocks(count);
  for (int64_t f = 0, o = 0; f < a.count; o += a.filters[f++].co / kTile)
    for (int64_t out = 0; out < a.filters[f].co / kTile; ++out)
      for (int64_t in = 0; in < a.filters[f].ci / kTile; ++in) blocks.data[at++] = {in, o + out};

  const int64_t size = count * 9 * kTileSums;
  const int64_t bands = (a.h + kBand - 1) / kBand, units = a.n * bands;
  const int64_t shares = units < kShares ? (units > 0 ? units : 1) : kShares;
  Aligned<float> sums(shares * size);
  parallel_ranges(shares, 1, a.threads, [&](int64_t from, int64_t to) {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
    Aligned<uint16_t> input(kRead * l.input_row), grad(kBand * l.grad_row);
    uint16_t* input_rows[kRead];
    for (int64_t r = 0; r < kRead; ++r) input_rows[r] = input.data + r * l.input_row;
    for (int64_t share = from; share < to; ++share) {
      float* own = sums.data + share * size;
      for (int64_t i = 0; i < size; ++i) own[i] = 0;
      for (int64_t unit = share * units / shares; unit < (share + 1) * units / shares; ++unit) {
        const int64_t n = unit / bands, first = unit % bands * kBand;
        const int64_t rows = a.h - first < kBand ? a.h - first : kBand;
        // The last two rows of the band above are the first two of this one.
        const bool on = unit > share * units / shares && first > 0;
        uint16_t* moved[kRead];
        for (int64_t r = 0; r < kRead; ++r) moved[r] = input_rows[on ? (r + kBand) % kRead : r];
        for (int64_t r = 0; r < kRead; ++r) input_rows[r] = moved[r];
        for (int64_t r = on ? 2 : 0; r < rows + 2; ++r)
          transpose_row(a, l, n, first + r - 1, input_rows[r]);
        for (int64_t r = 0; r < rows; ++r) pair_row(a, l, n, first + r, grad.data + r * l.grad_row);
        for (int64_t b = 0; b < count; ++b)
          add_block(l, blocks.data[b], rows, input_rows, grad.data, own + b * 9 * kTileSums);
      }
    }
    _tile_release();
  });

  parallel_ranges(count, 1, a.threads, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b)
      store_block(a, blocks.data[b], sums.data + b * 9 * kTileSums, size, shares);
  });
}

#endif

}  // namespace srk::amx
