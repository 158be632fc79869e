// Linear layers on CPU tensors: checks, memory, threads, and the choice of kernels for this processor.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "memory.h"
#include "numbers.h"
#include "processor.h"
#include "products.h"

namespace leandetr {
namespace {

using Optional = std::optional<at::Tensor>;

// Null where there are none for this processor, or where this build lacks them.
const Products* find_products(at::ScalarType type) {
#if defined(__x86_64__) && defined(__GNUC__)
  const Isa isa = choose_isa();
  if (type == at::kFloat && isa == Isa::avx512) return &avx512::float32_products;
  if (type == at::kFloat && isa == Isa::avx2) return &avx2::float32_products;
#ifdef LEANDETR_BFLOAT16_PRODUCTS
  if (type == at::kBFloat16 && isa == Isa::avx512 && __builtin_cpu_supports("avx512bf16"))
    return &avx512_bf16::bfloat16_products;
#endif
#endif
  return nullptr;
}

const Products& products_of(at::ScalarType type) {
  const Products* found = find_products(type);
  TORCH_CHECK(found, "no products of linear layers in ", type, " for this processor");
  return *found;
}

void check(const at::Tensor& tensor, const char* name, at::ScalarType type, at::IntArrayRef sizes) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.sizes() == sizes, name, " must be ", sizes, " on the CPU, got ",
              tensor.sizes(), " on ", tensor.device());
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == type, name, " is ", tensor.scalar_type());
}

Optional contiguous(const Optional& tensor) { return tensor ? Optional(tensor->contiguous()) : tensor; }

Optional as_float(const Optional& tensor, const char* name, int64_t size) {
  if (!tensor) return tensor;
  TORCH_CHECK(tensor->dim() == 1 && tensor->size(0) == size, name, " must be (", size, "), got ", tensor->sizes());
  return tensor->to(at::kFloat).contiguous();
}

template <typename T = void>
T* pointer(const Optional& tensor) {
  return tensor ? static_cast<T*>(tensor->data_ptr()) : nullptr;
}

// W (N, K), or (K, N) where transposed, as the kernels read it.
at::Tensor packed(const Products& products, const at::Tensor& weight_, at::ScalarType type, bool transposed) {
  const at::Tensor weight = weight_.contiguous();
  const int64_t N = weight.size(transposed ? 1 : 0), K = weight.size(transposed ? 0 : 1);
  at::Tensor answer = at::empty({products.packed_bytes(N, K) + CACHE_LINE_BYTES}, at::kByte);
  at::parallel_for(0, products.panels(N), 1, [&](int64_t begin, int64_t end) {
    products.pack(weight.data_ptr(), weight.scalar_type() == at::kFloat, transposed, N, K, aligned(answer.data_ptr()),
                  begin, end);
  });
  return answer;
}

// A matrix without gaps as what a layer reads.
Columns columns_of(const at::Tensor& x) { return {x.data_ptr(), x.size(-1), x.size(-1)}; }

// What is common to a layer's problem; the tensors, and x as columns, must outlive it.
Linear describe(const at::Tensor& x, const Columns& columns, const at::Tensor& weight, const at::Tensor& packed_weight,
                const Optional& bias) {
  Linear p = {};
  p.K = weight.size(1);
  p.N = weight.size(0);
  p.M = p.K ? x.numel() / p.K : 0;
  p.x = &columns;
  p.parts = 1;
  p.x_is_float = x.scalar_type() == at::kFloat;
  p.residual_is_float = true;
  p.weight = aligned(packed_weight.data_ptr());
  p.bias = pointer<float>(bias);
  return p;
}

// Has a layer's answer be the norm of its sum with a residual, if there is one.
void add_norm(Linear& p, const Optional& residual, const Optional& weight, const Optional& bias, double eps) {
  p.residual = pointer(residual);
  p.residual_is_float = !residual || residual->scalar_type() == at::kFloat;
  p.norm_weight = pointer<float>(weight);
  p.norm_bias = pointer<float>(bias);
  p.eps = static_cast<float>(eps);
}

void check_layer(const at::Tensor& x, const at::Tensor& weight, at::ScalarType type) {
  TORCH_CHECK(weight.dim() == 2 && x.dim() > 0 && x.size(-1) == weight.size(1) && weight.size(1) > 0, "x ", x.sizes(),
              " and weight ", weight.sizes(), " do not fit");
  check(x, "x", type, x.sizes());
  check(weight, "weight", type, weight.sizes());
}

