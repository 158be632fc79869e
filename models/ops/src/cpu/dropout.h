// What dropout computes, in plain numbers; see dropout_kernels.h.

#pragma once

#include "../problem.h"

namespace leandetr {

// y = residual + (x * scale where a number is kept, else 0). Which are kept follows from the seed and a number's place.
template <typename T>
struct Dropout {
  long count;
  const T* x;
  const T* residual;  // null, or as x
  T* y;
  unsigned long long seed;
  unsigned threshold;  // a number is dropped if its 32 random bits are less
  float scale;
};

// One table per instruction set. Different ranges write apart.
template <typename T>
struct Dropouts {
  long group;  // of numbers; ranges count them
  void (*drop)(const Dropout<T>&, long begin, long end);
};

namespace avx2 {
extern const Dropouts<float> float32_dropout;
extern const Dropouts<BFloat16> bfloat16_dropout;
}  // namespace avx2
namespace avx512 {
extern const Dropouts<float> float32_dropout;
extern const Dropouts<BFloat16> bfloat16_dropout;
}  // namespace avx512

}  // namespace leandetr
