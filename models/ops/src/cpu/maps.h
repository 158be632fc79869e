// What is done to maps beside convolutions, in plain numbers; see map_kernels.h.

#pragma once

#include "products.h"

namespace leandetr {

// The largest pixel of each window; maps are stored channels last, (N, H, W, C) and (N, OH, OW, C). A window's pixels
// outside the map do not count.
struct MaxPool {
  long N, H, W, C, OH, OW;
  long kernel, stride, padding;
  const void* x;  // float, or bfloat16
  void* y;
  bool is_float;
};

// One table per instruction set. Different ranges write apart.
struct Maps {
  long channels;  // those of a pool are a multiple of this
  void (*activate)(void* x, bool is_float, Activation activation, float scale, float shift, long begin, long end);
  void (*max_pool)(const MaxPool&, long begin, long end);  // rows of all images
};

namespace avx2 {
extern const Maps maps;
}
namespace avx512 {
extern const Maps maps;
}

}  // namespace leandetr