void run(const Products& products, const Linear& p) {
  if (p.M == 0 || p.N == 0) return;
  in_threads((p.M + products.rows - 1) / products.rows, products.linear_bytes(p),
             [&](void* memory, int64_t begin, int64_t end) { products.linear(p, memory, begin, end); });
}

std::vector<int64_t> answer_sizes(const at::Tensor& x, int64_t width) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = width;
  return sizes;
}

at::Tensor linear(const at::Tensor& x_, const at::Tensor& weight, const Optional& bias_, const Optional& residual_,
                  int64_t activation, at::ScalarType type) {
  const Products& products = products_of(type);
  check_layer(x_, weight, type);
  const at::Tensor x = x_.contiguous();
  const Optional bias = as_float(bias_, "bias", weight.size(0)), residual = contiguous(residual_);
  at::Tensor y = at::empty(answer_sizes(x, weight.size(0)), x.options().dtype(type));
  if (residual) check(*residual, "residual", type, y.sizes());
  const at::Tensor w = packed(products, weight, type, false);
  const Columns columns = columns_of(x);
  Linear p = describe(x, columns, weight, w, bias);
  p.residual = pointer(residual);
  p.residual_is_float = !residual || residual->scalar_type() == at::kFloat;
  p.activation = static_cast<Activation>(activation);
  p.y = y.data_ptr();
  run(products, p);
  return y;
}

at::Tensor linear_norm(const at::Tensor& x_, const at::Tensor& weight, const Optional& bias_, const Optional& residual_,
                       const at::Tensor& norm_weight, const at::Tensor& norm_bias, double eps, at::ScalarType type) {
  const Products& products = products_of(type);
  check_layer(x_, weight, type);
  const at::Tensor x = x_.contiguous();
  const Optional bias = as_float(bias_, "bias", weight.size(0)), residual = contiguous(residual_);
  const Optional scale = as_float(norm_weight, "norm_weight", weight.size(0));
  const Optional shift = as_float(norm_bias, "norm_bias", weight.size(0));
  at::Tensor y = at::empty(answer_sizes(x, weight.size(0)), x.options().dtype(at::kFloat));
  if (residual) check(*residual, "residual", type, y.sizes());
  const at::Tensor w = packed(products, weight, type, false);
  const Columns columns = columns_of(x);
  Linear p = describe(x, columns, weight, w, bias);
  add_norm(p, residual, scale, shift, eps);
  p.y = y.data_ptr();
  run(products, p);
  return y;
}

at::Tensor feed_forward(const at::Tensor& x_, const at::Tensor& weight1, const Optional& bias1_,
                        const at::Tensor& weight2, const Optional& bias2_, const at::Tensor& norm_weight,
                        const at::Tensor& norm_bias, double eps, int64_t activation, at::ScalarType type) {
  const Products& products = products_of(type);
  check_layer(x_, weight1, type);
  check(weight2, "weight2", type, {weight1.size(1), weight1.size(0)});
  TORCH_CHECK(weight1.size(0) > 0, "the hidden layer is empty");
  const at::Tensor x = x_.contiguous();
  const int64_t width = weight2.size(0);
  const Optional bias1 = as_float(bias1_, "bias1", weight1.size(0)), bias2 = as_float(bias2_, "bias2", width);
  const Optional scale = as_float(norm_weight, "norm_weight", width), shift = as_float(norm_bias, "norm_bias", width);
  at::Tensor y = at::empty(x.sizes(), x.options().dtype(at::kFloat));
  const at::Tensor w1 = packed(products, weight1, type, false), w2 = packed(products, weight2, type, false);
  const Columns columns = columns_of(x);
  Linear first = describe(x, columns, weight1, w1, bias1), second = describe(x, columns, weight2, w2, bias2);
  first.activation = static_cast<Activation>(activation);
  second.M = first.M;
  second.parts = 0;
  add_norm(second, x, scale, shift, eps);
  second.y = y.data_ptr();
  if (first.M == 0) return y;
  in_threads((first.M + products.rows - 1) / products.rows, products.feed_forward_bytes(first, second),
             [&](void* memory, int64_t begin, int64_t end) { products.feed_forward(first, second, memory, begin, end); });
  return y;
}

