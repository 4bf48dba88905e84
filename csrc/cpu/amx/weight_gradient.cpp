// Gradient of a 3x3 convolution's filters on Intel AMX, bf16 channels_last:
//
//   out[o][i][ty][tx] = sum over images, rows y, columns x of grad[y][x][o] *
//   input[y+ty-1][x+tx-1][i]
//
// For one tap that is a matrix product whose long side is the pixels. A tile holds 16 input
// channels x 32 pixels, so the input is transposed, row by row, with zeros around it; a shift by tx
// is then a shift of the tile's address. The other operand holds pairs of pixels side by side,
// which is what the tile product takes. Some rows of both, a band, stay in the second cache while
// all taps and channels pass over them, two by two tiles of sums in registers. oneDNN reaches half
// this rate at these sizes.
//
// The bands are dealt to a fixed number of shares, whose sums are added in order: the result does
// not depend on the number of threads.
#define SRK_ISA amx
#include "weight_gradient.h"

#include <cstdlib>

#include "../parallel.h"
#include "../simd.h"

#if defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace srk::amx {

#if !defined(__AMX_BF16__)

bool available() { return false; }
void weight_gradient(const WeightGradientArguments&) {}

#else

namespace {

constexpr int64_t kTile = 16;       // channels of a tile
constexpr int64_t kPixels = 32;     // pixels of a tile
constexpr int64_t kBand = 8;        // rows worked on at once
constexpr int64_t kShares = 8;      // fixed, whatever the number of threads
constexpr int64_t kTileSums = 256;  // fp32 values of a tile of sums
constexpr int64_t kAlign = 64;

struct Memory {
  void* data;
  explicit Memory(int64_t bytes)
      : data(std::aligned_alloc(kAlign, size_t((bytes + kAlign - 1) / kAlign * kAlign))) {}
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Pixels p and p + 1 of 16 channels side by side; beyond `width` zeros.
inline __m512i pixel_pair(const uint16_t* row, int64_t pixel, int64_t x, int64_t width) {
  const auto at = [&](int64_t i) {
    if (i >= width) return _mm512_setzero_si512();
    return _mm512_cvtepu16_epi32(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i * pixel)));
  };
  return _mm512_or_si512(at(x), _mm512_slli_epi32(at(x + 1), 16));
}

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

struct Layout {
  int64_t steps;      // of 32 pixels in a row
  int64_t wide;       // elements of a transposed row of one channel: zeros, the row, zeros
  int64_t input_row;  // elements of a transposed row of all channels
  int64_t grad_row;   // elements of a row of pixel pairs
};

Layout layout_of(const WeightGradientArguments& a) {
  const int64_t steps = (a.w + kPixels - 1) / kPixels;
  const int64_t wide = steps * kPixels + kPixels;
  return {steps, wide, wide * a.ci, steps * kPixels * a.co};
}

// Row y of the input (zeros beyond the image), to[channel][1 + column].
void transpose_row(const WeightGradientArguments& a, const Layout& l, int64_t n, int64_t y,
                   uint16_t* to) {
  for (int64_t c = 0; c < a.ci; ++c) {
    to[c * l.wide] = 0;
    for (int64_t i = l.wide - kPixels; i < l.wide; i += kPixels)
      _mm512_storeu_si512(to + c * l.wide + i, _mm512_setzero_si512());
  }
  if (y < 0 || y >= a.h) {
    for (int64_t i = 0; i < l.input_row; i += kPixels)
      _mm512_storeu_si512(to + i, _mm512_setzero_si512());
    return;
  }
  const uint16_t* row = a.x + (n * a.h + y) * a.w * a.x_pixel;
  for (int64_t c = 0; c < a.ci; c += kTile) {
    for (int64_t x = 0; x < a.w; x += kPixels) {
      __m512i pairs[16];
      for (int i = 0; i < 16; ++i) pairs[i] = pixel_pair(row + c, a.x_pixel, x + 2 * i, a.w);
      transpose(pairs);
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (c + i) * l.wide + 1 + x, pairs[i]);
    }
  }
}

// Row y of the gradient, to[pair of columns][channel][column of the pair].
void pair_row(const WeightGradientArguments& a, const Layout& l, int64_t n, int64_t y,
              uint16_t* to) {
  const uint16_t* row = a.grad + (n * a.h + y) * a.w * a.grad_pixel;
  for (int64_t x = 0; x < l.steps * kPixels; x += 2)
    for (int64_t c = 0; c < a.co; c += kTile)
      _mm512_store_si512(to + (x / 2 * a.co + c) * 2, pixel_pair(row + c, a.grad_pixel, x, a.w));
}

