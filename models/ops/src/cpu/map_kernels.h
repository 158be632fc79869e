// Activations and pools of maps on the CPU for one instruction set, in one pass each. Included by kernels_*.cpp; see
// vectors.h.

#include "maps.h"
#include "product_kernels.h"

namespace leandetr {
namespace ISA {
namespace {

template <Activation ACTIVATION, typename T>
void activate_numbers(T* x, Scaling scaling, long begin, long end) {
  typedef Pack<T, float, WIDTH> P;
  for (; begin + WIDTH <= end; begin += WIDTH) P::store(x + begin, activated<ACTIVATION>(P::load(x + begin), scaling));
  if (begin < end) store_some(x + begin, activated<ACTIVATION>(load_some(x + begin, end - begin), scaling), end - begin);
}

template <typename T>
void activate(T* x, Activation activation, Scaling scaling, long begin, long end) {
  switch (activation) {
    case Activation::none: return;
    case Activation::relu: return activate_numbers<Activation::relu>(x, scaling, begin, end);
    case Activation::gelu: return activate_numbers<Activation::gelu>(x, scaling, begin, end);
    case Activation::silu: return activate_numbers<Activation::silu>(x, scaling, begin, end);
    case Activation::scaled_relu: return activate_numbers<Activation::scaled_relu>(x, scaling, begin, end);
  }
}

void activate_any(void* x, bool is_float, Activation activation, float scale, float shift, long begin, long end) {
  if (is_float)
    activate(static_cast<float*>(x), activation, {scale, shift}, begin, end);
  else
    activate(static_cast<BFloat16*>(x), activation, {scale, shift}, begin, end);
}

template <typename T>
void max_pool_rows(const MaxPool& p, long begin, long end) {
  typedef Pack<T, float, WIDTH> P;
  for (long row = begin; row < end; ++row) {
    const long top = row % p.OH * p.stride - p.padding;
    const long first = top < 0 ? 0 : top, last = top + p.kernel < p.H ? top + p.kernel : p.H;
    const T* image = static_cast<const T*>(p.x) + row / p.OH * p.H * p.W * p.C;
    for (long column = 0; column < p.OW; ++column) {
      const long side = column * p.stride - p.padding;
      const long left = side < 0 ? 0 : side, right = side + p.kernel < p.W ? side + p.kernel : p.W;
      T* to = static_cast<T*>(p.y) + (row * p.OW + column) * p.C;
      for (long c = 0; c < p.C; c += WIDTH) {
        Floats most = P::load(image + (first * p.W + left) * p.C + c);
        for (long y = first; y < last; ++y)
          for (long x = left; x < right; ++x) {
            const Floats v = P::load(image + (y * p.W + x) * p.C + c);
            most = (v > most) | (v != v) ? v : most;  // what is not a number stays
          }
        P::store(to + c, most);
      }
    }
  }
}

void max_pool(const MaxPool& p, long begin, long end) {
  if (p.is_float)
    max_pool_rows<float>(p, begin, end);
  else
    max_pool_rows<BFloat16>(p, begin, end);
}

}  // namespace

const Maps maps = {WIDTH, activate_any, max_pool};

}  // namespace ISA
}  // namespace leandetr
