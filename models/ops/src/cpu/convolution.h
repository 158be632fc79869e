// What 3x3 convolutions compute, in plain numbers; see convolution_kernels.h.

#pragma once

namespace leandetr {

// y = activation(x * w + bias + residual): stride 1, one pixel of zeros around; maps are stored channels last.
struct Convolution {
  long N, H, W, C, O;     // x is (N, H, W, C), y (N, H, W, O)
  const float* x;
  const float* weight;    // transformed and packed
  const float* bias;      // (O)
  const float* residual;  // null, or as y
  bool rectify;
  float* y;
};

// One table per instruction set. Different ranges write apart, and no number depends on how the work is divided.
struct Convolutions {
  bool (*serves)(long C, long O);
  long (*packed_bytes)(long C, long O);
  long (*pack_tasks)(long C, long O);
  void (*pack)(const float* weight, long C, long O, float* packed, long begin, long end);  // weight is (3, 3, C, O)
  long (*tasks)(const Convolution&);
  long (*bytes)(const Convolution&);  // of memory that a range brings
  void (*convolve)(const Convolution&, void* memory, long begin, long end);
};

namespace avx2 {
extern const Convolutions convolutions;
}
namespace avx512 {
extern const Convolutions convolutions;
}

}  // namespace leandetr
