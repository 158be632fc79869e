// 3x3 convolutions of CPU tensors: checks, memory, threads, and the choice of kernels for this processor.

#include "convolution.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "memory.h"
#include "processor.h"

namespace leandetr {
namespace {

// Null where there are none for this processor.
const Convolutions* find_convolutions() {
#if defined(__x86_64__) && defined(__GNUC__)
  const Isa isa = choose_isa();
  if (isa == Isa::avx512) return &avx512::convolutions;
  if (isa == Isa::avx2) return &avx2::convolutions;
#endif
  return nullptr;
}

at::Tensor convolution_3x3(const at::Tensor& x_, const at::Tensor& weight_, const at::Tensor& bias_,
                           const std::optional<at::Tensor>& residual_, bool rectify) {
  const Convolutions* kernels = find_convolutions();
  TORCH_CHECK(kernels, "no convolutions for this processor");
  for (const at::Tensor& tensor : {x_, weight_, bias_})
    TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat, "expected float32 on the CPU, got ",
                tensor.scalar_type(), " on ", tensor.device());
  TORCH_CHECK(x_.dim() == 4 && weight_.dim() == 4 && weight_.size(1) == x_.size(1) && weight_.size(2) == 3 &&
                  weight_.size(3) == 3 && bias_.dim() == 1 && bias_.size(0) == weight_.size(0),
              "x ", x_.sizes(), ", weight ", weight_.sizes(), " and bias ", bias_.sizes(), " do not fit");
  const auto last = at::MemoryFormat::ChannelsLast;
  const at::Tensor x = x_.contiguous(last), weight = weight_.permute({2, 3, 1, 0}).contiguous(), bias = bias_.contiguous();
  Convolution p = {};
  p.N = x.size(0);
  p.C = x.size(1);
  p.H = x.size(2);
  p.W = x.size(3);
  p.O = weight.size(3);
  TORCH_CHECK(kernels->serves(p.C, p.O), "no kernel for ", p.C, " -> ", p.O, " channels");
  at::Tensor y = at::empty({p.N, p.O, p.H, p.W}, x.options().memory_format(last));
  at::Tensor residual;
  if (residual_) {
    TORCH_CHECK(residual_->sizes() == y.sizes() && residual_->scalar_type() == at::kFloat, "residual must be float32 ",
                y.sizes(), ", got ", residual_->scalar_type(), " ", residual_->sizes());
    residual = residual_->contiguous(last);
    p.residual = static_cast<float*>(residual.data_ptr());
  }
  if (y.numel() == 0) return y;
  at::Tensor packed = at::empty({kernels->packed_bytes(p.C, p.O) + CACHE_LINE_BYTES}, at::kByte);
  float* const transformed = static_cast<float*>(aligned(packed.data_ptr()));
  at::parallel_for(0, kernels->pack_tasks(p.C, p.O), 1, [&](int64_t begin, int64_t end) {
    kernels->pack(static_cast<const float*>(weight.data_ptr()), p.C, p.O, transformed, begin, end);
  });
  p.x = static_cast<float*>(x.data_ptr());
  p.weight = transformed;
  p.bias = static_cast<float*>(bias.data_ptr());
  p.rectify = rectify;
  p.y = static_cast<float*>(y.data_ptr());
  in_threads(kernels->tasks(p), kernels->bytes(p),
             [&](void* memory, int64_t begin, int64_t end) { kernels->convolve(p, memory, begin, end); });
  return y;
}

}  // namespace
}  // namespace leandetr

TORCH_LIBRARY_IMPL(leandetr, CPU, m) { m.impl("convolution_3x3", leandetr::convolution_3x3); }
