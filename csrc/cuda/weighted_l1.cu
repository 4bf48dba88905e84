// Weighted L1 loss on CUDA.
//
//   forward    loss = sum over n, c, y, x of w |input - target|  (/ N C H W, or / sum of w)
//   backward   d loss / d input  =  g w sgn(input - target)      g: grad times the same divisor
//              d loss / d target = -d loss / d input
//              d loss / d cell   =  sum of g b (|input - target| - m)
//
// w is the map resized bilinearly: w(y, x) = sum over cells of b(cell, y, x) weight(cell), with at
// most four cells per pixel; it exists in registers only. m is the loss where the sum of weights
// divides (that sum depends on the weights too), and 0 otherwise. Nothing is saved: backward reads
// the operands again and recomputes the sign, 3 tensors moved against 2 read forward.
//
// Images are walked in "chunks" of V elements, contiguous in memory: V columns of one channel plane
// (planes: NCHW), or V values of the channels of neighbouring pixels (pixels: channels_last). A
// thread resizes the map for its chunk once and, over planes, uses it for several channels. V = 1
// is the general case, for any strides. Same-dtype images are typed at compile time, the rest at
// run time, once per chunk.
//
// Sums are exactly repeatable, on every GPU: the grid depends on shapes alone, lanes sum in fp32
// within a chunk and in fp64 across chunks, blocks leave fp64 partial sums in the workspace, and
// the block that finishes last adds those up in order. So forward is one launch. Backward too: the
// first blocks gather the gradient of the map, cell by cell, the rest write the images' gradients.
//
// No streaming hints: what backward reads was read by forward, and stays in L2 at training sizes.
#include <cmath>
#include <initializer_list>

#include "../common/weighted_l1.h"
#include "device.h"
#include "ops.h"

namespace srk::cuda {
namespace {

constexpr int64_t kMostBlocks = 4096;  // of a forward launch: their partial sums fit the workspace
constexpr int64_t kTicketBytes = 16;

// Blocks that must fit an SM, which bounds a kernel to 64 or 80 registers: half of its threads are
// enough to keep memory busy with 16-byte loads, and without a bound the compiler, depending on the
// architecture, takes twice as many or spills to take fewer.
template <class A, bool WithMap = false>
constexpr int kBlocks = WithMap || sizeof(A) == 8 ? 3 : 4;

// The workspace: a ticket, then partial sums.
struct Workspace {
  unsigned* ticket;
  double* partial;

  explicit Workspace(void* data)
      : ticket(static_cast<unsigned*>(data)),
        partial(reinterpret_cast<double*>(static_cast<char*>(data) + kTicketBytes)) {}
};

// Operands

struct Any {};  // element type known at run time only

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

// The weight map and its resize to the image. Broadcast dimensions have stride 0.
template <class A>
struct Map {
  const void* data;  // null: a weight of one
  DType dtype;
  Strides stride;
  bool per_channel;
  bool same_size;  // nothing to resize: a plain copy, as in PyTorch on CUDA
  Resize<A, int32_t> rows, columns;
};

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

// Chunks

// How the image is cut. An item is one chunk of one group of channels of one image: groups of
// `channels` planes share the resized map; over pixels the channels are inside the chunk.
struct Tiling {
  Shape shape;
  int64_t chunks, groups, items;
  int32_t channels;  // of a group
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

// Forward

template <class A>
struct Forward {
  Operand input, target, out;
  Map<A> map;
  Tiling tiling;
  Reduction reduction;
  bool by_weight;
  A* statistics;
  unsigned* ticket;
  double* partial;  // (blocks, 2)
};

template <class T, class A, int V, bool Pixels>
__global__ void __launch_bounds__(kThreads, kBlocks<A>) weighted_l1_forward_kernel(Forward<A> f) {
  double total = 0, weight_total = 0;
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t index = thread_index(); index < f.tiling.items; index += step) {
    const Item item = item_at<V, Pixels>(index, f.tiling);
    A w[V];
    resize_chunk<V, Pixels>(f.map, f.tiling, item, w);
    int64_t at_input = offset_of(f.input.stride, item);
    int64_t at_target = offset_of(f.target.stride, item);
    int64_t at_out = offset_of(f.out.stride, item);
    A sum = A(0);
#pragma unroll 2
    for (int32_t c = 0; c < item.channels; ++c) {
      A x[V], t[V];
      load_chunk<T>(f.input, at_input, x);
      load_chunk<T>(f.target, at_target, t);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        x[i] = w[i] * std::fabs(x[i] - t[i]);
        sum += x[i];
      }
      if (f.reduction == Reduction::none) store<V>(f.out.data, f.out.dtype, at_out, x);
      at_input += f.input.stride.c;
      at_target += f.target.stride.c;
      at_out += f.out.stride.c;
    }
    total += double(sum);
    if (f.by_weight) {
      A weights = A(0);
#pragma unroll
      for (int i = 0; i < V; ++i) weights += w[i];
      weight_total += double(weights) * item.channels;
    }
  }
  if (f.reduction == Reduction::none) return;

