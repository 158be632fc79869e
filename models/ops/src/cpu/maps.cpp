// What is done to maps of CPU tensors beside convolutions: checks, threads, and the choice of kernels for this processor.

#include "maps.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "numbers.h"
#include "processor.h"

namespace leandetr {
namespace {

using Optional = std::optional<at::Tensor>;

const Maps& find_maps() {
#if defined(__x86_64__) && defined(__GNUC__)
  const Isa isa = choose_isa();
  if (isa == Isa::avx512) return avx512::maps;
  if (isa == Isa::avx2) return avx2::maps;
#endif
  TORCH_CHECK(false, "no kernels of maps for this processor");
}

constexpr int64_t GRAIN = 1 << 14;  // numbers for which a thread is worth its while

void check_type(const at::Tensor& x) {
  TORCH_CHECK(x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16),
              "expected float32 or bfloat16 on the CPU, got ", x.scalar_type(), " on ", x.device());
}

// Overwrites x, which has no gaps.
at::Tensor& activate_(at::Tensor& x, int64_t activation, const Optional& scale, const Optional& shift) {
  check_type(x);
  TORCH_CHECK(x.is_non_overlapping_and_dense(), "x has gaps");
  const Maps& kernels = find_maps();
  const float factor = number(scale, 1), offset = number(shift, 0);
  at::parallel_for(0, x.numel(), GRAIN, [&](int64_t begin, int64_t end) {
    kernels.activate(x.data_ptr(), x.scalar_type() == at::kFloat, static_cast<Activation>(activation), factor, offset,
                     begin, end);
  });
  return x;
}

at::Tensor max_pool(const at::Tensor& x_, int64_t kernel, int64_t stride, int64_t padding) {
  check_type(x_);
  TORCH_CHECK(x_.dim() == 4 && kernel > 0 && stride > 0 && padding >= 0 && 2 * padding <= kernel, "x ", x_.sizes(),
              ", kernel ", kernel, ", stride ", stride, ", padding ", padding);
  const Maps& kernels = find_maps();
  const auto last = at::MemoryFormat::ChannelsLast;
  const at::Tensor x = x_.contiguous(last);
  MaxPool p = {};
  p.N = x.size(0);
  p.C = x.size(1);
  p.H = x.size(2);
  p.W = x.size(3);
  p.OH = (p.H + 2 * padding - kernel) / stride + 1;
  p.OW = (p.W + 2 * padding - kernel) / stride + 1;
  TORCH_CHECK(p.C % kernels.channels == 0, "no kernel for ", p.C, " channels");
  TORCH_CHECK(p.H + 2 * padding >= kernel && p.W + 2 * padding >= kernel, "x ", x.sizes(), " is smaller than ", kernel);
  at::Tensor y = at::empty({p.N, p.C, p.OH, p.OW}, x.options().memory_format(last));
  p.kernel = kernel;
  p.stride = stride;
  p.padding = padding;
  p.x = x.data_ptr();
  p.y = y.data_ptr();
  p.is_float = x.scalar_type() == at::kFloat;
  at::parallel_for(0, p.N * p.OH, 1, [&](int64_t begin, int64_t end) { kernels.max_pool(p, begin, end); });
  return y;
}

// Weight and bias of a convolution and the norm after it, in which all of a channel are constants; the weight of a type.
std::tuple<at::Tensor, at::Tensor> fold_norm(const at::Tensor& weight, const at::Tensor& norm_weight,
                                             const at::Tensor& norm_bias, const at::Tensor& mean, const at::Tensor& var,
                                             double eps, at::ScalarType type) {
  const int64_t O = weight.dim() ? weight.size(0) : 0;
  TORCH_CHECK(weight.dim() == 4 && weight.device().is_cpu() && weight.scalar_type() == at::kFloat,
              "expected weights of float32 on the CPU, got ", weight.scalar_type(), " ", weight.sizes(), " on ",
              weight.device());
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "no kernel for ", type);
  at::Tensor parts[] = {norm_weight, norm_bias, mean, var};
  const float* numbers[4];
  for (int i = 0; i < 4; ++i) {
    TORCH_CHECK(parts[i].device().is_cpu() && parts[i].scalar_type() == at::kFloat && parts[i].dim() == 1 &&
                    parts[i].size(0) == O,
                "expected ", O, " numbers of float32 on the CPU, got ", parts[i].scalar_type(), " ", parts[i].sizes());
    parts[i] = parts[i].contiguous();
    numbers[i] = parts[i].data_ptr<float>();
  }
  const auto last = at::MemoryFormat::ChannelsLast;
  const at::Tensor from = weight.is_contiguous(last) ? weight : weight.contiguous();
  at::Tensor folded = at::empty_strided(from.sizes(), from.strides(), weight.options().dtype(type));
  at::Tensor bias = at::empty({O}, weight.options());
  const int64_t each = O ? weight.numel() / O : 0;
  at::parallel_for(0, O, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, each)), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const float scale = numbers[0][o] * (1 / std::sqrt(numbers[3][o] + static_cast<float>(eps)));
      bias.data_ptr<float>()[o] = numbers[1][o] - numbers[2][o] * scale;
      const float* x = from.data_ptr<float>() + o * each;
      if (type == at::kFloat) {
        float* y = folded.data_ptr<float>() + o * each;
        for (int64_t i = 0; i < each; ++i) y[i] = x[i] * scale;
      } else {
        at::BFloat16* y = folded.data_ptr<at::BFloat16>() + o * each;
        for (int64_t i = 0; i < each; ++i) y[i] = at::BFloat16(x[i] * scale);
      }
    }
  });
  return {folded, bias};
}

}  // namespace
}  // namespace leandetr

TORCH_LIBRARY_IMPL(leandetr, CPU, m) {
  m.impl("activate_", leandetr::activate_);
  m.impl("max_pool", leandetr::max_pool);
  m.impl("fold_norm", leandetr::fold_norm);
}
