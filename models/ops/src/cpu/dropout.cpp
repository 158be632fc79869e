// Dropout of CPU tensors: checks, threads, and the choice of kernels for this processor.

#include "dropout.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>

#include "processor.h"

namespace leandetr {
namespace {

#if defined(__x86_64__) && defined(__GNUC__)
#define PICK(table)                                              \
  const Isa isa = choose_isa();                                  \
  return isa == Isa::avx512 ? &avx512::table : isa == Isa::avx2 ? &avx2::table : nullptr;
#else
#define PICK(table) return nullptr;
#endif

// Null where there are none for this processor.
template <typename T>
const Dropouts<T>* find_dropouts();
template <>
const Dropouts<float>* find_dropouts() {
  PICK(float32_dropout)
}
template <>
const Dropouts<BFloat16>* find_dropouts() {
  PICK(bfloat16_dropout)
}

constexpr int64_t GRAIN = 64;  // groups for which a thread is worth its while

template <typename T>
void run(const at::Tensor& x, const std::optional<at::Tensor>& residual, double share, int64_t seed, at::Tensor& y) {
  const Dropouts<T>* kernels = find_dropouts<T>();
  TORCH_CHECK(kernels, "no dropout for this processor");
  Dropout<T> p = {};
  p.count = x.numel();
  p.x = static_cast<const T*>(x.data_ptr());
  p.residual = residual ? static_cast<const T*>(residual->data_ptr()) : nullptr;
  p.y = static_cast<T*>(y.data_ptr());
  p.seed = static_cast<unsigned long long>(seed);
  p.threshold = static_cast<unsigned>(std::ldexp(share, 32));
  p.scale = static_cast<float>(1 / (1 - share));
  at::parallel_for(0, (p.count + kernels->group - 1) / kernels->group, GRAIN,
                   [&](int64_t begin, int64_t end) { kernels->drop(p, begin, end); });
}

at::Tensor dropout(const at::Tensor& x_, const std::optional<at::Tensor>& residual_, double p, int64_t seed) {
  TORCH_CHECK(p >= 0 && p < 1, "p must be at least 0 and less than 1, got ", p);
  TORCH_CHECK(x_.device().is_cpu(), "x is on ", x_.device());
  const at::Tensor x = x_.contiguous();
  std::optional<at::Tensor> residual;
  if (residual_) {
    TORCH_CHECK(residual_->device().is_cpu() && residual_->sizes() == x.sizes() &&
                    residual_->scalar_type() == x.scalar_type(),
                "residual must be as x, ", x.scalar_type(), " ", x.sizes(), ", got ", residual_->scalar_type(), " ",
                residual_->sizes());
    residual = residual_->contiguous();
  }
  at::Tensor y = at::empty(x.sizes(), x.options());
  if (x.scalar_type() == at::kFloat) {
    run<float>(x, residual, p, seed, y);
  } else {
    TORCH_CHECK(x.scalar_type() == at::kBFloat16, "x is ", x.scalar_type());
    run<BFloat16>(x, residual, p, seed, y);
  }
  return y;
}

}  // namespace
}  // namespace leandetr

TORCH_LIBRARY_IMPL(leandetr, CPU, m) { m.impl("dropout", leandetr::dropout); }
