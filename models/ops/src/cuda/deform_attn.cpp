// The operators on CUDA tensors.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/library.h>

#include <tuple>

#include "../arguments.h"
#include "kernels.h"

namespace leandetr {
namespace {

// Runs the last argument with T set to the type that kernels store values in, on the tensor's device.
#define ON_DEVICE(value, ...)                                                             \
  const c10::cuda::CUDAGuard guard((value).device());                                     \
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();                          \
  switch ((value).scalar_type()) {                                                        \
    case at::kFloat: { using T = float; __VA_ARGS__ break; }                              \
    case at::kHalf: { using T = __half; __VA_ARGS__ break; }                              \
    case at::kBFloat16: { using T = __nv_bfloat16; __VA_ARGS__ break; }                   \
    default: TORCH_CHECK(false, "the CUDA kernels do not take ", (value).scalar_type());  \
  }                                                                                       \
  C10_CUDA_KERNEL_LAUNCH_CHECK();

Problem checked(const at::Tensor& value, at::IntArrayRef shapes, const at::Tensor& locations,
                std::initializer_list<at::Tensor> others) {
  TORCH_CHECK(value.size(3) <= cuda::MAX_WIDTH, "heads are at most ", cuda::MAX_WIDTH, " wide, not ", value.size(3));
  const Problem p = describe(value, shapes, locations, others);
  TORCH_CHECK(p.N * p.Q * p.M < (int64_t(1) << 31), "images times queries times heads are 2^31 or more");
  return p;
}

// Atomic additions come in any order; whoever wants the same bits every time gets the slow kernel.
bool in_order() { return at::globalContext().deterministicAlgorithms(); }

at::Tensor zeros(const at::Tensor& like) { return at::zeros(like.sizes(), like.options().dtype(at::kFloat)); }

float* pointer_unless(bool condition, const at::Tensor& tensor) { return condition ? nullptr : data<float*>(tensor); }

at::Tensor plain(const at::Tensor& value_, at::IntArrayRef shapes, const at::Tensor& locations_,
                 const at::Tensor& weights_) {
  const auto value = value_.contiguous(), locations = as(locations_, at::kFloat), weights = as(weights_, at::kFloat);
  const Problem p = checked(value, shapes, locations, {weights});
  auto answer = at::empty({p.N, p.Q, p.M * p.D}, value.options());
  if (answer.numel() == 0) return answer;
  ON_DEVICE(value, {
    cuda::plain<T>(p, data<const T*>(value), data<const float*>(locations), data<const float*>(weights),
                   data<T*>(answer), stream);
  })
  return answer;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> plain_backward(const at::Tensor& grad_, const at::Tensor& value_,
                                                              at::IntArrayRef shapes, const at::Tensor& locations_,
                                                              const at::Tensor& weights_) {
  const auto value = value_.contiguous(), grad = as(grad_, value.scalar_type());
  const auto locations = as(locations_, at::kFloat), weights = as(weights_, at::kFloat);
  const Problem p = checked(value, shapes, locations, {grad, weights});
  auto grad_value = zeros(value), grad_locations = at::empty_like(locations), grad_weights = at::empty_like(weights);
  if (grad.numel() > 0) {
    const bool ordered = in_order(), tiled = !ordered && cuda::has_tiles(p);
    ON_DEVICE(value, {
      cuda::plain_backward<T>(p, data<const T*>(grad), data<const T*>(value), data<const float*>(locations),
                              data<const float*>(weights), pointer_unless(ordered || tiled, grad_value),
                              data<float*>(grad_locations), data<float*>(grad_weights), stream);
      if (ordered || tiled) {
        const auto scatter = ordered ? cuda::scatter_in_order<T> : cuda::scatter_tiles<T>;
        scatter(p, data<const T*>(grad), data<const float*>(locations), data<const float*>(weights),
                data<float*>(grad_value), stream);
      }
    })
  }
  return {grad_value.to(value.scalar_type()), grad_locations.to(locations_.scalar_type()),
          grad_weights.to(weights_.scalar_type())};
}

at::Tensor aware(const at::Tensor& query_, const std::optional<at::Tensor>& key_, const at::Tensor& value_,
                 at::IntArrayRef shapes, const at::Tensor& locations_) {
  const auto value = value_.contiguous(), key = key_ ? as(*key_, value.scalar_type()) : value;
  const auto query = as(query_, value.scalar_type()), locations = as(locations_, at::kFloat);
  const Problem p = checked(value, shapes, locations, {query, key});
  auto answer = at::empty({p.N, p.Q, p.M * p.D}, value.options());
  if (answer.numel() == 0) return answer;
  ON_DEVICE(value, {
    cuda::aware<T>(p, data<const T*>(query), data<const T*>(key), data<const T*>(value), data<const float*>(locations),
                   data<T*>(answer), stream);
  })
  return answer;
}

// Gradients of query, key (empty where the values are the keys), value, locations.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> aware_backward(
    const at::Tensor& grad_, const at::Tensor& query_, const std::optional<at::Tensor>& key_, const at::Tensor& value_,
    at::IntArrayRef shapes, const at::Tensor& locations_) {
  const auto value = value_.contiguous(), key = key_ ? apart(*key_, value) : value;
  const auto query = as(query_, value.scalar_type()), grad = as(grad_, value.scalar_type());
  const auto locations = as(locations_, at::kFloat);
  const Problem p = checked(value, shapes, locations, {grad, query, key});
  const bool ordered = in_order();
  auto grad_value = zeros(value), grad_key = key_ ? zeros(value) : grad_value;
  auto grad_query = at::empty_like(query), grad_locations = at::empty_like(locations);
  if (grad.numel() > 0) {
    at::Tensor weights, slopes;
    if (ordered) {
      weights = at::empty({p.N, p.Q, p.M, p.K}, locations.options());
      slopes = at::empty_like(weights);
    }
    ON_DEVICE(value, {
      cuda::aware_backward<T>(p, data<const T*>(grad), data<const T*>(query), data<const T*>(key),
                              data<const T*>(value), data<const float*>(locations), data<T*>(grad_query),
                              pointer_unless(ordered, grad_key), pointer_unless(ordered, grad_value),
                              data<float*>(grad_locations), pointer_unless(!ordered, weights),
                              pointer_unless(!ordered, slopes), stream);
      if (ordered) {
        cuda::scatter_in_order<T>(p, data<const T*>(grad), data<const float*>(locations), data<const float*>(weights),
                                  data<float*>(grad_value), stream);
        cuda::scatter_in_order<T>(p, data<const T*>(query), data<const float*>(locations), data<const float*>(slopes),
                                  data<float*>(grad_key), stream);
      }
    })
  }
  const auto returned_key = key_ ? grad_key.to(key_->scalar_type()) : at::empty({0}, value.options());
  return {grad_query.to(query_.scalar_type()), returned_key, grad_value.to(value.scalar_type()),
          grad_locations.to(locations_.scalar_type())};
}

}  // namespace
}  // namespace leandetr

TORCH_LIBRARY_IMPL(leandetr, CUDA, m) {
  m.impl("ms_deform_attn", leandetr::plain);
  m.impl("ms_deform_attn_backward", leandetr::plain_backward);
  m.impl("key_aware_deform_attn", leandetr::aware);
  m.impl("key_aware_deform_attn_backward", leandetr::aware_backward);
}
