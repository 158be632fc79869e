// The operators on CPU tensors: checks, threads, and the choice of kernels for this processor.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

#include "../arguments.h"
#include "memory.h"
#include "processor.h"

namespace leandetr {
namespace {

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
    in_threads(p.N * p.M * p.Q, sizeof(A) * kernels.scratch(p, 1), [&](void* scratch, int64_t begin, int64_t end) {
      A* const memory = static_cast<A*>(scratch);
      kernels.plain(p, data<const T*>(value), data<const A*>(locations), data<const A*>(weights), data<T*>(answer),
                    memory, begin, end);
    });
  });
  return answer;
}

// A query's reference (N, Q, L, sides), sides `side` and the next one, times a factor: for every sample, (N, Q, K, 2).
at::Tensor of_samples(const Problem& p, const at::Tensor& reference, int64_t side, double factor) {
  at::Tensor answer = at::empty({p.N, p.Q, p.K, 2}, reference.options());
  AT_DISPATCH_FLOATING_TYPES(reference.scalar_type(), "deform_attn_cpu", [&] {
    const scalar_t* from = data<const scalar_t*>(reference) + side;
    scalar_t* to = data<scalar_t*>(answer);
    const int64_t sides = reference.size(3);
    at::parallel_for(0, p.N * p.Q, 1024, [&](int64_t begin, int64_t end) {
      for (int64_t query = begin; query < end; ++query)
        for (int64_t k = 0; k < p.K; ++k)
          for (int64_t i = 0; i < 2; ++i)
            to[(query * p.K + k) * 2 + i] = from[(query * p.L + k / p.points) * sides + i] * scalar_t(factor);
    });
  });
  return answer;
}

// Offsets (N, Q, M, L, P, 2), logits (N, Q, M, L, P), reference (N, Q, L, 2 or 4): points, whose offsets are in pixels, or
// boxes, whose offsets are in shares of half their size.
at::Tensor asked(const at::Tensor& value_, at::IntArrayRef shapes, const at::Tensor& offsets_, const at::Tensor& logits_,
                 const at::Tensor& reference_) {
  const auto value = value_.contiguous();
  const auto offsets = as(offsets_, value.scalar_type()), logits = as(logits_, value.scalar_type());
  const auto reference = as(reference_, accumulator(value));
  const Problem p = describe(value, shapes, offsets, {logits, reference});
  TORCH_CHECK(logits.sizes() == offsets.sizes().slice(0, 5), "logits ", logits.sizes(), " do not fit offsets ",
              offsets.sizes());
  TORCH_CHECK(reference.dim() == 4 && reference.size(0) == p.N && reference.size(1) == p.Q && reference.size(2) == p.L &&
                  (reference.size(3) == 2 || reference.size(3) == 4),
              "reference ", reference.sizes(), " does not fit offsets ", offsets.sizes());
  const bool boxes = reference.size(3) == 4;
  const at::Tensor center = of_samples(p, reference, 0, 1), extent = boxes ? of_samples(p, reference, 2, 0.5) : center;
  auto answer = at::empty({p.N, p.Q, p.M * p.D}, value.options());
  DISPATCH(value, {
    A unit[2 * MAX_SAMPLES];
    for (int k = 0; k < p.K; ++k) {
      unit[2 * k] = static_cast<A>(boxes ? p.points : p.width[k]);
      unit[2 * k + 1] = static_cast<A>(boxes ? p.points : p.height[k]);
    }
    const Asked<T, A> a{data<const T*>(offsets), data<const T*>(logits), data<const A*>(center),
                        boxes ? data<const A*>(extent) : nullptr, unit};
    in_threads(p.N * p.M * p.Q, sizeof(A) * kernels.scratch(p, 1), [&](void* scratch, int64_t begin, int64_t end) {
      kernels.asked(p, data<const T*>(value), a, data<T*>(answer), static_cast<A*>(scratch), begin, end);
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
    in_threads(p.N * p.M, sizeof(A) * kernels.scratch(p, 2), [&](void* scratch, int64_t begin, int64_t end) {
      A* const memory = static_cast<A*>(scratch);
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
    in_threads(p.N * p.M * p.Q, sizeof(A) * kernels.scratch(p, key_ ? 2 : 1), [&](void* scratch, int64_t begin, int64_t end) {
      A* const memory = static_cast<A*>(scratch);
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
    in_threads(p.N * p.M, sizeof(A) * kernels.scratch(p, key_ ? 4 : 2), [&](void* scratch, int64_t begin, int64_t end) {
      A* const memory = static_cast<A*>(scratch);
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
  m.impl("ms_deform_attn_of_offsets", leandetr::asked);
  m.impl("ms_deform_attn_backward", leandetr::plain_backward);
  m.impl("key_aware_deform_attn", leandetr::aware);
  m.impl("key_aware_deform_attn_backward", leandetr::aware_backward);
}
