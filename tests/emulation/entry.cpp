// The launchers of kernels.cu as C functions, for tests/models/ops/test_cuda_emulated.py.

namespace {

leandetr::Problem problem(const long* sizes, const int* shapes) {
  leandetr::Problem p;
  p.N = sizes[0], p.S = sizes[1], p.Q = sizes[2], p.M = sizes[3], p.D = sizes[4];
  p.L = static_cast<int>(sizes[5]), p.points = static_cast<int>(sizes[6]);
  p.K = p.L * p.points;
  int start = 0;
  for (int k = 0; k < p.K; ++k) {
    const int* shape = shapes + 2 * (k / p.points);
    p.height[k] = shape[0], p.width[k] = shape[1], p.start[k] = start;
    if (k % p.points == p.points - 1) start += shape[0] * shape[1];
  }
  return p;
}

}  // namespace

extern "C" bool has_tiles(const long* sizes, const int* shapes) {
  return leandetr::cuda::has_tiles(problem(sizes, shapes));
}

#define ENTRIES(T, name)                                                                                               \
  extern "C" void plain_##name(const long* sizes, const int* shapes, T* value, float* locations, float* weights,      \
                               T* answer) {                                                                            \
    leandetr::cuda::plain<T>(problem(sizes, shapes), value, locations, weights, answer, nullptr);                      \
  }                                                                                                                    \
  extern "C" void plain_backward_##name(const long* sizes, const int* shapes, T* grad, T* value, float* locations,    \
                                        float* weights, float* grad_value, float* grad_locations,                      \
                                        float* grad_weights) {                                                         \
    leandetr::cuda::plain_backward<T>(problem(sizes, shapes), grad, value, locations, weights, grad_value,             \
                                      grad_locations, grad_weights, nullptr);                                          \
  }                                                                                                                    \
  extern "C" void aware_##name(const long* sizes, const int* shapes, T* query, T* key, T* value, float* locations,    \
                               T* answer) {                                                                            \
    leandetr::cuda::aware<T>(problem(sizes, shapes), query, key, value, locations, answer, nullptr);                   \
  }                                                                                                                    \
  extern "C" void aware_backward_##name(const long* sizes, const int* shapes, T* grad, T* query, T* key, T* value,    \
                                        float* locations, T* grad_query, float* grad_key, float* grad_value,           \
                                        float* grad_locations, float* weights, float* slopes) {                        \
    leandetr::cuda::aware_backward<T>(problem(sizes, shapes), grad, query, key, value, locations, grad_query,          \
                                      grad_key, grad_value, grad_locations, weights, slopes, nullptr);                 \
  }                                                                                                                    \
  extern "C" void scatter_tiles_##name(const long* sizes, const int* shapes, T* rows, float* locations,               \
                                       float* factors, float* buffer) {                                                \
    leandetr::cuda::scatter_tiles<T>(problem(sizes, shapes), rows, locations, factors, buffer, nullptr);               \
  }                                                                                                                    \
  extern "C" void scatter_in_order_##name(const long* sizes, const int* shapes, T* rows, float* locations,            \
                                          float* factors, float* buffer) {                                             \
    leandetr::cuda::scatter_in_order<T>(problem(sizes, shapes), rows, locations, factors, buffer, nullptr);            \
  }

ENTRIES(float, float32)
ENTRIES(__half, float16)
ENTRIES(__nv_bfloat16, bfloat16)