// Gradients of x, weight and bias, those that are asked for; others are empty.
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_backward(const at::Tensor& grad_, const at::Tensor& x_,
                                                               const at::Tensor& weight, const Optional& positive_,
                                                               std::array<bool, 3> wanted) {
  const Products& products = products_of(at::kFloat);
  check_layer(x_, weight, at::kFloat);
  const at::Tensor grad = grad_.contiguous(), x = x_.contiguous();
  const Optional positive = contiguous(positive_);
  check(grad, "grad", at::kFloat, answer_sizes(x, weight.size(0)));
  if (positive) check(*positive, "positive", at::kFloat, grad.sizes());
  at::Tensor grad_x = at::empty({0}, x.options()), grad_weight = grad_x, grad_bias = grad_x;
  if (wanted[0]) {
    grad_x = at::empty(x.sizes(), x.options());
    const at::Tensor w = packed(products, weight, at::kFloat, true);
    Linear p = {};
    p.K = weight.size(0);
    p.N = weight.size(1);
    p.M = grad.numel() / (p.K ? p.K : 1);
    const Columns columns = columns_of(grad);
    p.x = &columns;
    p.parts = 1;
    p.x_is_float = p.residual_is_float = true;
    p.positive = pointer<float>(positive);
    p.weight = aligned(w.data_ptr());
    p.y = grad_x.data_ptr();
    if (p.K == 0) grad_x.zero_();
    else run(products, p);
  }
  if (wanted[1] || wanted[2]) {
    grad_weight = at::empty(weight.sizes(), weight.options());
    if (wanted[2]) grad_bias = at::empty({weight.size(0)}, weight.options());
    WeightGradient p = {};
    p.N = weight.size(0);
    p.K = weight.size(1);
    p.M = x.numel() / p.K;
    p.grad = static_cast<float*>(grad.data_ptr());
    p.positive = pointer<float>(positive);
    p.x = static_cast<float*>(x.data_ptr());
    p.grad_weight = static_cast<float*>(grad_weight.data_ptr());
    p.grad_bias = wanted[2] ? static_cast<float*>(grad_bias.data_ptr()) : nullptr;
    in_threads(products.weight_gradient_tasks(p), products.weight_gradient_bytes(p),
               [&](void* memory, int64_t begin, int64_t end) { products.weight_gradient(p, memory, begin, end); });
  }
  return {grad_x, grad_weight, grad_bias};
}

// Which row of a map (images, height, width), enlarged from (images, H, W) to the nearest pixel as PyTorch does, each
// pixel takes.
std::vector<long> enlarged_rows(int64_t images, int64_t height, int64_t width, int64_t H, int64_t W) {
  const auto sources = [](int64_t to, int64_t from) {
    const float scale = static_cast<float>(from) / static_cast<float>(to);
    std::vector<long> found(to);
    for (int64_t i = 0; i < to; ++i) found[i] = std::min(static_cast<int64_t>(i * scale), from - 1);
    return found;
  };
  const std::vector<long> down = sources(height, H), across = sources(width, W);
  std::vector<long> rows;
  rows.reserve(images * height * width);
  for (int64_t n = 0; n < images; ++n)
    for (const long y : down)
      for (const long x : across) rows.push_back((n * H + y) * W + x);
  return rows;
}

// A map (B, C, H, W) as rows of channels, one for every pixel, some numbers apart.
struct Rows {
  at::Tensor map;
  int64_t step;

  Rows(const at::Tensor& given, at::ScalarType type) {
    TORCH_CHECK(given.dim() == 4 && given.device().is_cpu(), "expected maps on the CPU, got ", given.sizes(), " on ",
                given.device());
    map = given.to(type);
    const int64_t images = map.size(0), channels = map.size(1), height = map.size(2), width = map.size(3);
    step = width > 1 ? map.stride(3) : height > 1 ? map.stride(2) : images > 1 ? map.stride(0) : channels;
    const bool lie_so = (channels == 1 || map.stride(1) == 1) && step >= channels &&
                        (height == 1 || map.stride(2) == step * width) &&
                        (images == 1 || map.stride(0) == step * width * height);
    if (lie_so) return;
    map = map.contiguous(at::MemoryFormat::ChannelsLast);
    step = channels;
  }
};

