// Deformable attention on the GPU.
//
// A group of lanes serves one head of one query: every lane holds WIDTH of its D channels, in 16-byte accesses where D
// allows. A block first computes where all samples of its groups lie and how much each corner counts, once per sample, in
// shared memory; what remains is gathering rows, and reductions within the group by shuffles.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels.h"

namespace leandetr {
namespace cuda {
namespace {

constexpr int THREADS = 256;
constexpr int SHARED_BYTES = 48 * 1024;  // what every device grants without asking
constexpr unsigned ALL = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float x, float& y) { y = x; }
__device__ __forceinline__ void from_float(float x, __half& y) { y = __float2half_rn(x); }
__device__ __forceinline__ void from_float(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Packed {
  T x[WIDTH];
};

template <typename T, int WIDTH>
__device__ __forceinline__ void load(const T* __restrict__ from, float (&to)[WIDTH]) {
  const Packed<T, WIDTH> packed = *reinterpret_cast<const Packed<T, WIDTH>*>(from);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) to[i] = to_float(packed.x[i]);
}

template <typename T, int WIDTH>
__device__ __forceinline__ void store(const float (&from)[WIDTH], T* to) {
  Packed<T, WIDTH> packed;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) from_float(from[i], packed.x[i]);
  *reinterpret_cast<Packed<T, WIDTH>*>(to) = packed;
}

template <int WIDTH>
__device__ __forceinline__ float dot(const float (&a)[WIDTH], const float (&b)[WIDTH]) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) sum += a[i] * b[i];
  return sum;
}

__device__ __forceinline__ float dot(const float4& a, const float4& b) {
  return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

template <int WIDTH>
__device__ __forceinline__ void add_atomically(float* to, const float (&x)[WIDTH]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#pragma unroll
  for (int i = 0; i < WIDTH; i += 4)
    atomicAdd(reinterpret_cast<float4*>(to + i), make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]));
#else
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) atomicAdd(to + i, x[i]);
#endif
}

// Sums and the largest over the `lanes` lanes of a group, a power of two; every lane receives the result.
__device__ __forceinline__ float sum_of_group(float x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
  return x;
}
__device__ __forceinline__ float largest_of_group(float x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
  return x;
}

// -------------------------------------------------------------------------------------------------------------- samples

// Where a sample lies. Corners x, y, z, w: upper left, upper right, lower left, lower right.
struct Corners {
  int4 offset;   // of a corner's row, in numbers from the head's first row; -1 outside the map
  float4 share;  // of the corner in the sample; 0 outside the map
};
struct Slopes {
  float4 dx, dy;  // derivatives of the shares by the location
};

// Along one side of a map: the pixels first and first + 1 that a place lies between, whether they are on the map, and how
// far it is from the first. A place that is not a number, or far away, is outside like any other.
struct Between {
  int first;
  float has_first, has_second, rest;

  __device__ __forceinline__ Between(float place, int size) {
    const float x = fmaf(place, size, -0.5f);
    float whole = x >= -1.f && x <= size ? floorf(x) : -2.f;
    rest = fmaf(place, size, -(whole + 0.5f));  // rounded once, so that its sign is the true one
    if (rest < 0.f) {                           // x was rounded up to a whole number
      whole -= 1.f;
      rest += 1.f;
    }
    first = static_cast<int>(whole);
    has_first = first >= 0 && first < size ? 1.f : 0.f;
    has_second = first >= -1 && first < size - 1 ? 1.f : 0.f;
    if (has_first + has_second == 0.f) rest = 0.f;  // it may be infinite, or no number
  }
};

