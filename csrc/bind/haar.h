// Arguments of the Haar transform, read from tensors: the same for both cores.
#pragma once
#include "common/haar.h"
#include "tensor.h"

namespace srk {

// How the high bands lie in their tensor (srkernels/ops/haar/allocate.py): (N, 3C, h, w),
// (N, C, 3, h, w), (3, N, C, h, w) or added up (N, C, h, w).
enum class BandLayout : int { band_major, channel_major, stacked, sum };

inline BandStrides band_strides(const Tensor& high, BandLayout layout) {
  if (!high.given()) return {};
  const bool four = layout == BandLayout::band_major || layout == BandLayout::sum;
  high.require(four ? 4 : 5);
  const int64_t* s = high.raw.strides;
  switch (layout) {
    case BandLayout::band_major:
      return {s[0], high.raw.shape[1] / 3 * s[1], s[1], s[2], s[3]};
    case BandLayout::channel_major:
      return {s[0], s[2], s[1], s[3], s[4]};
    case BandLayout::stacked:
      return {s[1], s[0], s[2], s[3], s[4]};
    case BandLayout::sum:
      break;
  }
  return {s[0], 0, s[1], s[2], s[3]};
}

inline HaarArguments haar_arguments(const Tensor& x, const Tensor& low, const Tensor& high,
                                    const HaarPlan& plan, int layout, int pad, Launch launch) {
  return {x.dtype(),   x.shape(),
          x.data(),    x.strides(),
          low.data(),  low.operand().stride,
          high.data(), band_strides(high, BandLayout(layout)),
          plan,        Pad(pad),
          launch};
}

}  // namespace srk
