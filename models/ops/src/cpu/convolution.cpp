// 3x3 convolutions of CPU tensors: checks, memory, threads, and the choice of kernels for this processor.

#include "convolution.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "memory.h"
#include "numbers.h"
#include "processor.h"
#include "products.h"

namespace leandetr {
namespace {

struct Kernels {
  const Convolutions* convolutions;  // null where there are none for this processor
  const Products* products;
};

Kernels find_kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
  const Isa isa = choose_isa();
  if (isa == Isa::avx512) return {&avx512::convolutions, &avx512::float32_products};
  if (isa == Isa::avx2) return {&avx2::convolutions, &avx2::float32_products};
#endif
  return {};
}

// The sizes of maps x that are turned into `channels` channels.
template <typename Problem>
Problem problem_of(const at::Tensor& x, int64_t channels) {
  Problem p = {};
  p.N = x.size(0);
  p.C = x.size(1);
  p.H = x.size(2);
  p.W = x.size(3);
  p.O = channels;
  return p;
}

constexpr int64_t PACKED_BYTES = 10 << 20;  // of weights that are packed together, which caches are to hold

at::Tensor convolution_3x3(const at::Tensor& x_, const at::Tensor& weight_, const at::Tensor& bias_,
                           const std::optional<at::Tensor>& residual_, int64_t activation,
                           const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& shift,
                           at::ScalarType type) {
  const Convolutions* kernels = find_kernels().convolutions;
  TORCH_CHECK(kernels, "no convolutions for this processor");
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "no kernel for ", type);
  for (const at::Tensor& tensor : {x_, weight_, bias_})
    TORCH_CHECK(tensor.device().is_cpu() && (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == type),
                "expected float32 or ", type, " on the CPU, got ", tensor.scalar_type(), " on ", tensor.device());
  TORCH_CHECK(x_.dim() == 4 && weight_.dim() == 4 && weight_.size(1) == x_.size(1) && weight_.size(2) == 3 &&
                  weight_.size(3) == 3 && bias_.dim() == 1 && bias_.size(0) == weight_.size(0),
              "x ", x_.sizes(), ", weight ", weight_.sizes(), " and bias ", bias_.sizes(), " do not fit");
  const auto last = at::MemoryFormat::ChannelsLast;
  const at::Tensor x = x_.to(type).contiguous(last), bias = bias_.to(at::kFloat).contiguous();
  const at::Tensor weight = weight_.to(at::kFloat).contiguous(last);
  auto p = problem_of<Convolution>(x, weight.size(0));
  TORCH_CHECK(kernels->serves(p.C, p.O), "no kernel for ", p.C, " -> ", p.O, " channels");
  at::Tensor y = at::empty({p.N, p.O, p.H, p.W}, x.options().memory_format(last));
  at::Tensor residual;
  if (residual_) {
    TORCH_CHECK(residual_->sizes() == y.sizes(), "residual must be ", y.sizes(), ", got ", residual_->sizes());
    residual = residual_->to(type).contiguous(last);
    p.residual = residual.data_ptr();
  }
  if (y.numel() == 0) return y;
  const int64_t panels = kernels->panels(p.O), bytes = kernels->packed_bytes(p.C), tasks = kernels->pack_tasks(p.C);
  const int64_t group = std::min(panels, std::max<int64_t>(1, PACKED_BYTES / bytes));
  at::Tensor packed = at::empty({group * bytes + CACHE_LINE_BYTES}, at::kByte);
  float* const transformed = static_cast<float*>(aligned(packed.data_ptr()));
  p.x = x.data_ptr();
  p.weight = transformed;
  p.bias = static_cast<float*>(bias.data_ptr());
  TORCH_CHECK(activation != static_cast<int64_t>(Activation::gelu), "no convolution with a GELU");
  p.activation = static_cast<Activation>(activation);
  p.scale = number(scale, 1);
  p.shift = number(shift, 0);
  p.is_float = type == at::kFloat;
  p.y = y.data_ptr();
  for (p.first = 0; p.first < panels; p.first = p.last) {
    p.last = std::min<int64_t>(panels, p.first + group);
    at::parallel_for(p.first * tasks, p.last * tasks, 1, [&](int64_t begin, int64_t end) {
      kernels->pack(static_cast<const float*>(weight.data_ptr()), p.C, p.first, transformed, begin, end);
    });
    in_threads(kernels->tasks(p), kernels->bytes(p),
               [&](void* memory, int64_t begin, int64_t end) { kernels->convolve(p, memory, begin, end); });
  }
  return y;
}