// sums[tap][input tile][output tile] += of a band of rows
void add_band(const WeightGradientArguments& a, const Layout& l, int64_t n, int64_t first,
              int64_t rows, uint16_t* input, uint16_t* grad, float* sums) {
  for (int64_t r = 0; r < rows + 2; ++r)
    transpose_row(a, l, n, first + r - 1, input + r * l.input_row);
  for (int64_t r = 0; r < rows; ++r) pair_row(a, l, n, first + r, grad + r * l.grad_row);

  const int64_t in_tiles = a.ci / kTile, out_tiles = a.co / kTile;
  const int64_t input_stride = l.wide * 2, grad_stride = a.co * 4;  // bytes between a tile's rows
  for (int64_t ty = 0; ty < 3; ++ty)
    for (int64_t i = 0; i < in_tiles; ++i)
      for (int64_t o = 0; o < out_tiles; o += 2) {
        // Sums of three shifts x two tiles of output channels: the shifts read the same lines of
        // cache.
        float* c = sums + ((ty * 3 * in_tiles + i) * out_tiles + o) * kTileSums;
        const int64_t tap = in_tiles * out_tiles * kTileSums;
        _tile_loadd(0, c, 64);
        _tile_loadd(1, c + tap, 64);
        _tile_loadd(2, c + 2 * tap, 64);
        _tile_loadd(3, c + kTileSums, 64);
        _tile_loadd(4, c + tap + kTileSums, 64);
        _tile_loadd(5, c + 2 * tap + kTileSums, 64);
        for (int64_t r = 0; r < rows; ++r) {
          const uint16_t* from = input + (r + ty) * l.input_row + i * kTile * l.wide;
          const uint16_t* by = grad + r * l.grad_row + o * kTile * 2;
          for (int64_t step = 0; step < l.steps; ++step, from += kPixels, by += kPixels * a.co) {
            _tile_loadd(7, by, grad_stride);
            _tile_loadd(6, from, input_stride);
            _tile_dpbf16ps(0, 6, 7);
            _tile_loadd(6, from + 1, input_stride);
            _tile_dpbf16ps(1, 6, 7);
            _tile_loadd(6, from + 2, input_stride);
            _tile_dpbf16ps(2, 6, 7);
            _tile_loadd(7, by + kTile * 2, grad_stride);
            _tile_dpbf16ps(5, 6, 7);
            _tile_loadd(6, from + 1, input_stride);
            _tile_dpbf16ps(4, 6, 7);
            _tile_loadd(6, from, input_stride);
            _tile_dpbf16ps(3, 6, 7);
          }
        }
        _tile_stored(0, c, 64);
        _tile_stored(1, c + tap, 64);
        _tile_stored(2, c + 2 * tap, 64);
        _tile_stored(3, c + kTileSums, 64);
        _tile_stored(4, c + tap + kTileSums, 64);
        _tile_stored(5, c + 2 * tap + kTileSums, 64);
      }
}

}  // namespace

bool available() {
  static const bool found = [] {
    // __builtin_cpu_supports knows AMX in new compilers only.
    unsigned eax = 7, ebx, ecx = 0, edx;
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    const bool processor = (edx >> 22 & 1) && (edx >> 24 & 1);
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM)
    return processor && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return found;
}

void weight_gradient(const WeightGradientArguments& a) {
  const Layout l = layout_of(a);
  const int64_t size = 9 * a.ci * a.co, bands = (a.h + kBand - 1) / kBand, units = a.n * bands;
  const int64_t shares = units < kShares ? (units > 0 ? units : 1) : kShares;
  Memory sums(shares * size * 4);
  parallel_ranges(shares, 1, a.threads, [&](int64_t from, int64_t to) {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
    Memory input((kBand + 2) * l.input_row * 2), grad(kBand * l.grad_row * 2);
    for (int64_t share = from; share < to; ++share) {
      float* own = static_cast<float*>(sums.data) + share * size;
      for (int64_t i = 0; i < size; ++i) own[i] = 0;
      for (int64_t unit = share * units / shares; unit < (share + 1) * units / shares; ++unit) {
        const int64_t first = unit % bands * kBand;
        const int64_t rows = a.h - first < kBand ? a.h - first : kBand;
        add_band(a, l, unit / bands, first, rows, static_cast<uint16_t*>(input.data),
                 static_cast<uint16_t*>(grad.data), own);
      }
    }
    _tile_release();
  });
  // sums[tap][input tile][output tile][input][output] to out[output][input][tap]
  const int64_t in_tiles = a.ci / kTile, out_tiles = a.co / kTile;
  const float* parts = static_cast<const float*>(sums.data);
  parallel_ranges(out_tiles * in_tiles, 1 + 8 / (shares + 1), a.threads,
                  [&](int64_t from, int64_t to) {
                    for (int64_t block = from; block < to; ++block) {
                      const int64_t i = block % in_tiles, o = block / in_tiles;
                      for (int64_t tap = 0; tap < 9; ++tap) {
                        const int64_t at = ((tap * in_tiles + i) * out_tiles + o) * kTileSums;
                        for (int64_t k = 0; k < kTileSums; ++k) {
                          float total = 0;
                          for (int64_t share = 0; share < shares; ++share)
                            total += parts[share * size + at + k];
                          const int64_t out = o * kTile + k % kTile, in = i * kTile + k / kTile;
                          a.out[(out * a.ci + in) * 9 + tap] = to_bf16(total * a.scale).bits;
                        }
                      }
                    }
                  });
}

#endif

}  // namespace srk::amx
