// malloc'ed scratch. A std::vector would leak a file's instruction set into shared template code.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace srk::SRK_ISA {

template <class T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t size)
      : data(static_cast<T*>(std::malloc(sizeof(T) * size_t(size > 0 ? size : 1)))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T& operator[](int64_t i) const { return data[i]; }
};

}  // namespace srk::SRK_ISA