  __shared__ double scratch[2][kThreads / 32];
  total = block_sum(total, scratch[0]);
  if (f.by_weight) weight_total = block_sum(weight_total, scratch[1]);
  if (threadIdx.x == 0) {
    f.partial[2 * blockIdx.x] = total;
    f.partial[2 * blockIdx.x + 1] = weight_total;
  }
  if (!is_last_block(f.ticket, gridDim.x)) return;

  const volatile double* partial = f.partial;
  total = weight_total = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) {
    total += partial[2 * i];
    weight_total += partial[2 * i + 1];
  }
  total = block_sum(total, scratch[0]);
  if (f.by_weight) weight_total = block_sum(weight_total, scratch[1]);
  if (threadIdx.x != 0) return;
  // Over nothing a mean is 0 / 0, NaN as in PyTorch.
  const Shape& s = f.tiling.shape;
  if (f.reduction == Reduction::mean)
    total /= f.by_weight ? weight_total : double(s.n) * double(s.c) * double(s.h) * double(s.w);
  const double loss[1] = {total};
  store<1>(f.out.data, f.out.dtype, 0, loss);
  if (f.statistics) {
    f.statistics[0] = A(total);
    f.statistics[1] = A(weight_total);
  }
}

// Backward

// The gradient of the map is gathered: `lanes` threads sum over all that a cell touches, in every
// image and channel that shares it, and add up in a fixed order. Lanes are dealt first to the
// dimension that is contiguous in memory. More than a block's lanes are `slices` blocks, whose sums
// the last of them adds.
struct Gather {
  Shape map;                                    // the map's shape
  int64_t cells;                                // n c h w of it
  int32_t lanes, slices;                        // of a cell
  int32_t log_columns, log_rows, log_channels;  // lanes = the product of their powers of two
  int64_t blocks;
  double inverse_rows, inverse_columns;  // image samples per map sample
};

template <class A>
struct Backward {
  Operand grad, input, target, grad_input, grad_target, grad_weight;
  Map<A> map;
  Tiling tiling;
  Gather gather;
  Reduction reduction;
  const A* statistics;
  unsigned* ticket;
  double* partial;  // (cells, slices)
};

// What multiplies sign and residual; for Reduction::none grad differs by element and stays out.
template <class A>
__device__ __forceinline__ A scale_of(const Backward<A>& b) {
  const Shape& s = b.tiling.shape;
  if (s.n * s.c == 0) return A(0);  // the map's gradient of nothing is 0, whatever the divisor
  if (b.reduction == Reduction::none) return A(1);
  A grad[1];
  load<1>(b.grad.data, b.grad.dtype, 0, grad);
  if (b.statistics) return grad[0] / b.statistics[1];
  if (b.reduction == Reduction::sum) return grad[0];
  return grad[0] / A(double(s.n) * double(s.c) * double(s.h) * double(s.w));
}

