// What a call's decisions depend on, as bytes that a dictionary can look up: of each tensor its
// dtype, shape, strides and whether it requires a gradient.
#pragma once
#include <cstring>

#include "tensor.h"

namespace srk {

constexpr int kMaxTensors = 4;

inline PyObject* attribute(const char* module, const char* name) {
  return pybind11::object(pybind11::module_::import(module).attr(name)).release().ptr();
}

// Functions of Python without arguments, that say by a true value that something watches calls.
inline PyObject*& watchers() {
  static PyObject* tuple = PyTuple_New(0);
  return tuple;
}

inline void set_watchers(const pybind11::tuple& functions) {
  Py_DECREF(watchers());
  watchers() = pybind11::tuple(functions).release().ptr();
}

// signature(*tensors): bytes; None if something watches, or unless each is a torch.Tensor or
// Parameter itself, no subclass, dense, on the CPU, of at most five dimensions and without a
// pending negation; or None.
inline PyObject* checked_signature(PyObject* const* arguments, Py_ssize_t count) {
  static PyObject* const tensor_type = attribute("torch", "Tensor");
  static PyObject* const parameter_type = attribute("torch.nn", "Parameter");
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  constexpr int kCpu = 1, kMaxDimensions = 5;

  int64_t words[kMaxTensors * (2 + 2 * kMaxDimensions)];
  int64_t* at = words;
  if (count > kMaxTensors) Py_RETURN_NONE;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(watchers()); ++i) {
    const auto answer = pybind11::reinterpret_steal<pybind11::object>(
        PyObject_CallNoArgs(PyTuple_GET_ITEM(watchers(), i)));
    const int watches = answer ? PyObject_IsTrue(answer.ptr()) : -1;
    if (watches < 0) return nullptr;
    if (watches) Py_RETURN_NONE;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* object = arguments[i];
    if (object == Py_None) {
      *at++ = -1;
      continue;
    }
    PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != tensor_type && type != parameter_type) Py_RETURN_NONE;
    Tensor tensor;
    const dlpack::Tensor& raw = tensor.raw;
    if (dlpack::exchange_api().from_object(object, &tensor.raw) != 0) {
      PyErr_Clear();
      Py_RETURN_NONE;
    }
    if (raw.device_type != kCpu || raw.ndim > kMaxDimensions) Py_RETURN_NONE;
    int64_t elements = 1;
    for (int k = 0; k < raw.ndim; ++k) elements *= raw.shape[k];
    if (!raw.data && elements > 0) Py_RETURN_NONE;  // zeros that PyTorch has not written
    const auto negated =
        pybind11::reinterpret_steal<pybind11::object>(PyObject_CallMethodNoArgs(object, is_neg));
    const auto recorded =
        pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttr(object, requires_grad));
    if (!negated || !recorded) return nullptr;
    if (negated.ptr() == Py_True) Py_RETURN_NONE;
    *at++ = raw.ndim << 1 | (recorded.ptr() == Py_True);
    *at++ = raw.dtype.code << 8 | raw.dtype.bits;
    std::memcpy(at, raw.shape, sizeof(int64_t) * size_t(raw.ndim));
    std::memcpy(at + raw.ndim, raw.strides, sizeof(int64_t) * size_t(raw.ndim));
    at += 2 * raw.ndim;
  }
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(words),
                                   reinterpret_cast<char*>(at) - reinterpret_cast<char*>(words));
}

// As Python calls it: an exception must not leave a plain C function.
inline PyObject* signature(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  try {
    return checked_signature(arguments, count);
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace srk
