// What 3x3 convolutions compute, in plain numbers; see convolution_kernels.h.

#pragma once

#include "products.h"

namespace leandetr {

// y = activation(x * w + bias + residual): stride 1, one pixel of zeros around; maps are stored channels last.
struct Convolution {
  long N, H, W, C, O;    // x is (N, H, W, C), y (N, H, W, O)
  const void* x;         // maps are float, or all of them bfloat16; what is computed is float
  long first, last;      // panels of answers that are computed
  const float* weight;   // theirs, transformed and packed
  const float* bias;     // (O)
  const void* residual;  // null, or as y
  Activation activation;
  float scale, shift;  // of a scaled ReLU
  bool is_float;
  void* y;
};

// The gradient of w: of (N, H, W, O) gradients of answers and (N, H, W, C) maps.
struct ConvolutionGradient {
  long N, H, W, C, O;
  const float* grad;
  const float* x;
  float* weight;  // (O, 3, 3, C)
};

// One table per instruction set. Different ranges write apart, and no number depends on how the work is divided.
struct Convolutions {
  bool (*serves)(long C, long O);
  long (*panels)(long O);
  long (*packed_bytes)(long C);  // of a panel
  long (*pack_tasks)(long C);    // of a panel
  // Of weights (O, 3, 3, C) those of the panels from `first` on; tasks are counted from the first panel's of all.
  void (*pack)(const float* weight, long C, long first, float* packed, long begin, long end);
  long (*tasks)(const Convolution&);
  long (*bytes)(const Convolution&);  // of memory that a range brings
  void (*convolve)(const Convolution&, void* memory, long begin, long end);
  // The gradient of weights: squares [begin, end) of `count` are transformed, from square `first` of all `squares` on, to
  // grads (place, count, O) and pixels (place, count, C); what is their products' sum over the squares, (place, O, C), is
  // transformed back, for answers [begin, end).
  long places;
  long (*squares)(const ConvolutionGradient&);
  void (*transform)(const ConvolutionGradient&, long first, long count, float* grads, float* pixels, long begin, long end);
  void (*transform_back)(const ConvolutionGradient&, const float* sums, long begin, long end);
};

namespace avx2 {
extern const Convolutions convolutions;
}
namespace avx512 {
extern const Convolutions convolutions;
}

}  // namespace leandetr
