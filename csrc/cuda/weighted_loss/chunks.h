// A chunk: V elements that are contiguous in memory in all images, and the weights that belong to
// them. V columns of one channel's plane (planes: NCHW), or V values of the channels of
// neighbouring pixels (pixels: channels_last); V = 1 is the general case, for any strides. For
// chunk k:
//
//   y = k * V / W, x = k * V % W;                      // item_at
//   for (i = 0; i < V; ++i) {                          // resize_chunk
//     top = (1 - share[x]) * map[low[y]][left[x]] + share[x] * map[low[y]][right[x]];
//     bottom = (1 - share[x]) * map[high[y]][left[x]] + share[x] * map[high[y]][right[x]];
//     w[i] = (1 - share[y]) * top + share[y] * bottom;
//     if (++x == W) x = 0, ++y;                        // of pixels, after their last channel
//   }
//
// low, high, left, right and share, the two rows and columns of the map around a place and the
// share of the second, are computed on the way. w exists in registers only: no resized map is
// written to memory or read from it.
#pragma once
#include "plan.h"

namespace srk::cuda {
namespace {

// Blocks that must fit an SM, which bounds a kernel to 64 or 80 registers: half of its threads are
// enough to keep memory busy with 16-byte loads, and without a bound the compiler, depending on the
// architecture, takes twice as many or spills to take fewer.
template <class A, bool WithMap = false>
constexpr int kBlocks = WithMap || sizeof(A) == 8 ? 3 : 4;

// V contiguous elements of an operand, typed by T, or by the operand where T is Any.
template <class T, int V, class A>
__device__ __forceinline__ void load_chunk(const Operand& o, int64_t offset, A (&to)[V]) {
  if constexpr (std::is_same_v<T, Any>)
    load<V>(o.data, o.dtype, offset, to);
  else
    load<V>(static_cast<const T*>(o.data) + offset, to);
}

template <class T, int V, class A>
__device__ __forceinline__ void store_chunk(const Operand& o, int64_t offset, const A (&from)[V]) {
  if constexpr (std::is_same_v<T, Any>)
    store<V>(o.data, o.dtype, offset, from);
  else
    store<V>(static_cast<T*>(o.data) + offset, from);
}

// Walks the map in the order of the image's chunks.
template <class A, class W>
struct MapReader {
  const Map<A>& map;
  const W* plane;
  const W* upper;
  const W* lower;
  A lower_share;

  __device__ __forceinline__ void row(int32_t y) {
    int32_t low = y, high = y;
    lower_share = A(0);
    if (!map.same_size) map.rows.source(y, low, high, lower_share);
    upper = plane + low * map.stride.h;
    lower = plane + high * map.stride.h;
  }

  __device__ __forceinline__ A at(int32_t x, int64_t channel_offset) const {
    if (map.same_size) return widen(upper[x * map.stride.w + channel_offset]);
    int32_t low, high;
    A share;
    map.columns.source(x, low, high, share);
    const int64_t left = low * map.stride.w + channel_offset;
    const int64_t right = high * map.stride.w + channel_offset;
    const A top = (A(1) - share) * A(widen(upper[left])) + share * A(widen(upper[right]));
    const A bottom = (A(1) - share) * A(widen(lower[left])) + share * A(widen(lower[right]));
    return (A(1) - lower_share) * top + lower_share * bottom;
  }
};

struct Item {
  int64_t n, first_channel;  // of the group; over pixels 0
  int32_t channels;          // in the group
  int32_t y, x, channel;     // of the chunk's first element
};

template <int V, bool Pixels>
__device__ __forceinline__ Item item_at(int64_t index, const Tiling& tiling) {
  Item item;
  int64_t chunk, group, x;
  index = divide(index, tiling.chunks, chunk);
  item.n = divide(index, tiling.groups, group);
  item.first_channel = group * tiling.channels;
  const int64_t rest = tiling.shape.c - item.first_channel;
  item.channels = Pixels ? 1 : int32_t(rest < tiling.channels ? rest : tiling.channels);
  int64_t element = chunk * V, channel = 0;
  if (Pixels) element = divide(element, tiling.shape.c, channel);
  item.y = int32_t(divide(element, tiling.shape.w, x));
  item.x = int32_t(x);
  item.channel = int32_t(channel);
  return item;
}

__device__ __forceinline__ int64_t offset_of(const Strides& s, const Item& item) {
  return item.n * s.n + (item.first_channel + item.channel) * s.c + item.y * s.h + item.x * s.w;
}

// The resized map at the chunk's elements.
template <int V, bool Pixels, class A, class W>
__device__ __forceinline__ void resize_typed(const Map<A>& map, const Tiling& tiling,
                                             const Item& item, A (&w)[V]) {
  const W* data = static_cast<const W*>(map.data) + item.n * map.stride.n;
  MapReader<A, W> reader{map, data + item.first_channel * map.stride.c, nullptr, nullptr, A(0)};
  int32_t y = item.y, x = item.x, channel = item.channel;
  const int32_t channels = int32_t(tiling.shape.c), columns = int32_t(tiling.shape.w);
  reader.row(y);
  A value = A(0);
  bool moved = true;
  // Not unrolled: loads of the map hit L1 and many warps hide them, and V copies of this are most
  // of the kernel's code. So w is written by selects: it must stay in registers.
#pragma unroll 1
  for (int i = 0; i < V; ++i) {
    if (moved || map.per_channel) value = reader.at(x, Pixels ? channel * map.stride.c : 0);
#pragma unroll
    for (int j = 0; j < V; ++j) w[j] = i == j ? value : w[j];
    moved = !Pixels || ++channel == channels;
    if (moved) {
      channel = 0;
      if (++x == columns && i + 1 < V) {
        x = 0;
        reader.row(++y);
      }
    }
  }
}

template <int V, bool Pixels, class A>
__device__ __forceinline__ void resize_chunk(const Map<A>& map, const Tiling& tiling,
                                             const Item& item, A (&w)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) w[i] = A(1);
  if (map.data == nullptr) return;
  with_element<A>(map.dtype, [&](auto tag) {
    resize_typed<V, Pixels, A, decltype(tag)>(map, tiling, item, w);
  });
}

}  // namespace
}  // namespace srk::cuda
