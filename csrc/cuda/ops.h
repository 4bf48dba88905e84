// Launchers of the CUDA core, in plain C++: what csrc/bind_cuda.cpp calls.
// A null pointer means: not wanted (outputs), zeros or absent (inputs). Strides are in elements.
#pragma once
#include "../common/haar.h"
#include "../common/weighted_l1.h"

namespace srk::cuda {

struct Shape {
  int64_t n, c, h, w;
};

struct Operand {
  void* data;
  DType dtype;
  Strides stride;
};

// Both take the shape of the image x. Analysis reads x and writes the bands; synthesis the reverse.
struct HaarArguments {
  DType dtype;
  Shape shape;
  void* x;
  Strides x_stride;
  void* low;
  Strides low_stride;
  void* high;
  BandStrides high_stride;
  HaarPlan plan;
  Pad pad;
  void* stream;
};
void haar_analysis(const HaarArguments& args);
void haar_synthesis(const HaarArguments& args);

// Bytes of workspace that any call needs, whatever its shapes: allocate it once per device and
// stream, filled with zeros. Every launch leaves its first word, the ticket, at zero again, so that
// CUDA graphs can replay; two launches that may overlap must not share one.
int64_t weighted_l1_workspace();

struct WeightedL1Arguments {
  Shape shape;
  Operand input, target;
  Operand weight;
  Shape weight_shape;
  Reduction reduction;
  bool by_weight;  // forward: mean over the weights
  bool align_corners;
  Operand out;       // forward: one value, or the map for Reduction::none
  Operand grad;      // backward: the cotangent of out
  void* statistics;  // loss and sum of weights, in the compute type
  Operand grad_input, grad_target, grad_weight;
  void* workspace;
  void* stream;
};
void weighted_l1_forward(const WeightedL1Arguments& args);
void weighted_l1_backward(const WeightedL1Arguments& args);

}  // namespace srk::cuda
