// 3x3 convolution with its epilogue on Intel AMX, bf16 channels_last.
#pragma once
#include "../../common/activation.h"

namespace srk {

// Pixels one after another, row by row, image by image; `pixel` elements lie between neighbours, so
// that channels may be a slice of wider pixels. Null data: absent.
struct Pixels {
  uint16_t* data;
  int64_t pixel;
};

// s = sums over taps and input channels, zeros around the image; then, for each output channel
//
//   y = scale * act(s + bias) + residual     or     y = scale * act'(kept) * s + residual
//
// with `kept` what went into the activation, or anything of its sign. The second, by the adjoint
// filters, is the data gradient passing through the activation before the convolution.
struct ConvolutionArguments {
  int64_t n, h, w, ci, co;  // ci a multiple of 32, co of 16
  Pixels x, y, residual, kept;
  const uint16_t* weight;
  int64_t weight_out, weight_in, weight_row, weight_column;  // strides
  const uint16_t* bias;                                      // null: none
  Activation activation;                                     // any but prelu
  float negative_slope, scale;
  double* sums;  // of y over images and pixels, one for each channel; null: not wanted
  int threads;
};

namespace amx {
void convolution(const ConvolutionArguments& args);
}  // namespace amx

}  // namespace srk
