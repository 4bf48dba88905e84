// Operands whose element type is known at run time only: where an element lies, and runs of them
// converted to and from the type that is computed in.
#pragma once
#include "../../common/weighted_loss.h"
#include "../simd.h"

namespace srk::SRK_ISA {
namespace {

int64_t element_size(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

const void* address(const Operand& o, int64_t offset) {
  return static_cast<const char*>(o.data) + offset * element_size(o.dtype);
}

int64_t offset(const Operand& o, int64_t n, int64_t c, int64_t row) {
  return n * o.stride.n + c * o.stride.c + row * o.stride.h;
}

// Start of a row of an output; null if it is not wanted.
void* row_of(const Operand& o, int64_t n, int64_t c, int64_t row) {
  return o.data ? const_cast<void*>(address(o, offset(o, n, c, row))) : nullptr;
}

// call(value of the type t), for the types that are computed with in fp32: a switch from a type
// known at run time to one known to the compiler.
template <class Call>
auto with_type(DType t, Call call) {
  return t == DType::f32 ? call(0.0f) : t == DType::bf16 ? call(bf16{}) : call(f16{});
}

template <class F, class S>
void convert_in(const S* from, F* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) to[i] = F(Simd<S>::get(from + i));
}

template <class F, class S>
void convert_out(const F* from, S* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) Simd<S>::put(to + i, typename Simd<S>::Scalar(from[i]));
}

template <class F>
void read(DType t, const void* from, F* to, int64_t size) {
  switch (t) {
    case DType::f32:
      return convert_in(static_cast<const float*>(from), to, size);
    case DType::bf16:
      return convert_in(static_cast<const bf16*>(from), to, size);
    case DType::f16:
      return convert_in(static_cast<const f16*>(from), to, size);
    case DType::f64:
      return convert_in(static_cast<const double*>(from), to, size);
  }
}

template <class F>
void write(DType t, void* to, const F* from, int64_t size) {
  switch (t) {
    case DType::f32:
      return convert_out(from, static_cast<float*>(to), size);
    case DType::bf16:
      return convert_out(from, static_cast<bf16*>(to), size);
    case DType::f16:
      return convert_out(from, static_cast<f16*>(to), size);
    case DType::f64:
      return convert_out(from, static_cast<double*>(to), size);
  }
}

}  // namespace
}  // namespace srk::SRK_ISA
