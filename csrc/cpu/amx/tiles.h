// What the kernels on Intel AMX share: scratch, the tile registers, and whether there are any.
#pragma once
#include <cstdint>
#include <cstdlib>

namespace srk::amx {

// Asks the kernel for the tile registers; false where processor or kernel have none.
bool available();

constexpr int64_t kTile = 16;  // rows of a tile; one holds 64 bytes
constexpr int64_t kLine = 64;  // bytes of a line of cache

template <class T>
struct Aligned {
  T* data;
  explicit Aligned(int64_t size)
      : data(static_cast<T*>(
            std::aligned_alloc(kLine, (sizeof(T) * size_t(size) + kLine - 1) / kLine * kLine))) {}
  ~Aligned() { std::free(data); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
};

// All eight registers are full tiles.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace srk::amx