constexpr int64_t SQUARES_BYTES = 5 << 20;  // of transformed squares, which caches are to hold
constexpr int64_t LEAST_SQUARES = 64;       // for which it is worth to add to all sums

// Squares are transformed and multiplied chunk by chunk; the order of sums depends on sizes alone.
at::Tensor convolution_3x3_weight_gradient(const at::Tensor& grad_, const at::Tensor& x_) {
  const Convolutions* kernels = find_kernels().convolutions;
  const Products* products = find_kernels().products;
  TORCH_CHECK(kernels, "no convolutions for this processor");
  for (const at::Tensor& tensor : {grad_, x_})
    TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.dim() == 4,
                "expected float32 maps on the CPU, got ", tensor.scalar_type(), " ", tensor.sizes(), " on ",
                tensor.device());
  TORCH_CHECK(grad_.size(0) == x_.size(0) && grad_.size(2) == x_.size(2) && grad_.size(3) == x_.size(3), "grad ",
              grad_.sizes(), " and x ", x_.sizes(), " do not fit");
  const auto last = at::MemoryFormat::ChannelsLast;
  const at::Tensor grad = grad_.contiguous(last), x = x_.contiguous(last);
  auto p = problem_of<ConvolutionGradient>(x, grad.size(1));
  TORCH_CHECK(kernels->serves(p.C, p.O), "no kernel for ", p.C, " -> ", p.O, " channels");
  at::Tensor weight = at::empty({p.O, p.C, 3, 3}, x.options().memory_format(last));
  if (x.numel() == 0) return weight.zero_();
  p.grad = static_cast<float*>(grad.data_ptr());
  p.x = static_cast<float*>(x.data_ptr());
  p.weight = static_cast<float*>(weight.data_ptr());

  const int64_t squares = kernels->squares(p), places = kernels->places;
  const int64_t fit = SQUARES_BYTES / (places * (p.C + p.O) * int64_t(sizeof(float)));
  const int64_t chunk = std::min(squares, std::max(fit, LEAST_SQUARES));
  const auto floats = [&](int64_t count) { return at::empty({count + CACHE_LINE_BYTES}, x.options()); };
  at::Tensor grads = floats(places * chunk * p.O), pixels = floats(places * chunk * p.C);
  at::Tensor sums = floats(places * p.O * p.C);
  const auto numbers = [](at::Tensor& tensor) { return static_cast<float*>(aligned(tensor.data_ptr())); };
  for (int64_t first = 0; first < squares; first += chunk) {
    const int64_t count = std::min(chunk, squares - first);
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      kernels->transform(p, first, count, numbers(grads), numbers(pixels), begin, end);
    });
    WeightGradient product = {};
    product.M = count;
    product.N = p.O;
    product.K = p.C;
    product.add = first > 0;
    const int64_t tasks = products->weight_gradient_tasks(product);
    in_threads(places * tasks, products->weight_gradient_bytes(product), [&](void* memory, int64_t begin, int64_t end) {
      for (int64_t place = begin / tasks; place * tasks < end; ++place) {
        WeightGradient of_place = product;
        of_place.grad = numbers(grads) + place * count * p.O;
        of_place.x = numbers(pixels) + place * count * p.C;
        of_place.grad_weight = numbers(sums) + place * p.O * p.C;
        const int64_t from = std::max(begin - place * tasks, int64_t(0)), to = std::min(end - place * tasks, tasks);
        products->weight_gradient(of_place, memory, from, to);
      }
    });
  }
  at::parallel_for(0, p.O, 1, [&](int64_t begin, int64_t end) {
    kernels->transform_back(p, numbers(sums), begin, end);
  });
  return weight;
}

}  // namespace
}  // namespace leandetr

TORCH_LIBRARY_IMPL(leandetr, CPU, m) {
  m.impl("convolution_3x3", leandetr::convolution_3x3);
  m.impl("convolution_3x3_weight_gradient", leandetr::convolution_3x3_weight_gradient);
}