template <bool SLOPES>
__device__ __forceinline__ void locate(const Problem& p, int k, float2 location, Corners& corners, Slopes* slopes) {
  const int width = p.width[k], height = p.height[k], row = static_cast<int>(p.M * p.D);
  const Between x(location.x, width), y(location.y, height);
  const float wx0 = x.has_first * (1.f - x.rest), wx1 = x.has_second * x.rest;
  const float wy0 = y.has_first * (1.f - y.rest), wy1 = y.has_second * y.rest;
  const bool left = x.has_first > 0.f, right = x.has_second > 0.f, top = y.has_first > 0.f, bottom = y.has_second > 0.f;
  const int above = p.start[k] + y.first * width + x.first, below = above + width;
  corners.offset = make_int4(left && top ? above * row : -1, right && top ? (above + 1) * row : -1,
                             left && bottom ? below * row : -1, right && bottom ? (below + 1) * row : -1);
  corners.share = make_float4(wx0 * wy0, wx1 * wy0, wx0 * wy1, wx1 * wy1);
  if (SLOPES) {
    slopes->dx = make_float4(-x.has_first * wy0 * width, x.has_second * wy0 * width, -x.has_first * wy1 * width,
                             x.has_second * wy1 * width);
    slopes->dy = make_float4(-y.has_first * wx0 * height, -y.has_first * wx1 * height, y.has_second * wx0 * height,
                             y.has_second * wx1 * height);
  }
}

// The part of the work that a thread has: one lane of one group.
struct Place {
  int group, lane;  // within the block, within the group
  long item;        // (n * Q + q) * M + m
  bool exists;      // whether there is such an item
  bool active;      // and whether the lane has channels of it
  long row;         // of the item's first channel of this lane in queries, answers and their gradients
  long base;        // of the head's first row in values, at this lane's channels

  __device__ Place(const Problem& p, int lanes, int groups, int width) {
    group = threadIdx.x / lanes;
    lane = threadIdx.x % lanes;
    item = static_cast<long>(blockIdx.x) * groups + group;
    exists = group < groups && item < p.N * p.Q * p.M;
    active = exists && lane * width < p.D;
    row = item * p.D + lane * width;
    base = (item / (p.Q * p.M) * p.S * p.M + item % p.M) * p.D + lane * width;
  }
};

// Fills shared memory with the corners (and slopes) of all samples of the block's items.
template <bool SLOPES>
__device__ __forceinline__ void locate_all(const Problem& p, int groups, const float* __restrict__ locations,
                                           Corners* corners, Slopes* slopes) {
  const long first = static_cast<long>(blockIdx.x) * groups * p.K, all = p.N * p.Q * p.M * p.K;
  for (int i = threadIdx.x; i < groups * p.K; i += blockDim.x) {
    if (first + i >= all) break;
    const float2 location = reinterpret_cast<const float2*>(locations)[first + i];
    locate<SLOPES>(p, i % p.K, location, corners[i], SLOPES ? slopes + i : nullptr);
  }
  __syncthreads();
}

// One sample: the corners' rows weighed by their shares. Also the rows themselves, for gradients. A row outside the map is
// zero; a share of 0 would not do, since it makes no number of infinity.
template <typename T, int WIDTH>
struct Rows {
  float a[WIDTH] = {}, b[WIDTH] = {}, c[WIDTH] = {}, d[WIDTH] = {};

  __device__ __forceinline__ Rows(const T* __restrict__ from, const int4& offset) {
    if (offset.x >= 0) load<T, WIDTH>(from + offset.x, a);
    if (offset.y >= 0) load<T, WIDTH>(from + offset.y, b);
    if (offset.z >= 0) load<T, WIDTH>(from + offset.z, c);
    if (offset.w >= 0) load<T, WIDTH>(from + offset.w, d);
  }
  __device__ __forceinline__ void sample(const float4& share, float (&to)[WIDTH]) const {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) to[i] = share.x * a[i] + share.y * b[i] + share.z * c[i] + share.w * d[i];
  }
  // The product of a vector with every row.
  __device__ __forceinline__ float4 times(const float (&x)[WIDTH]) const {
    return make_float4(dot(x, a), dot(x, b), dot(x, c), dot(x, d));
  }
};

