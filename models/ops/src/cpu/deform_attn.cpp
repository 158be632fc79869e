// The operators on CPU tensors: checks, threads, and the choice of kernels for this processor.

#include <ATen/Parallel.h>
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <tuple>

#include "../arguments.h"

namespace leandetr {
namespace {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set of this processor, or a lesser one that LEANDETR_CPU asks for.
Isa choose_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const char* wish = std::getenv("LEANDETR_CPU");
  const std::string wanted = wish ? wish : "avx512";
  if (wanted == "avx512" && avx512) return Isa::avx512;
  if (wanted != "baseline" && avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

template <typename T>
struct Types;

#if defined(__x86_64__) && defined(__GNUC__)
#define PICK(table)                                \
  switch (isa) {                                   \
    case Isa::avx512: return avx512::table;        \
    case Isa::avx2: return avx2::table;            \
    default: return baseline::table;               \
  }
#else
#define PICK(table) return baseline::table;
#endif

#define STORAGE(scalar, storage, accumulator, table)           \
  template <>                                                  \
  struct Types<scalar> {                                       \
    typedef storage T;                                         \
    typedef accumulator A;                                     \
    static const Kernels<T, A>& kernels(Isa isa) { PICK(table) } \
  };

STORAGE(float, float, float, float32_kernels)
STORAGE(double, double, double, float64_kernels)
STORAGE(at::BFloat16, BFloat16, float, bfloat16_kernels)
STORAGE(at::Half, Float16, float, float16_kernels)

// The type that locations and weights have, and in which gradients of values are summed.
at::ScalarType accumulator(const at::Tensor& value) { return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// Rows of numbers begin with a cache line: vectors that reach into the next line cost twice.
constexpr std::align_val_t CACHE_LINE{64};
struct Release {
  void operator()(void* memory) const { ::operator delete(memory, CACHE_LINE); }
};

// Shares `count` pieces of work among the threads; each gets memory for `numbers` numbers of its own.
template <typename A, typename Work>
void in_threads(int64_t count, long numbers, const Work& work) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, Release> memory(::operator new(numbers * sizeof(A), CACHE_LINE));
    work(static_cast<A*>(memory.get()), begin, end);
  });
}

#define DISPATCH(value, ...)                                                                                \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, (value).scalar_type(), "deform_attn_cpu", [&] { \
    using T = typename Types<scalar_t>::T;                                                                  \
    using A = typename Types<scalar_t>::A;                                                                  \
    static const Kernels<T, A>& kernels = Types<scalar_t>::kernels(choose_isa());                           \
    TORCH_CHECK(kernels.plain, "this build cannot compute in ", (value).scalar_type());                     \
    __VA_ARGS__                                                                                             \
  })

at::Tensor plain(const at::Tensor& value_, at::IntArrayRef shapes, const at::Tensor& locations_,
                 const at::Tensor& weights_) {
  const auto value = value_.contiguous();
  const auto locations = as(locations_, accumulator(value)), weights = as(weights_, accumulator(value));
  const Problem p = describe(value, shapes, locations, {weights});
  auto answer = at::empty({p.N, p.Q, p.M * p.D}, value.options());
  DISPATCH(value, {
    in_threads<A>(p.N * p.M * p.Q, kernels.scratch(p, 1), [&](A* memory, int64_t begin, int64_t end) {
      kernels.plain(p, data<const T*>(value), data<const A*>(locations), data<const A*>(weights), data<T*>(answer),
                    memory, begin, end);
    });
  });
  return answer;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> plain_backward(const at::Tensor& grad_, const at::Tensor& value_,
                                                              at::IntArrayRef shapes, const at::Tensor& locations_,
                                                              const at::Tensor& weights_) {
  const auto value = value_.contiguous(), grad = as(grad_, value.scalar_type());
  const auto locations = as(locations_, accumulator(value)), weights = as(weights_, accumulator(value));
  const Problem p = describe(value, shapes, locations, {grad, weights});
  auto grad_value = at::empty_like(value);
  auto grad_locations = at::empty_like(locations), grad_weights = at::empty_like(weights);
  DISPATCH(value, {
    in_threads<A>(p.N * p.M, kernels.scratch(p, 2), [&](A* memory, int64_t begin, int64_t end) {
      kernels.plain_backward(p, data<const T*>(grad), data<const T*>(value), data<const A*>(locations),
                             data<const A*>(weights), data<T*>(grad_value), data<A*>(grad_locations),
                             data<A*>(grad_weights), memory, begin, end);
    });
  });
  return {grad_value, grad_locations.to(locations_.scalar_type()),
          grad_weights.to(weights_.scalar_type())};
}

at::Tensor aware(const at::Tensor& query_, const std::optional<at::Tensor>& key_, const at::Tensor& value_,
                 at::IntArrayRef shapes, const at::Tensor& locations_) {
  const auto value = value_.contiguous(), key = key_ ? as(*key_, value.scalar_type()) : value;
  const auto query = as(query_, value.scalar_type()), locations = as(locations_, accumulator(value));
  const Problem p = describe(value, shapes, locations, {query, key});
  auto answer = at::empty({p.N, p.Q, p.M * p.D}, value.options());
  DISPATCH(value, {
    in_threads<A>(p.N * p.M * p.Q, kernels.scratch(p, key_ ? 2 : 1), [&](A* memory, int64_t begin, int64_t end) {
      kernels.aware(p, data<const T*>(query), data<const T*>(key), data<const T*>(value), data<const A*>(locations),
                    data<T*>(answer), memory, begin, end);
    });
  });
  return answer;
}

// Gradients of query, key (empty where the values are the keys), value, locations.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> aware_backward(
    const at::Tensor& grad_, const at::Tensor& query_, const std::optional<at::Tensor>& key_, const at::Tensor& value_,
    at::IntArrayRef shapes, const at::Tensor& locations_) {
  const auto value = value_.contiguous(), key = key_ ? apart(*key_, value) : value;
  const auto query = as(query_, value.scalar_type()), grad = as(grad_, value.scalar_type());
  const auto locations = as(locations_, accumulator(value));
  const Problem p = describe(value, shapes, locations, {grad, query, key});
  auto grad_value = at::empty_like(value), grad_key = key_ ? at::empty_like(value) : at::empty({0}, value.options());
  auto grad_query = at::empty_like(query), grad_locations = at::empty_like(locations);
  DISPATCH(value, {
    in_threads<A>(p.N * p.M, kernels.scratch(p, key_ ? 4 : 2), [&](A* memory, int64_t begin, int64_t end) {
      kernels.aware_backward(p, data<const T*>(grad), data<const T*>(query), data<const T*>(key),
                             data<const T*>(value), data<const A*>(locations), data<T*>(grad_query),
                             data<T*>(grad_key), data<T*>(grad_value), data<A*>(grad_locations),
                             memory, begin, end);
    });
  });
  return {grad_query.to(query_.scalar_type()), grad_key.to(key_ ? key_->scalar_type() : value.scalar_type()),
          grad_value, grad_locations.to(locations_.scalar_type())};
}

}  // namespace
}  // namespace leandetr

TORCH_LIBRARY_IMPL(leandetr, CPU, m) {
  m.impl("ms_deform_attn", leandetr::plain);
  m.impl("ms_deform_attn_backward", leandetr::plain_backward);
  m.impl("key_aware_deform_attn", leandetr::aware);
  m.impl("key_aware_deform_attn_backward", leandetr::aware_backward);
}
