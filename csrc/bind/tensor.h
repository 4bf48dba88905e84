// Tensors as arguments of the Python modules, without a torch header: read from the Python object
// through DLPack's C exchange interface, which torch has had since 2.10. That takes tens of
// nanoseconds; asking for a pointer, a shape and strides in Python takes a microsecond.
#pragma once
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "common/types.h"

namespace srk {

// DLPack's C interface, version 1 (github.com/dmlc/dlpack), as far as it is used here.
namespace dlpack {

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*from_object)(void* object, Tensor* out);
  void* current_stream;
};

inline const ExchangeApi& exchange_api() {
  static const ExchangeApi* const api = [] {
    const auto capsule = pybind11::module_::import("torch")
                             .attr("Tensor")
                             .attr("__dlpack_c_exchange_api__")
                             .cast<pybind11::capsule>();
    const auto* found = static_cast<const ExchangeApi*>(capsule.get_pointer());
    while (found && found->major != 1) found = found->previous;
    if (!found || !found->from_object)
      throw std::runtime_error(
          "this torch does not offer version 1 of DLPack's exchange interface");
    return found;
  }();
  return *api;
}

}  // namespace dlpack

// A tensor of at most five dimensions; None has null data. Valid while the Python object is.
struct Tensor {
  dlpack::Tensor raw{};

  bool given() const { return raw.dtype.bits != 0; }

  void* data() const { return static_cast<char*>(raw.data) + raw.byte_offset; }

  DType dtype() const {
    constexpr int kFloat = 2, kBfloat = 4;
    const auto [code, bits, lanes] = raw.dtype;
    if (code == kFloat && bits == 32) return DType::f32;
    if (code == kBfloat && bits == 16) return DType::bf16;
    if (code == kFloat && bits == 16) return DType::f16;
    if (code == kFloat && bits == 64) return DType::f64;
    throw std::invalid_argument("not a floating-point tensor");
  }

  void require(int ndim) const {
    if (raw.ndim != ndim) throw std::invalid_argument("tensor of another number of dimensions");
  }

  Shape shape() const {
    require(4);
    return {raw.shape[0], raw.shape[1], raw.shape[2], raw.shape[3]};
  }

  // With 1 for a single column, whose true stride means nothing.
  Strides strides() const {
    require(4);
    const int64_t* s = raw.strides;
    return {s[0], s[1], s[2], raw.shape[3] > 1 ? s[3] : 1};
  }

  // The elements of a vector side by side; null where it is None.
  void* vector() const {
    if (!given()) return nullptr;
    require(1);
    if (raw.shape[0] > 1 && raw.strides[0] != 1)
      throw std::invalid_argument("vector whose elements are apart");
    return data();
  }

  // As an image; as a scalar where it has no dimensions; as absent where it is None.
  Operand operand() const {
    if (!given()) return {};
    return {dtype(), data(), raw.ndim ? strides() : Strides{}};
  }
};

}  // namespace srk

namespace pybind11::detail {

template <>
struct type_caster<srk::Tensor> {
  PYBIND11_TYPE_CASTER(srk::Tensor, const_name("torch.Tensor | None"));

  bool load(handle object, bool) {
    if (object.is_none()) return true;
    if (srk::dlpack::exchange_api().from_object(object.ptr(), &value.raw) == 0) return true;
    PyErr_Clear();
    return false;  // a TypeError that shows what came
  }
};

}  // namespace pybind11::detail