// buffer[corner] += factor * share * x for the four corners; those outside the map are left alone.
template <int WIDTH>
__device__ __forceinline__ void scatter(float* buffer, const Corners& corners, float factor, const float (&x)[WIDTH],
                                        float other_factor, const float (&other)[WIDTH]) {
  const int offsets[4] = {corners.offset.x, corners.offset.y, corners.offset.z, corners.offset.w};
  const float shares[4] = {corners.share.x, corners.share.y, corners.share.z, corners.share.w};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (shares[corner] == 0.f) continue;
    float sum[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum[i] = shares[corner] * (factor * x[i] + other_factor * other[i]);
    add_atomically<WIDTH>(buffer + offsets[corner], sum);
  }
}

// -------------------------------------------------------------------------------------------------------------- kernels

extern __shared__ __align__(16) char shared[];

template <typename T, int WIDTH>
__global__ void __launch_bounds__(THREADS)
    plain_kernel(const Problem p, int lanes, int groups, const T* __restrict__ value,
                 const float* __restrict__ locations, const float* __restrict__ weights, T* __restrict__ answer) {
  Corners* corners = reinterpret_cast<Corners*>(shared);
  locate_all<false>(p, groups, locations, corners, nullptr);
  const Place at(p, lanes, groups, WIDTH);
  if (!at.active) return;
  corners += at.group * p.K;
  weights += at.item * p.K;
  float sum[WIDTH] = {};
#pragma unroll 4
  for (int k = 0; k < p.K; ++k) {
    const float weight = weights[k];
    float x[WIDTH];
    Rows<T, WIDTH>(value + at.base, corners[k].offset).sample(corners[k].share, x);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum[i] += weight * x[i];
  }
  store<T, WIDTH>(sum, answer + at.row);
}

template <typename T, int WIDTH, bool SCATTER>
__global__ void __launch_bounds__(THREADS)
    plain_backward_kernel(const Problem p, int lanes, int groups, const T* __restrict__ grad,
                          const T* __restrict__ value, const float* __restrict__ locations,
                          const float* __restrict__ weights, float* __restrict__ grad_value,
                          float* __restrict__ grad_locations, float* __restrict__ grad_weights) {
  Corners* corners = reinterpret_cast<Corners*>(shared);
  Slopes* slopes = reinterpret_cast<Slopes*>(corners + groups * p.K);
  locate_all<true>(p, groups, locations, corners, slopes);
  const Place at(p, lanes, groups, WIDTH);
  float g[WIDTH] = {};
  if (at.active) load<T, WIDTH>(grad + at.row, g);
  for (int k = 0; k < p.K; ++k) {  // all lanes stay, since they shuffle together
    float of_weight = 0.f, of_x = 0.f, of_y = 0.f, weight = 0.f;
    if (at.active) {
      const int i = at.group * p.K + k;
      weight = weights[at.item * p.K + k];
      const float4 products = Rows<T, WIDTH>(value + at.base, corners[i].offset).times(g);
      of_weight = dot(corners[i].share, products);
      of_x = dot(slopes[i].dx, products);
      of_y = dot(slopes[i].dy, products);
      if (SCATTER) scatter<WIDTH>(grad_value + at.base, corners[i], weight, g, 0.f, g);
    }
    of_weight = sum_of_group(of_weight, lanes);
    of_x = sum_of_group(of_x, lanes);
    of_y = sum_of_group(of_y, lanes);
    if (at.active && at.lane == 0) {
      grad_weights[at.item * p.K + k] = of_weight;
      reinterpret_cast<float2*>(grad_locations)[at.item * p.K + k] = make_float2(weight * of_x, weight * of_y);
    }
  }
}

