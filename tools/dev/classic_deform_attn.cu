// The classic layout of deformable attention on the GPU, an peer for tools/dev/benchmark_ops.py --classic: one thread per
// channel. Each thread computes the places of all samples again, reads one number at a time, and the gradients of
// locations and weights are summed over a head's channels in shared memory by its first thread. float32 alone. A library of
// C functions, without PyTorch's headers: it is built by nvcc alone, in seconds.

#include <cuda_runtime.h>

namespace {

struct Sizes {
  int S, M, D, Q, L, P;
};

// One sample's four corners for one channel: their numbers, which exist, and the fractions.
struct Corners {
  float value[4] = {0.f, 0.f, 0.f, 0.f};
  long offset[4];
  bool exists[4];
  float fx, fy;
};

__device__ bool find(const Sizes& s, const long* shapes, const long* starts, int level, const float* location,
                     const float* value, long n, int m, int d, Corners& c) {
  const int height = shapes[2 * level], width = shapes[2 * level + 1];
  const float x = location[0] * width - 0.5f, y = location[1] * height - 0.5f;
  if (!(x > -1.f && y > -1.f && x < width && y < height)) return false;
  const int x0 = static_cast<int>(floorf(x)), y0 = static_cast<int>(floorf(y));
  c.fx = x - x0;
  c.fy = y - y0;
  for (int corner = 0; corner < 4; ++corner) {
    const int column = x0 + corner % 2, row = y0 + corner / 2;
    c.exists[corner] = column >= 0 && row >= 0 && column < width && row < height;
    c.offset[corner] = ((n * s.S + starts[level] + static_cast<long>(row) * width + column) * s.M + m) * s.D + d;
    if (c.exists[corner]) c.value[corner] = value[c.offset[corner]];
  }
  return true;
}

__device__ float share(const Corners& c, int corner) {
  return (corner % 2 ? c.fx : 1.f - c.fx) * (corner / 2 ? c.fy : 1.f - c.fy);
}

__global__ void forward_kernel(long count, Sizes s, const float* value, const long* shapes, const long* starts,
                               const float* locations, const float* weights, float* answer) {
  const long index = static_cast<long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int d = index % s.D, m = index / s.D % s.M;
  const long item = index / s.D, n = item / (static_cast<long>(s.M) * s.Q);
  float sum = 0.f;
  for (int k = 0; k < s.L * s.P; ++k) {
    Corners c;
    const long sample = item * s.L * s.P + k;
    if (!find(s, shapes, starts, k / s.P, locations + 2 * sample, value, n, m, d, c)) continue;
    for (int corner = 0; corner < 4; ++corner) sum += weights[sample] * share(c, corner) * c.value[corner];
  }
  answer[index] = sum;
}

// One block per head of a query, one thread per channel.
__global__ void backward_kernel(Sizes s, const float* grad, const float* value, const long* shapes, const long* starts,
                                const float* locations, const float* weights, float* grad_value, float* grad_locations,
                                float* grad_weights) {
  extern __shared__ float parts[];  // (3, D)
  const int d = threadIdx.x;
  const long item = blockIdx.x, n = item / (static_cast<long>(s.M) * s.Q);
  const int m = item % s.M;
  const float g = grad[item * s.D + d];
  for (int k = 0; k < s.L * s.P; ++k) {
    Corners c;
    const int level = k / s.P;
    const long sample = item * s.L * s.P + k;
    float by_x = 0.f, by_y = 0.f, by_weight = 0.f;
    if (find(s, shapes, starts, level, locations + 2 * sample, value, n, m, d, c)) {
      for (int corner = 0; corner < 4; ++corner) {
        const float along_x = (corner % 2 ? 1.f : -1.f) * (corner / 2 ? c.fy : 1.f - c.fy);
        const float along_y = (corner / 2 ? 1.f : -1.f) * (corner % 2 ? c.fx : 1.f - c.fx);
        by_x += along_x * c.value[corner];
        by_y += along_y * c.value[corner];
        by_weight += share(c, corner) * c.value[corner];
        if (c.exists[corner]) atomicAdd(grad_value + c.offset[corner], g * weights[sample] * share(c, corner));
      }
    }
    parts[d] = g * by_weight;
    parts[s.D + d] = g * weights[sample] * by_x * shapes[2 * level + 1];
    parts[2 * s.D + d] = g * weights[sample] * by_y * shapes[2 * level];
    __syncthreads();
    if (d == 0) {
      float sums[3] = {0.f, 0.f, 0.f};
      for (int i = 0; i < 3 * s.D; ++i) sums[i / s.D] += parts[i];
      grad_weights[sample] = sums[0];
      grad_locations[2 * sample] = sums[1];
      grad_locations[2 * sample + 1] = sums[2];
    }
    __syncthreads();
  }
}

}  // namespace

// Layouts as in models/ops/src/cuda/kernels.h, shapes (L, 2) and starts (L,) on the device too. The answer is a cudaError_t.
extern "C" int classic_forward(int N, int S, int M, int D, int Q, int L, int P, const float* value, const long* shapes,
                               const long* starts, const float* locations, const float* weights, float* answer,
                               void* stream) {
  const long count = static_cast<long>(N) * Q * M * D;
  forward_kernel<<<(count + 255) / 256, 256, 0, static_cast<cudaStream_t>(stream)>>>(
      count, Sizes{S, M, D, Q, L, P}, value, shapes, starts, locations, weights, answer);
  return cudaGetLastError();
}

// grad_value must be zero before.
extern "C" int classic_backward(int N, int S, int M, int D, int Q, int L, int P, const float* grad, const float* value,
                                const long* shapes, const long* starts, const float* locations, const float* weights,
                                float* grad_value, float* grad_locations, float* grad_weights, void* stream) {
  backward_kernel<<<N * Q * M, D, 3 * D * sizeof(float), static_cast<cudaStream_t>(stream)>>>(
      Sizes{S, M, D, Q, L, P}, grad, value, shapes, starts, locations, weights, grad_value, grad_locations,
      grad_weights);
  return cudaGetLastError();
}
