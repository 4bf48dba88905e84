// Launchers of the CUDA core, in plain C++: what csrc/bind/cuda.cpp calls.
#pragma once
#include "../common/haar.h"
#include "../common/weighted_loss.h"

namespace srk::cuda {

void haar_analysis(const HaarArguments& args);
void haar_synthesis(const HaarArguments& args);

// Bytes of workspace that any call needs, whatever its shapes: allocate it once per device and
// stream, filled with zeros. Every launch leaves its first word, the ticket, at zero again, so that
// CUDA graphs can replay; two launches that may overlap must not share one.
int64_t weighted_loss_workspace();

void weighted_loss_forward(const WeightedLossArguments& args);
void weighted_loss_backward(const WeightedLossArguments& args);

}  // namespace srk::cuda