// SAME: the values are the keys, and are gathered once. The softmax runs along with the samples: what was summed so far is
// scaled down whenever a larger logit comes.
template <typename T, int WIDTH, bool SAME>
__global__ void __launch_bounds__(THREADS)
    aware_kernel(const Problem p, int lanes, int groups, const T* __restrict__ query, const T* __restrict__ key,
                 const T* __restrict__ value, const float* __restrict__ locations, T* __restrict__ answer) {
  Corners* corners = reinterpret_cast<Corners*>(shared);
  locate_all<false>(p, groups, locations, corners, nullptr);
  const Place at(p, lanes, groups, WIDTH);
  const float scale = rsqrtf(static_cast<float>(p.D));
  float q[WIDTH] = {}, sum[WIDTH] = {};
  if (at.active) load<T, WIDTH>(query + at.row, q);
  float largest = -INFINITY, total = 0.f;
#pragma unroll 2
  for (int k = 0; k < p.K; ++k) {
    float x[WIDTH] = {}, logit = 0.f;
    if (at.active) {
      const Corners& corner = corners[at.group * p.K + k];
      Rows<T, WIDTH>(key + at.base, corner.offset).sample(corner.share, x);
      logit = dot(q, x) * scale;
      if (!SAME) Rows<T, WIDTH>(value + at.base, corner.offset).sample(corner.share, x);
    }
    logit = sum_of_group(logit, lanes);
    const float new_largest = fmaxf(largest, logit);
    const float shrink = __expf(largest - new_largest), weight = __expf(logit - new_largest);
    total = total * shrink + weight;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum[i] = sum[i] * shrink + weight * x[i];
    largest = new_largest;
  }
  if (!at.active) return;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) sum[i] /= total;
  store<T, WIDTH>(sum, answer + at.row);
}

template <typename T, int WIDTH, bool SAME, bool SCATTER>
__global__ void __launch_bounds__(THREADS)
    aware_backward_kernel(const Problem p, int lanes, int groups, const T* __restrict__ grad,
                          const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ value,
                          const float* __restrict__ locations, T* __restrict__ grad_query, float* __restrict__ grad_key,
                          float* __restrict__ grad_value, float* __restrict__ grad_locations,
                          float* __restrict__ all_weights, float* __restrict__ all_slopes) {
  Corners* corners = reinterpret_cast<Corners*>(shared);
  Slopes* slopes = reinterpret_cast<Slopes*>(corners + groups * p.K);
  locate_all<true>(p, groups, locations, corners, slopes);
  const Place at(p, lanes, groups, WIDTH);
  // Of each sample: its logit and then its weight; the gain of its weight and then the slope of its logit.
  float* weight = reinterpret_cast<float*>(slopes + groups * p.K) + at.group * 2 * p.K;
  float* slope = weight + p.K;
  const float scale = rsqrtf(static_cast<float>(p.D));
  float q[WIDTH] = {}, g[WIDTH] = {};
  if (at.active) {
    load<T, WIDTH>(query + at.row, q);
    load<T, WIDTH>(grad + at.row, g);
  }
  const bool real = at.group < groups;  // has shared memory
  for (int k = 0; k < p.K; ++k) {
    float logit = 0.f, gain = 0.f;
    if (at.active) {
      const Corners& corner = corners[at.group * p.K + k];
      float x[WIDTH];
      Rows<T, WIDTH>(key + at.base, corner.offset).sample(corner.share, x);
      logit = dot(q, x) * scale;
      if (!SAME) Rows<T, WIDTH>(value + at.base, corner.offset).sample(corner.share, x);
      gain = dot(g, x);
    }
    logit = sum_of_group(logit, lanes);
    gain = sum_of_group(gain, lanes);
    if (real && at.lane == 0) {
      weight[k] = logit;
      slope[k] = gain;
    }
  }
  __syncwarp();
  float largest = -INFINITY, total = 0.f, mean = 0.f;
  if (real)
    for (int k = at.lane; k < p.K; k += lanes) largest = fmaxf(largest, weight[k]);
  largest = largest_of_group(largest, lanes);
  if (real) {
    for (int k = at.lane; k < p.K; k += lanes) {
      weight[k] = __expf(weight[k] - largest);
      total += weight[k];
      mean += weight[k] * slope[k];
    }
  }
  total = sum_of_group(total, lanes);
  mean = sum_of_group(mean, lanes) / total;
  if (real) {
    for (int k = at.lane; k < p.K; k += lanes) {
      weight[k] /= total;
      slope[k] = weight[k] * (slope[k] - mean) * scale;
      if (!SCATTER && at.exists) {
        all_weights[at.item * p.K + k] = weight[k];
        all_slopes[at.item * p.K + k] = slope[k];
      }
    }
  }
  __syncwarp();
  float of_query[WIDTH] = {};
  for (int k = 0; k < p.K; ++k) {
    float of_x = 0.f, of_y = 0.f;
    if (at.active) {
      const int i = at.group * p.K + k;
      const Rows<T, WIDTH> keys(key + at.base, corners[i].offset);
      float x[WIDTH];
      keys.sample(corners[i].share, x);
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) of_query[j] += slope[k] * x[j];
      const float4 by_query = keys.times(q);
      const float4 by_grad = SAME ? keys.times(g) : Rows<T, WIDTH>(value + at.base, corners[i].offset).times(g);
      of_x = weight[k] * dot(slopes[i].dx, by_grad) + slope[k] * dot(slopes[i].dx, by_query);
      of_y = weight[k] * dot(slopes[i].dy, by_grad) + slope[k] * dot(slopes[i].dy, by_query);
      if (SCATTER && SAME) scatter<WIDTH>(grad_value + at.base, corners[i], weight[k], g, slope[k], q);
      if (SCATTER && !SAME) {
        scatter<WIDTH>(grad_value + at.base, corners[i], weight[k], g, 0.f, g);
        scatter<WIDTH>(grad_key + at.base, corners[i], slope[k], q, 0.f, q);
      }
    }
    of_x = sum_of_group(of_x, lanes);
    of_y = sum_of_group(of_y, lanes);
    if (at.active && at.lane == 0)
      reinterpret_cast<float2*>(grad_locations)[at.item * p.K + k] = make_float2(of_x, of_y);
  }
  if (at.active) store<T, WIDTH>(of_query, grad_query + at.row);
}