// Outputs that read cell i along one axis, widened by rounding's worth: first <= y < last. Samples
// before the first map sample are clamped to it and read cells 0 and 1.
template <class A>
__device__ __forceinline__ void footprint(const Resize<A, int32_t>& resize, double inverse_scale,
                                          int32_t i, int32_t size, int32_t& first, int32_t& last) {
  first = 0, last = size;
  const double shift = resize.align_corners ? 0.0 : 0.5;
  const double low = (i - 1 + shift) * inverse_scale - shift - 2;
  const double high = (i + 1 + shift) * inverse_scale - shift + 3;
  if (i > 1 && low > 0) first = low < size ? int32_t(low) : size;
  if (i < resize.in - 1 && high < size) last = int32_t(high);
}

// b(cell i, output y) along one axis; false if y does not read the cell. A share of zero is read:
// PyTorch lets NaN through there.
template <class A>
__device__ __forceinline__ bool share_of(const Map<A>& map, const Resize<A, int32_t>& resize,
                                         int32_t i, int32_t y, A& share) {
  if (map.same_size) {
    share = A(1);
    return y == i;
  }
  int32_t low, high;
  A above;
  resize.source(y, low, high, above);
  share = (low == i ? A(1) - above : A(0)) + (high == i ? above : A(0));
  return low == i || high == i;
}

// Which cell of the map, by its place in (n, c, row, column) order.
struct Cell {
  int32_t n, c, i, j;
};
__device__ __forceinline__ Cell cell_at(int64_t index, const Shape& map) {
  int64_t c, i, j;
  index = divide(index, map.w, j);
  index = divide(index, map.h, i);
  const int64_t n = divide(index, map.c, c);
  return {int32_t(n), int32_t(c), int32_t(i), int32_t(j)};
}

// What one lane adds to its cell, before the scale.
template <class T, class A, bool Pixels>
__device__ __forceinline__ double lane_sum(const Backward<A>& b, const Cell& cell, int32_t lane) {
  const Gather& g = b.gather;
  const Shape& shape = b.tiling.shape;
  const auto deal = [&lane](int32_t log) {
    const int32_t mine = lane & ((1 << log) - 1);
    lane >>= log;
    return mine;
  };
  int32_t lane_x, lane_y, lane_c;
  if (Pixels) {
    lane_c = deal(g.log_channels), lane_x = deal(g.log_columns), lane_y = deal(g.log_rows);
  } else {
    lane_x = deal(g.log_columns), lane_y = deal(g.log_rows), lane_c = deal(g.log_channels);
  }

  int32_t y_first, y_last, x_first, x_last;
  footprint(b.map.rows, g.inverse_rows, cell.i, int32_t(shape.h), y_first, y_last);
  footprint(b.map.columns, g.inverse_columns, cell.j, int32_t(shape.w), x_first, x_last);
  const bool every_n = g.map.n == 1, every_c = g.map.c == 1;
  const int32_t n_first = every_n ? 0 : cell.n, n_last = every_n ? int32_t(shape.n) : cell.n + 1;
  const int32_t c_first = (every_c ? 0 : cell.c) + lane_c;
  const int32_t c_last = every_c ? int32_t(shape.c) : cell.c + 1;
  const int32_t step_c = 1 << g.log_channels;
  const A mean = b.statistics ? b.statistics[0] : A(0);

  double total = 0;
  for (int32_t x = x_first + lane_x; x < x_last; x += 1 << g.log_columns) {
    A across, along;
    if (!share_of(b.map, b.map.columns, cell.j, x, across)) continue;
    for (int32_t y = y_first + lane_y; y < y_last; y += 1 << g.log_rows) {
      if (!share_of(b.map, b.map.rows, cell.i, y, along)) continue;
#pragma unroll 1
      for (int32_t n = n_first; n < n_last; ++n) {
        const Item item{n, c_first, 1, y, x, 0};
        int64_t at_input = offset_of(b.input.stride, item);
        int64_t at_target = offset_of(b.target.stride, item);
        int64_t at_grad = offset_of(b.grad.stride, item);
        A sum = A(0);
#pragma unroll 1
        for (int32_t c = c_first; c < c_last; c += step_c) {
          A u[1], t[1], grad[1] = {A(1)};
          load_chunk<T>(b.input, at_input, u);
          load_chunk<T>(b.target, at_target, t);
          if (b.reduction == Reduction::none) load<1>(b.grad.data, b.grad.dtype, at_grad, grad);
          sum += grad[0] * (std::fabs(u[0] - t[0]) - mean);
          at_input += step_c * b.input.stride.c;
          at_target += step_c * b.target.stride.c;
          at_grad += step_c * b.grad.stride.c;
        }
        total += double(along * across) * double(sum);
      }
    }
  }
  return total;
}

