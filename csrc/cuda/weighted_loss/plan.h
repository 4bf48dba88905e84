// What the host decides about a call, from shapes, strides, types and alignment alone: never from
// the GPU, so that results do not depend on it.
//
// 1. How wide a chunk is and which variant of the kernels reads it (choose).
// 2. How many channels share a thread's resized weights (tiling_of).
// 3. How many threads gather a cell of the map's gradient (gather_of).
// 4. What the workspace holds (Workspace).
#pragma once
#include <initializer_list>

#include "../../common/weighted_loss.h"
#include "../device.h"
// after device.h
#include "../../common/penalty.h"

namespace srk::cuda {
namespace {

constexpr int64_t kMostBlocks = 4096;  // of a forward launch: their partial sums fit the workspace
constexpr int64_t kTicketBytes = 16;

// The workspace: a ticket, by which blocks learn which of them is last, then partial sums.
struct Workspace {
  unsigned* ticket;
  double* partial;

  explicit Workspace(void* data)
      : ticket(static_cast<unsigned*>(data)),
        partial(reinterpret_cast<double*>(static_cast<char*>(data) + kTicketBytes)) {}
};

struct Any {};  // element type known at run time only

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

// How the image is cut. An item is one chunk of one group of channels of one image: groups of
// `channels` planes share the resized map; over pixels the channels are inside the chunk.
struct Tiling {
  Shape shape;
  int64_t chunks, groups, items;
  int32_t channels;  // of a group
};

// How the gradient of the map is gathered: `lanes` threads sum over all that a cell touches, in
// every image and channel that shares it, and add up in a fixed order. Lanes are spread first over
// the dimension that is contiguous in memory. A cell with more lanes than a block has threads takes
// `slices` blocks, whose sums the last of them adds.
struct Gather {
  Shape map;                                    // the map's shape
  int64_t cells;                                // n c h w of it
  int32_t lanes, slices;                        // of a cell
  int32_t log_columns, log_rows, log_channels;  // lanes = the product of their powers of two
  int64_t blocks;
  double inverse_rows, inverse_columns;  // image samples per map sample
};

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

// A choice of kernel as a value: T, the images' type, or Any; A, the type that is computed in; V,
// the elements of a chunk; and the order of memory.
template <class T_, class A_, int V_, bool Pixels_>
struct Variant {
  using T = T_;
  using A = A_;
  static constexpr int V = V_;
  static constexpr bool pixels = Pixels_;
};

// body(penalty), a branch that all threads take alike.
template <class A, class Body>
__device__ __forceinline__ void with_penalty(Kind kind, A parameter, Body&& body) {
  switch (kind) {
    case Kind::l1:
      return body(L1<A>(parameter));
    case Kind::charbonnier:
      return body(Charbonnier<A>(parameter));
    case Kind::mse:
      return body(Mse<A>(parameter));
    case Kind::huber:
      return body(Huber<A>(parameter));
  }
}

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
      throw std::runtime_error("weighted_loss: an fp64 result of operands that are not");
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
Map<A> map_of(const WeightedLossArguments& a) {
  const Shape& m = a.weight_shape;
  Map<A> map{a.weight.data,
             a.weight.dtype,
             {},
             false,
             true,
             {m.h, a.shape.h, a.resize},
             {m.w, a.shape.w, a.resize}};
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

Gather gather_of(const WeightedLossArguments& a, bool pixels) {
  Gather g{a.weight_shape, 0, 1, 1, 0, 0, 0, 0, 0, 0};
  if (!a.grad_weight.data) return g;
  const Shape &s = a.shape, &m = a.weight_shape;
  g.cells = m.n * m.c * m.h * m.w;
  const auto inverse = [&a](int64_t image, int64_t map) {
    const int64_t ends = a.resize == Interpolation::bilinear_corners ? 1 : 0;
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

void check_sizes(const WeightedLossArguments& a) {
  const Shape &s = a.shape, &m = a.weight_shape;
  for (const int64_t size : {s.n, s.c, s.h, s.w, m.h, m.w})
    if (size > 0x7fffffff) throw std::runtime_error("weighted_loss: a dimension is over 2^31 - 1");
}

}  // namespace
}  // namespace srk::cuda
