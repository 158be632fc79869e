// What the matrix products of linear layers compute, in plain numbers; see product_kernels.h.

#pragma once

#include "../problem.h"

namespace leandetr {

enum class Activation : int { none, relu, gelu, silu, scaled_relu };

// Some columns of a matrix.
struct Columns {
  const void* rows;
  long count, step;  // how many columns; from one row to the next
};

// y = activation(x W^T + bias + residual), or a layer norm of the sum. Matrices are stored row by row, but for x without
// gaps. T multiplies; sums are float. What may be null is said.
struct Linear {
  long M, N, K;              // x is (M, K), W (N, K), y (M, N)
  const Columns* x;          // float, or T: matrices that stand side by side
  long parts;                // so many of them
  const float* positive;     // null, or (M, K): x counts as 0 where this is not above 0, the gradient of a ReLU
  const void* weight;        // packed
  const float* bias;         // null, or (N)
  const void* residual;      // null, or (M, N): float, or T
  const long* residual_rows;  // null, or (M): which row of the residual belongs to a row, of however many it has
  const float* norm_weight;  // null, or (N)
  const float* norm_bias;
  float eps;
  Activation activation;
  float scale, shift;  // of a scaled ReLU, which is relu(.) * scale + shift
  void* y;             // T; float where it is normed
  bool x_is_float, residual_is_float;
};

// The gradient of W: grad^T x, and that of the bias, the column sums of grad.
struct WeightGradient {
  long M, N, K;           // grad is (M, N), x (M, K)
  const float* grad;      // (M, N)
  const float* positive;  // null, or (M, N), as in Linear
  const float* x;
  float* grad_weight;  // (N, K)
  float* grad_bias;    // null, or (N)
  bool add;            // to what grad_weight holds
};

// One table per instruction set and type that multiplies. Different ranges write apart, and no number depends on how the
// work is divided. A range brings memory for so many bytes as the function beside it says.
struct Products {
  long rows;                               // of x that are multiplied together; ranges count such tiles
  long (*packed_bytes)(long N, long K);
  long (*panels)(long N);
  // W (N, K), or its transpose (K, N), of floats or of T -> panels [begin, end).
  void (*pack)(const void* weight, bool is_float, bool transposed, long N, long K, void* packed, long begin, long end);
  long (*linear_bytes)(const Linear&);
  void (*linear)(const Linear&, void* memory, long begin, long end);
  // `second` takes what `first` makes of x, block by block.
  long (*feed_forward_bytes)(const Linear& first, const Linear& second);
  void (*feed_forward)(const Linear& first, const Linear& second, void* memory, long begin, long end);
  long (*weight_gradient_tasks)(const WeightGradient&);
  long (*weight_gradient_bytes)(const WeightGradient&);
  void (*weight_gradient)(const WeightGradient&, void* memory, long begin, long end);
};

#define LEANDETR_PRODUCTS(ISA, name) \
  namespace ISA {                    \
  extern const Products name;        \
  }

#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 11)
#define LEANDETR_BFLOAT16_PRODUCTS  // the compiler knows the instructions
#endif

LEANDETR_PRODUCTS(avx2, float32_products)
LEANDETR_PRODUCTS(avx512, float32_products)
LEANDETR_PRODUCTS(avx512_bf16, bfloat16_products)

}  // namespace leandetr
