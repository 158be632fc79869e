// What one call computes, in plain numbers.

#pragma once

namespace leandetr {

constexpr int MAX_SAMPLES = 128;  // levels * points of one head of one query

struct BFloat16 {
  unsigned short bits;
};
struct Float16 {
  unsigned short bits;
};

struct Problem {
  long N, S, Q, M, D;
  int L, points;
  int K;                    // L * points
  int height[MAX_SAMPLES];  // of the level that each sample looks at
  int width[MAX_SAMPLES];
  int start[MAX_SAMPLES];  // first token of that level
};

// Locations and weights before they are such: a sample is at center + offset / unit * extent, and weighs the softmax of the
// K logits of its head.
template <typename T, typename A>
struct Asked {
  const T* offsets;  // (N, Q, M, K, 2)
  const T* logits;   // (N, Q, M, K)
  const A* center;   // (N, Q, K, 2)
  const A* extent;   // the same, or null: 1
  const A* unit;     // (K, 2)
};

// One table of these per instruction set and storage type. T stores values and answers; A (float, for double double)
// stores locations and weights and accumulates. A forward kernel computes heads of queries
// begin <= (n * M + m) * Q + q < end, a backward kernel all queries of the heads begin <= n * M + m < end; what different
// ranges write does not overlap. Each call brings memory for scratch(problem, heads) numbers, where `heads` is 1 for
// forward kernels and 2 for backward kernels, and twice that where the keys are other rows than the values.
template <typename T, typename A>
struct Kernels {
  long (*scratch)(const Problem&, int heads);
  void (*plain)(const Problem&, const T* value, const A* locations, const A* weights, T* answer, A* memory, long begin,
                long end);
  // The same, of what a query's linear layers say: see Asked.
  void (*asked)(const Problem&, const T* value, const Asked<T, A>&, T* answer, A* memory, long begin, long end);
  void (*plain_backward)(const Problem&, const T* grad, const T* value, const A* locations, const A* weights,
                         T* grad_value, A* grad_locations, A* grad_weights, A* memory, long begin, long end);
  // key and value may be the same pointer; grad_key is not written then.
  void (*aware)(const Problem&, const T* query, const T* key, const T* value, const A* locations, T* answer, A* memory,
                long begin, long end);
  void (*aware_backward)(const Problem&, const T* grad, const T* query, const T* key, const T* value,
                         const A* locations, T* grad_query, T* grad_key, T* grad_value, A* grad_locations, A* memory,
                         long begin, long end);
};

#define LEANDETR_KERNELS(ISA)                           \
  namespace ISA {                                       \
  extern const Kernels<float, float> float32_kernels;   \
  extern const Kernels<double, double> float64_kernels; \
  extern const Kernels<BFloat16, float> bfloat16_kernels; \
  extern const Kernels<Float16, float> float16_kernels;   \
  }

LEANDETR_KERNELS(baseline)
LEANDETR_KERNELS(avx2)
LEANDETR_KERNELS(avx512)

}  // namespace leandetr