// A block for each level of each head of each picture: no other adds to its cells.
template <typename T>
__global__ void scatter_in_order_kernel(const Problem p, const T* __restrict__ rows, const float* __restrict__ locations,
                                        const float* __restrict__ factors, float* __restrict__ buffer) {
  const long n = blockIdx.x / p.M, m = blockIdx.x % p.M;
  const int first = blockIdx.y * p.points, last = first + p.points;
  const int channel = threadIdx.x;
  if (channel >= p.D) return;
  float* base = buffer + (n * p.S * p.M + m) * p.D + channel;
  for (long q = 0; q < p.Q; ++q) {
    const long item = (n * p.Q + q) * p.M + m;
    const float x = to_float(rows[item * p.D + channel]);
    for (int k = first; k < last; ++k) {
      Corners corners;
      locate<false>(p, k, reinterpret_cast<const float2*>(locations)[item * p.K + k], corners, nullptr);
      const float y = factors[item * p.K + k] * x;
      if (corners.offset.x >= 0) base[corners.offset.x] += corners.share.x * y;
      if (corners.offset.y >= 0) base[corners.offset.y] += corners.share.y * y;
      if (corners.offset.z >= 0) base[corners.offset.z] += corners.share.z * y;
      if (corners.offset.w >= 0) base[corners.offset.w] += corners.share.w * y;
    }
  }
}

// ------------------------------------------------------------------------------------------------------------- launching

// How a problem is cut into blocks.
struct Cut {
  int lanes = 1, groups, threads;
  unsigned blocks;
  size_t bytes;

  Cut(const Problem& p, int width, size_t bytes_per_sample) {
    while (lanes * width < p.D) lanes *= 2;
    const size_t per_group = bytes_per_sample * p.K;
    groups = THREADS / lanes;
    if (groups * per_group > SHARED_BYTES) groups = static_cast<int>(SHARED_BYTES / per_group);
    threads = (groups * lanes + 31) / 32 * 32;  // whole warps, since lanes shuffle
    bytes = groups * per_group;
    const long items = p.N * p.Q * p.M;
    blocks = static_cast<unsigned>((items + groups - 1) / groups);
  }
};

constexpr size_t FORWARD = sizeof(Corners);
constexpr size_t BACKWARD = sizeof(Corners) + sizeof(Slopes);

// Sixteen-bit types move 8 numbers at once where heads allow.
template <typename T>
constexpr int WIDEST = 16 / sizeof(T);