template <class T, class A, bool Pixels>
__device__ __forceinline__ void gather_cells(const Backward<A>& b) {
  __shared__ double scratch[kThreads / 32];
  const Gather& g = b.gather;
  int64_t lane;
  int64_t cell = divide(thread_index(), g.lanes, lane);
  double total = 0;
  if (cell < g.cells) total = lane_sum<T, A, Pixels>(b, cell_at(cell, g.map), int32_t(lane));
  total = g.lanes <= 32 ? group_sum(total, g.lanes) : block_sum(total, scratch);

  // One thread writes one cell; of sliced cells, the threads of the last block write all.
  int64_t last_cell = lane == 0 ? cell : -1;
  if (g.slices > 1) {
    if (threadIdx.x == 0) b.partial[blockIdx.x] = total;
    if (!is_last_block(b.ticket, unsigned(g.blocks))) return;
    cell = threadIdx.x;
    last_cell = g.cells - 1;
  }
  const volatile double* partial = b.partial;
  for (; cell <= last_cell && cell < g.cells; cell += kThreads) {
    if (g.slices > 1) {
      total = 0;
      for (int32_t i = 0; i < g.slices; ++i) total += partial[cell * g.slices + i];
    }
    const Cell at = cell_at(cell, g.map);
    const Strides& s = b.grad_weight.stride;
    const double scaled[1] = {total * double(scale_of(b))};
    store<1>(b.grad_weight.data, b.grad_weight.dtype,
             at.n * s.n + at.c * s.c + at.i * s.h + at.j * s.w, scaled);
  }
}

// WithMap: the first blocks gather the map's gradient. Without them the kernel needs fewer
// registers, so more of it is in flight.
template <class T, class A, int V, bool Pixels, bool WithMap>
__global__ void __launch_bounds__(kThreads, kBlocks<A, WithMap>)
    weighted_l1_backward_kernel(Backward<A> b) {
  if constexpr (WithMap) {
    if (int64_t(blockIdx.x) < b.gather.blocks) return gather_cells<T, A, Pixels>(b);
  }

  const int64_t index = thread_index() - b.gather.blocks * kThreads;
  if (index >= b.tiling.items) return;
  const Item item = item_at<V, Pixels>(index, b.tiling);
  A w[V];
  resize_chunk<V, Pixels>(b.map, b.tiling, item, w);
  const A scale = scale_of(b);
#pragma unroll
  for (int i = 0; i < V; ++i) w[i] *= scale;
  int64_t at_input = offset_of(b.input.stride, item);
  int64_t at_target = offset_of(b.target.stride, item);
  int64_t at_grad = offset_of(b.grad.stride, item);
  int64_t at_grad_input = offset_of(b.grad_input.stride, item);
  int64_t at_grad_target = offset_of(b.grad_target.stride, item);
  // Not unrolled: with its branches on what is wanted, two rounds take the registers of two blocks.
#pragma unroll 1
  for (int32_t c = 0; c < item.channels; ++c) {
    A x[V], t[V];
    load_chunk<T>(b.input, at_input, x);
    load_chunk<T>(b.target, at_target, t);
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = w[i] * sign(x[i] - t[i]);
    if (b.reduction == Reduction::none) {
      load<V>(b.grad.data, b.grad.dtype, at_grad, t);
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] *= t[i];
    }
    if (b.grad_input.data) store_chunk<T>(b.grad_input, at_grad_input, x);
    if (b.grad_target.data) {
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = -x[i];
      store_chunk<T>(b.grad_target, at_grad_target, x);
    }
    at_input += b.input.stride.c;
    at_target += b.target.stride.c;
    at_grad += b.grad.stride.c;
    at_grad_input += b.grad_input.stride.c;
    at_grad_target += b.grad_target.stride.c;
  }
}

