// Backward pass through an activation on CPU, between two convolutions' gradients. It computes
//
//   for (n, c, y, x) {
//     g = scale * grad[n][c][y][x];
//     z = kept[n][c][y][x];                      // what went into the activation
//     if (!(z > 0)) {                            // not without an activation
//       slope_sum[c] += z * g;                   // prelu
//       g = below[c] * g;                        // relu: 0; leaky_relu and prelu: the slope
//     }
//     bias_sum[c] += g;
//     out[n][c][y][x] = g;
//   }
//
// where the sums over images and pixels are the gradients of the slope and of the bias.
//
// 1. Cut the tensors into blocks of a fixed size, which the threads share out (run).
// 2. Channels side by side (channels_last): a vector holds neighbouring channels, and each lane has
//    its own slope and its own sum (channel_vectors). Otherwise a block lies in one channel: a
//    vector holds neighbouring pixels, whose lanes are added up (plane).
// 3. Sum some values in fp32, then go on in double: fp32 alone would lose digits over an image.
// 4. Add up the blocks' sums in order: the result is the same on any number of threads (add_up).
//
// relu_in_place is the loop x[i] = x[i] <= 0 ? 0 : x[i] on vectors.
#include "activation.h"

#include "buffer.h"
#include "parallel.h"
#include "simd.h"

