// Lanes of fp32 or fp64 loaded from and stored to any storage type, on GCC/Clang vector extensions.
//
// Each file that includes this one is compiled once per instruction set, with SRK_ISA naming the
// namespace; the vector width follows from the compiler flags. No standard-library template may be
// instantiated in such a file: the linker would keep one copy for all instruction sets.
#pragma once
#include <cstdint>
#include <cstring>

#include "../common/types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define SRK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SRK_VECTOR_BYTES 32
#else
#define SRK_VECTOR_BYTES 16
#endif

namespace srk::SRK_ISA {

struct bf16 {
  uint16_t bits;
};
using f16 = _Float16;

constexpr int kFloats = SRK_VECTOR_BYTES / 4;
constexpr int kDoubles = SRK_VECTOR_BYTES / 8;

typedef float vfloat __attribute__((vector_size(SRK_VECTOR_BYTES)));
typedef double vdouble __attribute__((vector_size(SRK_VECTOR_BYTES)));
typedef uint32_t vuint __attribute__((vector_size(SRK_VECTOR_BYTES)));
typedef uint16_t vhalf __attribute__((vector_size(SRK_VECTOR_BYTES / 2)));
typedef uint16_t vhalves __attribute__((vector_size(SRK_VECTOR_BYTES)));  // of two vfloat

// Four lanes, of which three hold a pixel's channels.
typedef float quad __attribute__((vector_size(16)));
typedef uint32_t quad_bits __attribute__((vector_size(16)));

template <class V>
SRK_HD V load_unaligned(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
SRK_HD void store_unaligned(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// Lines that a loop will come by a few thousand cycles later, into the second cache. The processor
// fetches ahead by itself, but only to the end of a page.
template <int kBytes>
SRK_HD void fetch_ahead(const void* p) {
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, 2);
}

// A store past the caches; `p` is aligned to the size of v. Ends with drain_streams().
template <class V>
SRK_HD void store_streaming(void* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    __m512i raw;
    __builtin_memcpy(&raw, &v, 64);
    _mm512_stream_si512(static_cast<__m512i*>(p), raw);
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) {
    __m256i raw;
    __builtin_memcpy(&raw, &v, 32);
    _mm256_stream_si256(static_cast<__m256i*>(p), raw);
    return;
  }
#endif
  store_unaligned(p, v);
}

SRK_HD void drain_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Even and odd elements of two neighbouring vectors, and back.
#if SRK_VECTOR_BYTES == 64
#define SRK_EVEN32 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define SRK_ODD32 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define SRK_ZIP_LOW32 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SRK_ZIP_HIGH32 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define SRK_EVEN64 0, 2, 4, 6, 8, 10, 12, 14
#define SRK_ODD64 1, 3, 5, 7, 9, 11, 13, 15
#define SRK_ZIP_LOW64 0, 8, 1, 9, 2, 10, 3, 11
#define SRK_ZIP_HIGH64 4, 12, 5, 13, 6, 14, 7, 15
#define SRK_ODD16                                                                                \
  1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, \
      51, 53, 55, 57, 59, 61, 63
#elif SRK_VECTOR_BYTES == 32
#define SRK_EVEN32 0, 2, 4, 6, 8, 10, 12, 14
#define SRK_ODD32 1, 3, 5, 7, 9, 11, 13, 15
#define SRK_ZIP_LOW32 0, 8, 1, 9, 2, 10, 3, 11
#define SRK_ZIP_HIGH32 4, 12, 5, 13, 6, 14, 7, 15
#define SRK_EVEN64 0, 2, 4, 6
#define SRK_ODD64 1, 3, 5, 7
#define SRK_ZIP_LOW64 0, 4, 1, 5
#define SRK_ZIP_HIGH64 2, 6, 3, 7
#define SRK_ODD16 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#else
#define SRK_EVEN32 0, 2, 4, 6
#define SRK_ODD32 1, 3, 5, 7
#define SRK_ZIP_LOW32 0, 4, 1, 5
#define SRK_ZIP_HIGH32 2, 6, 3, 7
#define SRK_EVEN64 0, 2
#define SRK_ODD64 1, 3
#define SRK_ZIP_LOW64 0, 2
#define SRK_ZIP_HIGH64 1, 3
#define SRK_ODD16 1, 3, 5, 7, 9, 11, 13, 15
#endif

SRK_HD vfloat bits_to_float(vuint u) {
  vfloat f;
  __builtin_memcpy(&f, &u, sizeof f);
  return f;
}

SRK_HD vuint float_to_bits(vfloat f) {
  vuint u;
  __builtin_memcpy(&u, &f, sizeof u);
  return u;
}

// fp32 -> bf16 in the upper half of each lane: round to nearest even, NaN to the quiet NaN that
// torch writes.
template <class U = vuint, class V>
SRK_HD U round_to_bf16(V f) {
  U u;
  __builtin_memcpy(&u, &f, sizeof u);
  const U half = ((u >> 16) & 1u) + 0x7fffu;
  return f == f ? u + half : U{} + 0x7fc00000u;
}

SRK_HD float to_float(bf16 x) {
  const uint32_t u = uint32_t(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

SRK_HD bf16 to_bf16(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  if (f != f) return bf16{0x7fc0};
  return bf16{uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// Storage type S: compute type, lanes, and scalar and vector loads and stores. store_two: two
// neighbouring vectors, of 16-bit values in one store: on AVX-512 a whole line of the cache.
template <class S>
struct Simd;

template <>
struct Simd<float> {
  using Scalar = float;
  using Vector = vfloat;
  static SRK_HD float get(const float* p) { return *p; }
  static SRK_HD void put(float* p, float x) { *p = x; }
  static SRK_HD vfloat load(const float* p) { return load_unaligned<vfloat>(p); }
  template <bool kStream = false>
  static SRK_HD void store(float* p, vfloat v) {
    kStream ? store_streaming(p, v) : store_unaligned(p, v);
  }
  static SRK_HD void store_two(float* p, vfloat first, vfloat second) {
    store(p, first);
    store(p + kFloats, second);
  }
  static SRK_HD void load2(const float* p, vfloat& even, vfloat& odd) {
    const vfloat a = load(p), b = load(p + kFloats);
    even = __builtin_shufflevector(a, b, SRK_EVEN32);
    odd = __builtin_shufflevector(a, b, SRK_ODD32);
  }
  template <bool kStream = false>
  static SRK_HD void store2(float* p, vfloat even, vfloat odd) {
    store<kStream>(p, __builtin_shufflevector(even, odd, SRK_ZIP_LOW32));
    store<kStream>(p + kFloats, __builtin_shufflevector(even, odd, SRK_ZIP_HIGH32));
  }
};

template <>
struct Simd<double> {
  using Scalar = double;
  using Vector = vdouble;
  static SRK_HD double get(const double* p) { return *p; }
  static SRK_HD void put(double* p, double x) { *p = x; }
  static SRK_HD vdouble load(const double* p) { return load_unaligned<vdouble>(p); }
  template <bool kStream = false>
  static SRK_HD void store(double* p, vdouble v) {
    kStream ? store_streaming(p, v) : store_unaligned(p, v);
  }
  static SRK_HD void store_two(double* p, vdouble first, vdouble second) {
    store(p, first);
    store(p + kDoubles, second);
  }
  static SRK_HD void load2(const double* p, vdouble& even, vdouble& odd) {
    const vdouble a = load(p), b = load(p + kDoubles);
    even = __builtin_shufflevector(a, b, SRK_EVEN64);
    odd = __builtin_shufflevector(a, b, SRK_ODD64);
  }
  template <bool kStream = false>
  static SRK_HD void store2(double* p, vdouble even, vdouble odd) {
    store<kStream>(p, __builtin_shufflevector(even, odd, SRK_ZIP_LOW64));
    store<kStream>(p + kDoubles, __builtin_shufflevector(even, odd, SRK_ZIP_HIGH64));
  }
};

template <>
struct Simd<bf16> {
  using Scalar = float;
  using Vector = vfloat;
  static SRK_HD float get(const bf16* p) { return to_float(*p); }
  static SRK_HD void put(bf16* p, float x) { *p = to_bf16(x); }
  static SRK_HD vfloat load(const bf16* p) {
    return bits_to_float(__builtin_convertvector(load_unaligned<vhalf>(p), vuint) << 16);
  }
  template <bool kStream = false>
  static SRK_HD void store(bf16* p, vfloat v) {
    const vhalf bits = __builtin_convertvector(round_to_bf16(v) >> 16, vhalf);
    kStream ? store_streaming(p, bits) : store_unaligned(p, bits);
  }
  static SRK_HD void store_two(bf16* p, vfloat first, vfloat second) {
    const vhalves bits = __builtin_shufflevector(vhalves(round_to_bf16(first)),
                                                 vhalves(round_to_bf16(second)), SRK_ODD16);
    store_unaligned(p, bits);
  }
  // A 32-bit lane holds a neighbouring pair: the even element below, the odd one above.
  static SRK_HD void load2(const bf16* p, vfloat& even, vfloat& odd) {
    const vuint pairs = load_unaligned<vuint>(p);
    even = bits_to_float(pairs << 16);
    odd = bits_to_float(pairs & 0xffff0000u);
  }
  template <bool kStream = false>
  static SRK_HD void store2(bf16* p, vfloat even, vfloat odd) {
    const vuint pairs = (round_to_bf16(even) >> 16) | (round_to_bf16(odd) & 0xffff0000u);
    kStream ? store_streaming(p, pairs) : store_unaligned(p, pairs);
  }
};

template <>
struct Simd<f16> {
  using Scalar = float;
  using Vector = vfloat;
  static SRK_HD float get(const f16* p) { return float(*p); }
  static SRK_HD void put(f16* p, float x) { *p = f16(x); }
  static SRK_HD vfloat load(const f16* p) {
#if defined(__AVX512F__)
    return vfloat(_mm512_cvtph_ps(load_unaligned<__m256i>(p)));
#elif defined(__AVX2__)
    return vfloat(_mm256_cvtph_ps(load_unaligned<__m128i>(p)));
#else
    vfloat v;
    for (int i = 0; i < kFloats; ++i) v[i] = float(p[i]);
    return v;
#endif
  }
  template <bool kStream = false>
  static SRK_HD void store(f16* p, vfloat v) {
#if defined(__AVX512F__)
    store_unaligned(p, _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
    store_unaligned(p, _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    for (int i = 0; i < kFloats; ++i) p[i] = f16(v[i]);
#endif
  }
  static SRK_HD void store_two(f16* p, vfloat first, vfloat second) {
    f16 both[2 * kFloats];
    store(both, first);
    store(both + kFloats, second);
    store_unaligned(p, load_unaligned<vhalves>(both));
  }
  static SRK_HD void load2(const f16* p, vfloat& even, vfloat& odd) {
    const vfloat a = load(p), b = load(p + kFloats);
    even = __builtin_shufflevector(a, b, SRK_EVEN32);
    odd = __builtin_shufflevector(a, b, SRK_ODD32);
  }
  template <bool kStream = false>
  static SRK_HD void store2(f16* p, vfloat even, vfloat odd) {
    store<kStream>(p, __builtin_shufflevector(even, odd, SRK_ZIP_LOW32));
    store<kStream>(p + kFloats, __builtin_shufflevector(even, odd, SRK_ZIP_HIGH32));
  }
};

// Three values; load_quad may read a fourth.
SRK_HD quad load_quad(const float* p) { return load_unaligned<quad>(p); }
SRK_HD void store_three(float* p, quad v) { __builtin_memcpy(p, &v, 3 * sizeof *p); }

#if defined(__AVX2__)
SRK_HD __m128i load_halves(const void* p) {
  return _mm_loadl_epi64(static_cast<const __m128i*>(p));
}
SRK_HD void store_halves(void* p, __m128i three) {
  const int last = _mm_extract_epi16(three, 2);
  __builtin_memcpy(p, &three, 4);
  __builtin_memcpy(static_cast<char*>(p) + 4, &last, 2);
}

SRK_HD quad load_quad(const bf16* p) {
  return quad(_mm_slli_epi32(_mm_cvtepu16_epi32(load_halves(p)), 16));
}
SRK_HD quad load_quad(const f16* p) { return quad(_mm_cvtph_ps(load_halves(p))); }
SRK_HD void store_three(bf16* p, quad v) {
  const __m128i bits = __m128i(round_to_bf16<quad_bits>(v) >> 16);
  store_halves(p, _mm_packus_epi32(bits, bits));
}
SRK_HD void store_three(f16* p, quad v) {
  store_halves(p, _mm_cvtps_ph(__m128(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
template <class S>
SRK_HD quad load_quad(const S* p) {
  return quad{Simd<S>::get(p), Simd<S>::get(p + 1), Simd<S>::get(p + 2), 0};
}
template <class S>
SRK_HD void store_three(S* p, quad v) {
  for (int i = 0; i < 3; ++i) Simd<S>::put(p + i, v[i]);
}
#endif

// One bit per lane: x > y. NaN gives 0.
SRK_HD uint32_t greater_bits(vfloat x, vfloat y) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(__m512(x), __m512(y), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(__m256(x), __m256(y), _CMP_GT_OQ)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kFloats; ++i) bits |= uint32_t(x[i] > y[i]) << i;
  return bits;
#endif
}

// Lane i of the result is lane at[i] of x, at[i] < kFloats.
SRK_HD vfloat picked(vfloat x, vuint at) {
#if defined(__AVX512F__)
  return vfloat(_mm512_permutexvar_ps(__m512i(at), __m512(x)));
#elif defined(__AVX2__)
  return vfloat(_mm256_permutevar8x32_ps(__m256(x), __m256i(at)));
#else
  vfloat out;
  for (int i = 0; i < kFloats; ++i) out[i] = x[at[i]];
  return out;
#endif
}

// x where `plus` has a bit, -x where `minus` has one, 0 elsewhere. The second takes the bit
// patterns of bf16 or fp16: both have their sign in the highest bit.
SRK_HD vfloat signed_by(uint32_t plus, uint32_t minus, vfloat x) {
#if defined(__AVX512F__)
  const __m512 positive = _mm512_maskz_mov_ps(__mmask16(plus), __m512(x));
  return vfloat(_mm512_mask_sub_ps(positive, __mmask16(minus), _mm512_setzero_ps(), __m512(x)));
#else
  vuint lane;
  for (int i = 0; i < kFloats; ++i) lane[i] = 1u << i;
  return (lane & plus) != 0 ? x : ((lane & minus) != 0 ? -x : vfloat{});
#endif
}

SRK_HD vhalves signed_by(uint32_t plus, uint32_t minus, vhalves x) {
#if defined(__AVX512F__)
  const __m512i kept = _mm512_maskz_mov_epi16(__mmask32(plus | minus), __m512i(x));
  return vhalves(
      _mm512_xor_si512(kept, _mm512_maskz_set1_epi16(__mmask32(minus), int16_t(0x8000))));
#else
  vhalves lane;
  for (int i = 0; i < 2 * kFloats; ++i) lane[i] = uint16_t(1u << i);
  const vhalves kept = (lane & uint16_t(plus | minus)) != 0 ? x : vhalves{};
  return (lane & uint16_t(minus)) != 0 ? kept ^ uint16_t(0x8000) : kept;
#endif
}

template <class V>
constexpr int lanes();
template <>
constexpr int lanes<vfloat>() {
  return kFloats;
}
template <>
constexpr int lanes<vdouble>() {
  return kDoubles;
}

SRK_HD vfloat broadcast(float x, vfloat) { return vfloat{} + x; }
SRK_HD vdouble broadcast(double x, vdouble) { return vdouble{} + x; }

SRK_HD float absolute(float x) { return __builtin_fabsf(x); }
SRK_HD double absolute(double x) { return __builtin_fabs(x); }
SRK_HD vfloat absolute(vfloat x) { return bits_to_float(float_to_bits(x) & 0x7fffffffu); }
SRK_HD vdouble absolute(vdouble x) { return x < 0.0 ? -x : x; }

SRK_HD float square_root(float x) { return __builtin_sqrtf(x); }
SRK_HD double square_root(double x) { return __builtin_sqrt(x); }
#if defined(__AVX512F__)
SRK_HD vfloat square_root(vfloat x) { return vfloat(_mm512_sqrt_ps(__m512(x))); }
SRK_HD vdouble square_root(vdouble x) { return vdouble(_mm512_sqrt_pd(__m512d(x))); }
#elif defined(__AVX2__)
SRK_HD vfloat square_root(vfloat x) { return vfloat(_mm256_sqrt_ps(__m256(x))); }
SRK_HD vdouble square_root(vdouble x) { return vdouble(_mm256_sqrt_pd(__m256d(x))); }
#else
template <class V>
SRK_HD V square_root(V x) {
  for (int i = 0; i < lanes<V>(); ++i) x[i] = square_root(x[i]);
  return x;
}
#endif

}  // namespace srk::SRK_ISA