// Which kernel

int64_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

// PyTorch leaves the stride of a dimension of one element arbitrary; it must not decide anything.
Operand tidy(const Operand& o, const Shape& s) {
  const Strides& t = o.stride;
  return {o.dtype,
          o.data,
          {s.n > 1 ? t.n : 0, s.c > 1 ? t.c : 0, s.h > 1 ? t.h : 0, s.w > 1 ? t.w : 1}};
}

// Every chunk of V elements, in the order of planes or of pixels, is contiguous and aligned in `o`.
bool fits(const Operand& o, const Shape& s, int64_t v, bool pixels) {
  if (o.data == nullptr) return true;
  const int64_t row = s.w * (pixels ? s.c : 1);
  const bool contiguous = pixels ? s.c > 1 && o.stride.c == 1 && (s.w == 1 || o.stride.w == s.c)
                                 : o.stride.w == 1 && o.stride.c % v == 0;
  const bool rows = row % v == 0 && o.stride.h % v == 0;
  const bool dense = o.stride.h == row && s.h * row % v == 0;
  const int64_t access = v * size_of(o.dtype) % 16 == 0 ? 16 : size_of(o.dtype);
  return contiguous && (rows || dense) && o.stride.n % v == 0 && aligned(o.data, access);
}

template <class T_, class A_, int V_, bool Pixels_>
struct Variant {
  using T = T_;
  using A = A_;
  static constexpr int V = V_;
  static constexpr bool pixels = Pixels_;
};

// Calls f with the variant for these operands, of which the first two are input and target. Same
// dtypes are compiled; mixed ones are read by run-time type, 8 elements at once; what does not fit
// goes element by element.
template <class F>
void choose(const Shape& s, const Operand& weight, std::initializer_list<Operand> images, F&& f) {
  const Operand& input = *images.begin();
  const Operand& target = *(images.begin() + 1);
  const bool fp64 = input.dtype == DType::f64 || target.dtype == DType::f64 ||
                    (weight.data && weight.dtype == DType::f64);
  for (const Operand& o : images)
    if (o.data && o.dtype == DType::f64 && !fp64)
      throw std::runtime_error("weighted_l1: an fp64 result of operands that are not");
  const bool same = input.dtype == target.dtype && fp64 == (input.dtype == DType::f64);

  const auto with_order = [&](auto type, auto compute, auto width) {
    using T = decltype(type);
    using A = decltype(compute);
    constexpr int V = decltype(width)::value;
    bool planes = true, pixels = true;
    for (const Operand& o : images) {
      planes = planes && fits(o, s, V, false);
      pixels = pixels && fits(o, s, V, true);
    }
    if (planes)
      f(Variant<T, A, V, false>());
    else if (pixels)
      f(Variant<T, A, V, true>());
    return planes || pixels;
  };
  using W2 = std::integral_constant<int, 2>;
  using W4 = std::integral_constant<int, 4>;
  using W8 = std::integral_constant<int, 8>;
  bool done = false;
  if (!same)
    done = !fp64 && with_order(Any(), float(), W8());
  else if (input.dtype == DType::f32)
    done = with_order(float(), float(), W4());
  else if (input.dtype == DType::bf16)
    done = with_order(__nv_bfloat16(), float(), W8());
  else if (input.dtype == DType::f16)
    done = with_order(__half(), float(), W8());
  else
    done = with_order(double(), double(), W2());
  if (done) return;
  // Neighbouring threads take neighbouring channels where those are closer than columns.
  const bool pixels = s.c > 1 && input.stride.c < input.stride.w;
  if (fp64 && pixels)
    f(Variant<Any, double, 1, true>());
  else if (fp64)
    f(Variant<Any, double, 1, false>());
  else if (pixels)
    f(Variant<Any, float, 1, true>());
  else
    f(Variant<Any, float, 1, false>());
}