namespace srk::SRK_ISA {
namespace {

constexpr int64_t kBlockElements = 16384;
constexpr int64_t kRun = 32;  // values added up before their sum goes on in double

template <class S>
using Scalar = typename Simd<S>::Scalar;
template <class S>
using Vector = typename Simd<S>::Vector;

template <class S>
SRK_HD Vector<S> load(const S* p, Vector<S>) {
  return Simd<S>::load(p);
}
template <class S>
SRK_HD Scalar<S> load(const S* p, Scalar<S>) {
  return Simd<S>::get(p);
}
template <class S>
SRK_HD void store(S* p, Vector<S> v) {
  Simd<S>::store(p, v);
}
template <class S>
SRK_HD void store(S* p, Scalar<S> v) {
  Simd<S>::put(p, v);
}

// One vector or one value at i. kActivation: as Activation, prelu and leaky_relu being one.
template <class S, int kActivation, class V>
SRK_HD void element(const S* grad, const S* kept, S* out, int64_t i, V below, Scalar<S> scale,
                    V& bias, V& slope) {
  constexpr Scalar<S> zero = 0;
  V g = load<S>(grad + i, V{}) * scale;
  if (kActivation != int(Activation::none)) {
    const V z = load<S>(kept + i, V{});
    if (kActivation == int(Activation::relu)) {
      g = z <= zero ? V{} : g;  // NaN passes, as in PyTorch
    } else {
      slope += z > zero ? V{} : z * g;
      g = z > zero ? g : below * g;
    }
  }
  bias += g;
  if (out) store<S>(out + i, g);
}

// The slope of channel c below zero.
template <class S>
SRK_HD Scalar<S> slope_of(const ActivationArguments& a, int64_t c) {
  if (!a.slopes) return Scalar<S>(a.negative_slope);
  return static_cast<const Scalar<S>*>(a.slopes)[c * a.slope_step];
}

// kVectors neighbouring vectors of channels of the pixels [begin, end): their sums stay in
// registers.
template <class S, int kActivation, int kVectors>
void channel_vectors(const ActivationArguments& a, int64_t c, int64_t begin, int64_t end,
                     double* bias, double* slope) {
  using V = Vector<S>;
  constexpr int N = lanes<V>();
  const int64_t channels = a.shape.c;
  const S *grad = static_cast<const S*>(a.grad.data), *kept = static_cast<const S*>(a.kept.data);
  S* out = static_cast<S*>(a.out.data);
  const Scalar<S> scale = Scalar<S>(a.scale);
  V below[kVectors]{};
  for (int k = 0; k < kVectors * N; ++k) {
    below[k / N][k % N] = slope_of<S>(a, c + k);
    bias[c + k] = slope[c + k] = 0;
  }
  for (int64_t first = begin; first < end; first += kRun) {
    const int64_t last = first + kRun < end ? first + kRun : end;
    V b[kVectors]{}, s[kVectors]{};
    for (int64_t p = first; p < last; ++p)
      for (int j = 0; j < kVectors; ++j)
        element<S, kActivation>(grad, kept, out, p * channels + c + j * N, below[j], scale, b[j],
                                s[j]);
    for (int k = 0; k < kVectors * N; ++k) bias[c + k] += double(b[k / N][k % N]);
    if (kActivation == int(Activation::prelu))
      for (int k = 0; k < kVectors * N; ++k) slope[c + k] += double(s[k / N][k % N]);
  }
}

// Pixels [begin, end) of channels_last tensors; sums: of each channel.
template <class S, int kActivation>
void pixels(const ActivationArguments& a, int64_t begin, int64_t end, double* bias, double* slope) {
  constexpr int N = lanes<Vector<S>>();
  const int64_t channels = a.shape.c;
  int64_t c = 0;
  for (; c + 4 * N <= channels; c += 4 * N)
    channel_vectors<S, kActivation, 4>(a, c, begin, end, bias, slope);
  for (; c + N <= channels; c += N)
    channel_vectors<S, kActivation, 1>(a, c, begin, end, bias, slope);
  const S *grad = static_cast<const S*>(a.grad.data), *kept = static_cast<const S*>(a.kept.data);
  S* out = static_cast<S*>(a.out.data);
  for (; c < channels; ++c) {
    bias[c] = slope[c] = 0;
    for (int64_t p = begin; p < end; ++p) {
      Scalar<S> b = 0, s = 0;
      element<S, kActivation>(grad, kept, out, p * channels + c, slope_of<S>(a, c),
                              Scalar<S>(a.scale), b, s);
      bias[c] += double(b);
      slope[c] += double(s);
    }
  }
}

// Elements [begin, end), all of one channel.
template <class S, int kActivation>
void plane(const ActivationArguments& a, int64_t channel, int64_t begin, int64_t end, double* bias,
           double* slope) {
  using V = Vector<S>;
  constexpr int N = lanes<V>();
  const S *grad = static_cast<const S*>(a.grad.data), *kept = static_cast<const S*>(a.kept.data);
  S* out = static_cast<S*>(a.out.data);
  const Scalar<S> scale = Scalar<S>(a.scale), below = slope_of<S>(a, channel);
  *bias = *slope = 0;
  int64_t i = begin;
  while (i + N <= end) {
    V b{}, s{};
    for (int64_t k = 0; k < kRun && i + N <= end; ++k, i += N)
      element<S, kActivation>(grad, kept, out, i, broadcast(below, V{}), scale, b, s);
    for (int k = 0; k < N; ++k) *bias += double(b[k]), *slope += double(s[k]);
  }
  for (; i < end; ++i) {
    Scalar<S> b = 0, s = 0;
    element<S, kActivation>(grad, kept, out, i, below, scale, b, s);
    *bias += double(b);
    *slope += double(s);
  }
}

// sums[channel] = of parts[block][channel]
void add_up(const double* parts, int64_t blocks, int64_t channels, double* sums) {
  if (!sums) return;
  for (int64_t c = 0; c < channels; ++c) sums[c] = 0;
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t c = 0; c < channels; ++c) sums[c] += parts[block * channels + c];
}

template <class S, int kActivation>
void run(const ActivationArguments& a) {
  const int64_t channels = a.shape.c, area = a.shape.h * a.shape.w;
  const bool in_pixels = channels > 1 && a.grad.stride.c == 1 && area > 1;
  if (in_pixels) {
    const int64_t total = a.shape.n * area;
    const int64_t step = kBlockElements / channels > 0 ? kBlockElements / channels : 1;
    const int64_t blocks = (total + step - 1) / step;
    Buffer<double> bias(blocks * channels), slope(blocks * channels);
    parallel_ranges(blocks, 2, a.launch.threads, [&](int64_t from, int64_t to) {
      for (int64_t block = from; block < to; ++block) {
        const int64_t begin = block * step, end = begin + step < total ? begin + step : total;
        pixels<S, kActivation>(a, begin, end, bias.data + block * channels,
                               slope.data + block * channels);
      }
    });
    add_up(bias.data, blocks, channels, a.bias_sum);
    add_up(slope.data, blocks, channels, a.slope_sum);
    return;
  }
  const int64_t cuts = (area + kBlockElements - 1) / kBlockElements;
  const int64_t planes = a.shape.n * channels;
  // Block (image, cut) of every channel: its sums are neighbours.
  Buffer<double> bias(planes * cuts), slope(planes * cuts);
  parallel_ranges(planes * cuts, 1 + 2 * kBlockElements / (area > 0 ? area : 1), a.launch.threads,
                  [&](int64_t from, int64_t to) {
                    for (int64_t task = from; task < to; ++task) {
                      const int64_t cut = task % cuts, index = task / cuts;
                      const int64_t c = index % channels, n = index / channels;
                      const int64_t begin = index * area + cut * kBlockElements;
                      const int64_t left = area - cut * kBlockElements;
                      const int64_t end = begin + (left < kBlockElements ? left : kBlockElements);
                      const int64_t part = (n * cuts + cut) * channels + c;
                      plane<S, kActivation>(a, c, begin, end, bias.data + part, slope.data + part);
                    }
                  });
  add_up(bias.data, a.shape.n * cuts, channels, a.bias_sum);
  add_up(slope.data, a.shape.n * cuts, channels, a.slope_sum);
}

template <class S>
void dispatch(const ActivationArguments& a) {
  switch (a.activation) {
    case Activation::none:
      return run<S, int(Activation::none)>(a);
    case Activation::relu:
      return run<S, int(Activation::relu)>(a);
    case Activation::leaky_relu:
    case Activation::prelu:
      return run<S, int(Activation::prelu)>(a);
  }
}

template <class S>
void relu(void* data, int64_t size, int threads) {
  S* x = static_cast<S*>(data);
  constexpr int N = lanes<Vector<S>>();
  const int64_t blocks = (size + kBlockElements - 1) / kBlockElements;
  parallel_ranges(blocks, 2, threads, [&](int64_t from, int64_t to) {
    const int64_t end = to * kBlockElements < size ? to * kBlockElements : size;
    int64_t i = from * kBlockElements;
    for (; i + N <= end; i += N) {
      const Vector<S> v = Simd<S>::load(x + i);
      Simd<S>::store(x + i, v <= Scalar<S>(0) ? Vector<S>{} : v);
    }
    for (; i < end; ++i) {
      const Scalar<S> v = Simd<S>::get(x + i);
      if (v <= Scalar<S>(0)) Simd<S>::put(x + i, 0);
    }
  });
}

}  // namespace

void relu_in_place(const ReluArguments& args) {
  switch (args.x.dtype) {
    case DType::f32:
      return relu<float>(args.x.data, args.size, args.launch.threads);
    case DType::bf16:
      return relu<bf16>(args.x.data, args.size, args.launch.threads);
    case DType::f16:
      return relu<f16>(args.x.data, args.size, args.launch.threads);
    case DType::f64:
      return relu<double>(args.x.data, args.size, args.launch.threads);
  }
}

void activation_backward(const ActivationArguments& args) {
  switch (args.grad.dtype) {
    case DType::f32:
      return dispatch<float>(args);
    case DType::bf16:
      return dispatch<bf16>(args);
    case DType::f16:
      return dispatch<f16>(args);
    case DType::f64:
      return dispatch<double>(args);
  }
}

}  // namespace srk::SRK_ISA
