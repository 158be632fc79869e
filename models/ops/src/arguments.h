// What the operators do with their arguments on every device.

#pragma once

#include <ATen/ATen.h>

#include <initializer_list>

#include "problem.h"

namespace leandetr {

// The sizes of a problem; refuses what the kernels cannot take or what does not add up. `others` are all further tensors.
inline Problem describe(const at::Tensor& value, at::IntArrayRef shapes, const at::Tensor& locations,
                        std::initializer_list<at::Tensor> others) {
  TORCH_CHECK(locations.device() == value.device(), "value is on ", value.device(), ", locations on ", locations.device());
  for (const at::Tensor& other : others)
    TORCH_CHECK(other.device() == value.device(), "value is on ", value.device(), ", another tensor on ", other.device());
  TORCH_CHECK(value.dim() == 4 && locations.dim() == 6 && locations.size(0) == value.size(0) &&
                  locations.size(2) == value.size(2) && locations.size(4) > 0 && locations.size(5) == 2,
              "value ", value.sizes(), " and locations ", locations.sizes(), " do not fit");
  Problem p;
  p.N = value.size(0);
  p.S = value.size(1);
  p.M = value.size(2);
  p.D = value.size(3);
  p.Q = locations.size(1);
  p.L = static_cast<int>(locations.size(3));
  p.points = static_cast<int>(locations.size(4));
  TORCH_CHECK(p.D % 4 == 0, "the width of a head must be a multiple of 4, not ", p.D);
  TORCH_CHECK(p.L * p.points <= MAX_SAMPLES, "at most ", MAX_SAMPLES, " samples per head, not ", p.L * p.points);
  TORCH_CHECK(p.S * p.M * p.D < (int64_t(1) << 31), "an image's values are more than 2^31 numbers");
  TORCH_CHECK((int64_t)shapes.size() == 2 * p.L, "one height and width per level");
  p.K = p.L * p.points;
  int64_t start = 0;
  for (int level = 0; level < p.L; ++level) {
    TORCH_CHECK(shapes[2 * level] > 0 && shapes[2 * level + 1] > 0, "a level of ", shapes[2 * level], "x",
                shapes[2 * level + 1], " has no area");
    for (int k = level * p.points; k < (level + 1) * p.points; ++k) {
      p.height[k] = static_cast<int>(shapes[2 * level]);
      p.width[k] = static_cast<int>(shapes[2 * level + 1]);
      p.start[k] = static_cast<int>(start);
    }
    start += shapes[2 * level] * shapes[2 * level + 1];
  }
  TORCH_CHECK(start == p.S, "the levels have ", start, " tokens, value has ", p.S);
  return p;
}

template <typename Pointer>
Pointer data(const at::Tensor& tensor) {
  return static_cast<Pointer>(tensor.data_ptr());
}

inline at::Tensor as(const at::Tensor& tensor, at::ScalarType type) { return tensor.to(type).contiguous(); }

// A key that was given beside the values, in memory of its own: kernels take equal pointers for equal tensors with one
// gradient, but a key may be the values' memory and have a gradient apart, such as value.detach().
inline at::Tensor apart(const at::Tensor& key, const at::Tensor& value) {
  const at::Tensor ready = as(key, value.scalar_type());
  return ready.data_ptr() == value.data_ptr() ? ready.clone() : ready;
}

}  // namespace leandetr