Tiling tiling_of(const Shape& s, bool per_channel, int v, bool pixels) {
  Tiling t{s, s.h * s.w * (pixels ? s.c : 1) / v, 1, 0, 0};
  // As many channels per resized chunk as leave the machine full.
  constexpr int64_t most_channels = 8, least_items = 1 << 16;
  int64_t channels = pixels ? s.c : per_channel ? 1 : s.c < most_channels ? s.c : most_channels;
  while (!pixels && channels > 1 && s.n * ceil_div(s.c, channels) * t.chunks < least_items)
    channels = (channels + 1) / 2;
  t.channels = int32_t(channels);
  t.groups = channels > 0 ? ceil_div(s.c, channels) : 0;
  t.items = s.n * t.groups * t.chunks;
  return t;
}

template <class A>
Map<A> map_of(const WeightedL1Arguments& a) {
  const Shape& m = a.weight_shape;
  Map<A> map{a.weight.data,
             a.weight.dtype,
             {},
             false,
             true,
             {m.h, a.shape.h, a.align_corners},
             {m.w, a.shape.w, a.align_corners}};
  if (map.data == nullptr) return map;
  map.stride = tidy(a.weight, m).stride;
  map.per_channel = m.c > 1;
  map.same_size = m.h == a.shape.h && m.w == a.shape.w;
  return map;
}

// Least k with 2^k >= x.
int32_t log_ceil(int64_t x) {
  int32_t k = 0;
  while ((int64_t(1) << k) < x) ++k;
  return k;
}

Gather gather_of(const WeightedL1Arguments& a, bool pixels) {
  Gather g{a.weight_shape, 0, 1, 1, 0, 0, 0, 0, 0, 0};
  if (!a.grad_weight.data) return g;
  const Shape &s = a.shape, &m = a.weight_shape;
  g.cells = m.n * m.c * m.h * m.w;
  const auto inverse = [&a](int64_t image, int64_t map) {
    const int64_t ends = a.align_corners ? 1 : 0;
    return map > ends ? double(image - ends) / double(map - ends) : 0.0;
  };
  g.inverse_rows = inverse(s.h, m.h), g.inverse_columns = inverse(s.w, m.w);
  // A cell reads about twice its share of each axis.
  const auto reach = [](int64_t image, int64_t map) {
    const int64_t twice = 2 * ceil_div(image, map);
    return map == 1 || twice > image ? image : twice;
  };
  const int64_t rows = reach(s.h, m.h), columns = reach(s.w, m.w);
  const int64_t channels = m.c == 1 ? s.c : 1, images = m.n == 1 ? s.n : 1;
  // About 16 elements a lane, no more lanes than pixels and channels.
  constexpr int64_t elements = 16, most_blocks = 1024;
  int64_t lanes = 1;
  while (lanes * elements < rows * columns * channels * images &&
         lanes * 2 <= rows * columns * channels)
    lanes *= 2;
  if (lanes > 32) {
    const int64_t most_slices = g.cells < most_blocks ? most_blocks / g.cells : 1;
    int64_t slices = 1;
    while (slices * kThreads < lanes && slices * 2 <= most_slices) slices *= 2;
    g.slices = int32_t(slices);
    lanes = slices * kThreads;
  }
  g.lanes = int32_t(lanes);
  int32_t left = log_ceil(lanes);
  const auto deal = [&left](int64_t size, int32_t& log) {
    const int32_t whole = log_ceil(size);
    log = whole < left ? whole : left;
    left -= log;
  };
  if (pixels) deal(channels, g.log_channels);
  deal(columns, g.log_columns);
  deal(rows, g.log_rows);
  if (!pixels) deal(channels, g.log_channels);
  g.log_rows += left;
  g.blocks = ceil_div(g.cells * lanes, kThreads);
  return g;
}