#define BY_WIDTH(...)                          \
  if (p.D % WIDEST<T> == 0) {                  \
    constexpr int WIDTH = WIDEST<T>;           \
    __VA_ARGS__                                \
  } else {                                     \
    constexpr int WIDTH = 4;                   \
    __VA_ARGS__                                \
  }

}  // namespace

template <typename T>
void plain(const Problem& p, const T* value, const float* locations, const float* weights, T* answer,
           cudaStream_t stream) {
  BY_WIDTH({
    const Cut cut(p, WIDTH, FORWARD);
    plain_kernel<T, WIDTH><<<cut.blocks, cut.threads, cut.bytes, stream>>>(p, cut.lanes, cut.groups, value, locations,
                                                                           weights, answer);
  })
}

template <typename T>
void plain_backward(const Problem& p, const T* grad, const T* value, const float* locations, const float* weights,
                    float* grad_value, float* grad_locations, float* grad_weights, cudaStream_t stream) {
  BY_WIDTH({
    const Cut cut(p, WIDTH, BACKWARD);
    const auto kernel = grad_value ? plain_backward_kernel<T, WIDTH, true> : plain_backward_kernel<T, WIDTH, false>;
    kernel<<<cut.blocks, cut.threads, cut.bytes, stream>>>(p, cut.lanes, cut.groups, grad, value, locations, weights,
                                                           grad_value, grad_locations, grad_weights);
  })
}

template <typename T>
void aware(const Problem& p, const T* query, const T* key, const T* value, const float* locations, T* answer,
           cudaStream_t stream) {
  BY_WIDTH({
    const Cut cut(p, WIDTH, FORWARD);
    const auto kernel = key == value ? aware_kernel<T, WIDTH, true> : aware_kernel<T, WIDTH, false>;
    kernel<<<cut.blocks, cut.threads, cut.bytes, stream>>>(p, cut.lanes, cut.groups, query, key, value, locations,
                                                           answer);
  })
}

template <typename T>
void aware_backward(const Problem& p, const T* grad, const T* query, const T* key, const T* value,
                    const float* locations, T* grad_query, float* grad_key, float* grad_value, float* grad_locations,
                    float* weights, float* slopes, cudaStream_t stream) {
  BY_WIDTH({
    const Cut cut(p, WIDTH, BACKWARD + 2 * sizeof(float));
    const bool same = key == value;
    const auto scattering =
        same ? aware_backward_kernel<T, WIDTH, true, true> : aware_backward_kernel<T, WIDTH, false, true>;
    const auto leaving =
        same ? aware_backward_kernel<T, WIDTH, true, false> : aware_backward_kernel<T, WIDTH, false, false>;
    const auto kernel = grad_value ? scattering : leaving;
    kernel<<<cut.blocks, cut.threads, cut.bytes, stream>>>(p, cut.lanes, cut.groups, grad, query, key, value, locations,
                                                           grad_query, grad_key, grad_value, grad_locations, weights,
                                                           slopes);
  })
}

template <typename T>
void scatter_in_order(const Problem& p, const T* rows, const float* locations, const float* factors, float* buffer,
                      cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(p.N * p.M), p.L);
  scatter_in_order_kernel<T><<<blocks, (p.D + 31) / 32 * 32, 0, stream>>>(p, rows, locations, factors, buffer);
}

#define INSTANTIATE(T)                                                                                               \
  template void plain<T>(const Problem&, const T*, const float*, const float*, T*, cudaStream_t);                    \
  template void plain_backward<T>(const Problem&, const T*, const T*, const float*, const float*, float*, float*,    \
                                  float*, cudaStream_t);                                                             \
  template void aware<T>(const Problem&, const T*, const T*, const T*, const float*, T*, cudaStream_t);              \
  template void aware_backward<T>(const Problem&, const T*, const T*, const T*, const T*, const float*, T*, float*,  \
                                  float*, float*, float*, float*, cudaStream_t);                                     \
  template void scatter_in_order<T>(const Problem&, const T*, const float*, const float*, float*, cudaStream_t);

INSTANTIATE(float)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace cuda
}  // namespace leandetr
