// What the CUDA sources offer to the operators: one launch per call, on the given stream.

#pragma once

#include <cuda_runtime_api.h>

#include "../problem.h"

namespace leandetr {
namespace cuda {

// The most channels of a head: a warp's lanes hold four numbers each.
constexpr int MAX_WIDTH = 128;

// T (float, __half, __nv_bfloat16) stores values and answers; locations, weights and what is summed are float. Layouts as
// in cpu/kernels.h. Buffers into which values' gradients are summed, (N, S, M, D) float, must be zero before.
template <typename T>
void plain(const Problem& p, const T* value, const float* locations, const float* weights, T* answer,
           cudaStream_t stream);

// Without grad_value, the gradient of the values is left to `scatter_tiles` or `scatter_in_order`.
template <typename T>
void plain_backward(const Problem& p, const T* grad, const T* value, const float* locations, const float* weights,
                    float* grad_value, float* grad_locations, float* grad_weights, cudaStream_t stream);

// key and value may be the same pointer.
template <typename T>
void aware(const Problem& p, const T* query, const T* key, const T* value, const float* locations, T* answer,
           cudaStream_t stream);

// Where key and value are the same pointer, grad_key is not used. Without grad_value, `weights` and `slopes`, both
// (N, Q, M, K), receive what `scatter_in_order` needs; else they may be null.
template <typename T>
void aware_backward(const Problem& p, const T* grad, const T* query, const T* key, const T* value,
                    const float* locations, T* grad_query, float* grad_key, float* grad_value, float* grad_locations,
                    float* weights, float* slopes, cudaStream_t stream);

// buffer[corner] += factors[k] * share of the corner * rows. factors (N, Q, M, K), rows (N, Q, M, D), buffer (N, S, M, D).
// For queries that are tokens, as those of encoders (`has_tiles`): what neighbours add to the same cells is summed before.
template <typename T>
void scatter_tiles(const Problem& p, const T* rows, const float* locations, const float* factors, float* buffer,
                   cudaStream_t stream);
bool has_tiles(const Problem& p);

// The same in an order that never changes. One thread adds everything to one channel of one level: slow.
template <typename T>
void scatter_in_order(const Problem& p, const T* rows, const float* locations, const float* factors, float* buffer,
                      cudaStream_t stream);

}  // namespace cuda
}  // namespace leandetr