void check_sizes(const WeightedL1Arguments& a) {
  const Shape &s = a.shape, &m = a.weight_shape;
  for (const int64_t size : {s.n, s.c, s.h, s.w, m.h, m.w})
    if (size > 0x7fffffff) throw std::runtime_error("weighted_l1: a dimension is over 2^31 - 1");
}

}  // namespace

int64_t weighted_l1_workspace() { return kTicketBytes + kMostBlocks * 2 * int64_t(sizeof(double)); }

void weighted_l1_forward(const WeightedL1Arguments& a) {
  check_sizes(a);
  const bool none = a.reduction == Reduction::none;
  const Operand input = tidy(a.input, a.shape), target = tidy(a.target, a.shape);
  const Operand out = none ? tidy(a.out, a.shape) : Operand{a.out.dtype, a.out.data, {}};
  const Operand image_out = none ? out : Operand{};
  const auto launch_variant = [&](auto variant) {
    using Chosen = decltype(variant);
    using T = typename Chosen::T;
    using A = typename Chosen::A;
    const Workspace workspace(a.workspace);
    const Map<A> map = map_of<A>(a);
    const Tiling tiling = tiling_of(a.shape, map.per_channel, Chosen::V, Chosen::pixels);
    const Forward<A> f{input,
                       target,
                       out,
                       map,
                       tiling,
                       a.reduction,
                       a.statistics != nullptr,
                       static_cast<A*>(a.statistics),
                       workspace.ticket,
                       workspace.partial};
    int64_t blocks = ceil_div(tiling.items, kThreads);
    // Sums of nothing are written, too.
    if (!none && blocks == 0) blocks = 1;
    if (!none && blocks > kMostBlocks) blocks = kMostBlocks;
    if (blocks == 0) return;
    launch("weighted_l1_forward", &weighted_l1_forward_kernel<T, A, Chosen::V, Chosen::pixels>,
           blocks, a.launch.stream, f);
  };
  choose(a.shape, a.weight, {input, target, image_out}, launch_variant);
}

void weighted_l1_backward(const WeightedL1Arguments& a) {
  check_sizes(a);
  const bool none = a.reduction == Reduction::none;
  const Operand input = tidy(a.input, a.shape), target = tidy(a.target, a.shape);
  const Operand grad = none ? tidy(a.grad, a.shape) : Operand{a.grad.dtype, a.grad.data, {}};
  const Operand grad_input = tidy(a.grad_input, a.shape);
  const Operand grad_target = tidy(a.grad_target, a.shape);
  const Operand image_grad = none ? grad : Operand{};
  const auto launch_variant = [&](auto variant) {
    using Chosen = decltype(variant);
    using T = typename Chosen::T;
    using A = typename Chosen::A;
    const Workspace workspace(a.workspace);
    const Map<A> map = map_of<A>(a);
    Tiling tiling = tiling_of(a.shape, map.per_channel, Chosen::V, Chosen::pixels);
    if (!a.grad_input.data && !a.grad_target.data) tiling.items = 0;
    const Gather gather = gather_of(a, Chosen::pixels);
    const Backward<A> b{grad,
                        input,
                        target,
                        grad_input,
                        grad_target,
                        tidy(a.grad_weight, a.weight_shape),
                        map,
                        tiling,
                        gather,
                        a.reduction,
                        static_cast<const A*>(a.statistics),
                        workspace.ticket,
                        workspace.partial};
    const int64_t blocks = gather.blocks + ceil_div(tiling.items, kThreads);
    if (blocks == 0) return;
    auto* kernel = &weighted_l1_backward_kernel<T, A, Chosen::V, Chosen::pixels, false>;
    if (gather.blocks) kernel = &weighted_l1_backward_kernel<T, A, Chosen::V, Chosen::pixels, true>;
    launch("weighted_l1_backward", kernel, blocks, a.launch.stream, b);
  };
  choose(a.shape, a.weight, {input, target, image_grad, grad_input, grad_target}, launch_variant);
}

}  // namespace srk::cuda