// One 1x1 convolution of maps side by side. Those smaller than the last are multiplied as they are, and the sums enlarged
// to the nearest pixel: the same, up to rounding, as enlarging them before.
at::Tensor convolution_1x1(at::TensorList maps, const at::Tensor& weight_, const at::Tensor& bias_,
                           const Optional& residual_, int64_t activation, const Optional& scale, const Optional& shift,
                           at::ScalarType type) {
  const Products& products = products_of(type);
  TORCH_CHECK(!maps.empty() && weight_.dim() == 4 && weight_.size(2) == 1 && weight_.size(3) == 1,
              "expected maps and weights of 1x1 pixels, got ", maps.size(), " and ", weight_.sizes());
  const at::Tensor weight = weight_.reshape({weight_.size(0), weight_.size(1)});
  check(weight, "weight", type, weight.sizes());
  std::vector<Rows> held;
  for (const at::Tensor& map : maps) held.emplace_back(map, type);
  const at::Tensor& last = held.back().map;
  const int64_t images = last.size(0), H = last.size(2), W = last.size(3), N = weight.size(0);
  const Optional bias = as_float(bias_, "bias", N);
  at::Tensor y = at::empty({images, N, H, W}, last.options().dtype(type).memory_format(at::MemoryFormat::ChannelsLast));
  std::vector<Columns> whole;
  std::vector<at::Tensor> weights;  // of the maps that are as large as the last
  std::vector<long> rows;
  Optional residual;
  if (residual_) residual = residual_->to(type).contiguous(at::MemoryFormat::ChannelsLast);
  if (residual) check(*residual, "residual", type, y.sizes());
  int64_t column = 0;
  for (const auto& [map, step] : held) {
    const int64_t channels = map.size(1);
    TORCH_CHECK(map.size(0) == images && column + channels <= weight.size(1), "map ", map.sizes(), " and weight ",
                weight.sizes(), " do not fit");
    const at::Tensor part = weight.narrow(1, column, channels);
    const Columns columns = {map.data_ptr(), channels, step};
    column += channels;
    if (map.size(2) == H && map.size(3) == W) {
      whole.push_back(columns);
      weights.push_back(part);
      continue;
    }
    TORCH_CHECK(!residual && map.numel() > 0, "one smaller map, and no residual beside it");
    residual = at::empty({images, N, map.size(2), map.size(3)}, y.options().memory_format(at::MemoryFormat::ChannelsLast));
    const at::Tensor w = packed(products, part, type, false);
    Linear p = describe(map, columns, part, w, std::nullopt);
    p.y = residual->data_ptr();
    run(products, p);
    rows = enlarged_rows(images, H, W, map.size(2), map.size(3));
  }
  TORCH_CHECK(column == weight.size(1), "maps have ", column, " channels, weight is ", weight.sizes());
  if (y.numel() == 0) return y;
  const at::Tensor taken = weights.size() == maps.size() ? weight : at::cat(weights, 1);
  const at::Tensor w = packed(products, taken, type, false);
  Linear p = describe(last, whole[0], taken, w, bias);
  p.M = images * H * W;
  p.x = whole.data();
  p.parts = static_cast<long>(whole.size());
  p.residual = pointer(residual);
  p.residual_is_float = !residual || residual->scalar_type() == at::kFloat;
  p.residual_rows = rows.empty() ? nullptr : rows.data();
  p.activation = static_cast<Activation>(activation);
  p.scale = number(scale, 1);
  p.shift = number(shift, 0);
  p.y = y.data_ptr();
  run(products, p);
  return y;
}

// Which instructions multiply numbers of a type; empty where linear layers have no kernels of their own.
std::string product_instructions(at::ScalarType type) {
#if defined(__x86_64__) && defined(__GNUC__)
  const Products* found = find_products(type);
  if (found == &avx512::float32_products) return "AVX-512";
  if (found == &avx2::float32_products) return "AVX2";
  if (found) return "AVX512-BF16";
#endif
  return "";
}

}  // namespace
}  // namespace leandetr

TORCH_LIBRARY_IMPL(leandetr, CPU, m) {
  m.impl("linear", leandetr::linear);
  m.impl("linear_norm", leandetr::linear_norm);
  m.impl("feed_forward", leandetr::feed_forward);
  m.impl("linear_backward", leandetr::linear_backward);
  m.impl("convolution_1x1", leandetr::convolution_1x1);
}
TORCH_LIBRARY_IMPL(leandetr, CompositeExplicitAutograd, m) {
  m.impl("product_instructions", leandetr::product_instructions);
}
