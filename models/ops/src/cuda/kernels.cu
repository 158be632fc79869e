// Deformable attention on the GPU.
//
// A group of lanes serves one head of one query: every lane holds WIDTH of its D channels, in 16-byte accesses where D
// allows. The lanes first compute where the group's samples lie and how much each corner counts, once per sample, in shared
// memory; what remains is gathering rows, and reductions within the group by shuffles. Where sums are scattered, WIDTH is 4:
// what the lanes add in one instruction then lies side by side, which is what atomic additions are fast at.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>

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

// a * x + b * y.
__device__ __forceinline__ float4 combined(float a, const float4& x, float b, const float4& y) {
  return make_float4(a * x.x + b * y.x, a * x.y + b * y.y, a * x.z + b * y.z, a * x.w + b * y.w);
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

// The smallest and the largest number of a warp; every lane receives it.
__device__ __forceinline__ int smallest_of_warp(int x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_min_sync(ALL, x);
#else
  for (int step = 16; step > 0; step /= 2) x = min(x, __shfl_xor_sync(ALL, x, step));
  return x;
#endif
}
__device__ __forceinline__ int largest_of_warp(int x) { return -smallest_of_warp(-x); }

// -------------------------------------------------------------------------------------------------------------- samples

// Where a sample lies. Corners x, y, z, w: upper left, upper right, lower left, lower right.
struct Corners {
  int4 offset;   // of a corner's row, in numbers from the head's first row; -1 outside the map
  float4 share;  // of the corner in the sample; 0 outside the map
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
  // Of the first pixel (0) or the second (1) in the place; 0 where it is not on the map.
  __device__ __forceinline__ float share(int pixel) const { return pixel ? has_second * rest : has_first * (1.f - rest); }
};

// Fills in the corners of a sample; returns how far it is from the first, in pixels.
__device__ __forceinline__ float2 locate(const Problem& p, int k, float2 location, Corners& corners) {
  const int width = p.width[k], height = p.height[k], row = static_cast<int>(p.M * p.D);
  const Between x(location.x, width), y(location.y, height);
  const float wx0 = x.share(0), wx1 = x.share(1), wy0 = y.share(0), wy1 = y.share(1);
  const bool left = x.has_first > 0.f, right = x.has_second > 0.f, top = y.has_first > 0.f, bottom = y.has_second > 0.f;
  const int above = p.start[k] + y.first * width + x.first, below = above + width;
  corners.offset = make_int4(left && top ? above * row : -1, right && top ? (above + 1) * row : -1,
                             left && bottom ? below * row : -1, right && bottom ? (below + 1) * row : -1);
  corners.share = make_float4(wx0 * wy0, wx1 * wy0, wx0 * wy1, wx1 * wy1);
  return make_float2(x.rest, y.rest);
}

// The derivatives by the location of what the corners' numbers, 0 outside the map, make of a sample.
__device__ __forceinline__ float2 slope(const Problem& p, int k, const float2& rest, const float4& corner) {
  const float x = (1.f - rest.y) * (corner.y - corner.x) + rest.y * (corner.w - corner.z);
  const float y = (1.f - rest.x) * (corner.z - corner.x) + rest.x * (corner.w - corner.y);
  return make_float2(x * p.width[k], y * p.height[k]);
}

// The part of the work that a thread has: one lane of one group. The heads of a query are neighbours, or, with
// heads_first, the queries of a head: they look at the same rows, which a block then finds in its cache.
struct Place {
  int group, lane;  // within the block, within the group
  long item;        // (n * Q + q) * M + m
  bool exists;      // whether there is such an item
  bool active;      // and whether the lane has channels of it
  long row;         // of the item's first channel of this lane in queries, answers and their gradients
  long base;        // of the head's first row in values, at this lane's channels

  __device__ Place(const Problem& p, int lanes, int groups, int width, bool heads_first) {
    const unsigned N = p.N, Q = p.Q, M = p.M;
    group = threadIdx.x / lanes;
    lane = threadIdx.x % lanes;
    const unsigned index = blockIdx.x * groups + group, inner = heads_first ? Q : M;
    const unsigned outer = index / inner, n = index / (Q * M), m = heads_first ? outer % M : index % M;
    exists = group < groups && index < N * Q * M;
    active = exists && lane * width < p.D;
    item = heads_first ? (static_cast<long>(n) * Q + index % Q) * M + m : index;
    row = item * p.D + lane * width;
    base = (n * p.S * p.M + m) * p.D + lane * width;
  }
};

// Fills shared memory with the corners of the group's samples, and with their `rests` if wanted, for all lanes of its warp.
__device__ __forceinline__ void locate_all(const Problem& p, const Place& at, int lanes,
                                           const float* __restrict__ locations, Corners* corners,
                                           float2* rests = nullptr) {
  if (at.exists) {
    for (int k = at.lane; k < p.K; k += lanes) {
      const int i = at.group * p.K + k;
      const float2 location = reinterpret_cast<const float2*>(locations)[at.item * p.K + k];
      const float2 rest = locate(p, k, location, corners[i]);
      if (rests != nullptr) rests[i] = rest;
    }
  }
  __syncwarp();
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

// On an H100 the forward of an encoder is faster so in float32, and slower in 16 bits.
template <typename T>
constexpr bool HEADS_FIRST = sizeof(T) == 4;

template <typename T, int WIDTH>
__global__ void __launch_bounds__(THREADS)
    plain_kernel(const Problem p, int lanes, int groups, const T* __restrict__ value,
                 const float* __restrict__ locations, const float* __restrict__ weights, T* __restrict__ answer) {
  Corners* corners = reinterpret_cast<Corners*>(shared);
  const Place at(p, lanes, groups, WIDTH, HEADS_FIRST<T>);
  locate_all(p, at, lanes, locations, corners);
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
  float2* rests = reinterpret_cast<float2*>(corners + groups * p.K);
  const Place at(p, lanes, groups, WIDTH, false);
  locate_all(p, at, lanes, locations, corners, rests);
  float g[WIDTH] = {};
  if (at.active) load<T, WIDTH>(grad + at.row, g);
  for (int k = 0; k < p.K; ++k) {  // all lanes stay, since they shuffle together
    float of_weight = 0.f, weight = 0.f;
    float2 of_location = make_float2(0.f, 0.f);
    if (at.active) {
      const int i = at.group * p.K + k;
      weight = weights[at.item * p.K + k];
      const float4 products = Rows<T, WIDTH>(value + at.base, corners[i].offset).times(g);
      of_weight = dot(corners[i].share, products);
      of_location = slope(p, k, rests[i], products);
      if (SCATTER) scatter<WIDTH>(grad_value + at.base, corners[i], weight, g, 0.f, g);
    }
    of_weight = sum_of_group(of_weight, lanes);
    const float of_x = sum_of_group(of_location.x, lanes), of_y = sum_of_group(of_location.y, lanes);
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
  const Place at(p, lanes, groups, WIDTH, HEADS_FIRST<T>);
  locate_all(p, at, lanes, locations, corners);
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
  float2* rests = reinterpret_cast<float2*>(corners + groups * p.K);
  const Place at(p, lanes, groups, WIDTH, false);
  locate_all(p, at, lanes, locations, corners, rests);
  // Of each sample: its logit and then its weight; the gain of its weight and then what its logit gets.
  float* weight = reinterpret_cast<float*>(rests + groups * p.K) + at.group * 2 * p.K;
  float* of_logit = weight + p.K;
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
      of_logit[k] = gain;
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
      mean += weight[k] * of_logit[k];
    }
  }
  total = sum_of_group(total, lanes);
  mean = sum_of_group(mean, lanes) / total;
  if (real) {
    for (int k = at.lane; k < p.K; k += lanes) {
      weight[k] /= total;
      of_logit[k] = weight[k] * (of_logit[k] - mean) * scale;
      if (!SCATTER && at.exists) {
        all_weights[at.item * p.K + k] = weight[k];
        all_slopes[at.item * p.K + k] = of_logit[k];
      }
    }
  }
  __syncwarp();
  float of_query[WIDTH] = {};
  for (int k = 0; k < p.K; ++k) {
    float2 of_location = make_float2(0.f, 0.f);
    if (at.active) {
      const int i = at.group * p.K + k;
      const Rows<T, WIDTH> keys(key + at.base, corners[i].offset);
      float x[WIDTH];
      keys.sample(corners[i].share, x);
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) of_query[j] += of_logit[k] * x[j];
      const float4 by_query = keys.times(q);
      const float4 by_grad = SAME ? keys.times(g) : Rows<T, WIDTH>(value + at.base, corners[i].offset).times(g);
      of_location = slope(p, k, rests[i], combined(weight[k], by_grad, of_logit[k], by_query));
      if (SCATTER && SAME) scatter<WIDTH>(grad_value + at.base, corners[i], weight[k], g, of_logit[k], q);
      if (SCATTER && !SAME) {
        scatter<WIDTH>(grad_value + at.base, corners[i], weight[k], g, 0.f, g);
        scatter<WIDTH>(grad_key + at.base, corners[i], of_logit[k], q, 0.f, q);
      }
    }
    const float of_x = sum_of_group(of_location.x, lanes), of_y = sum_of_group(of_location.y, lanes);
    if (at.active && at.lane == 0)
      reinterpret_cast<float2*>(grad_locations)[at.item * p.K + k] = make_float2(of_x, of_y);
  }
  if (at.active) store<T, WIDTH>(of_query, grad_query + at.row);
}

// A block for each level of each head of each image: no other adds to its cells.
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
      locate(p, k, reinterpret_cast<const float2*>(locations)[item * p.K + k], corners);
      const float y = factors[item * p.K + k] * x;
      if (corners.offset.x >= 0) base[corners.offset.x] += corners.share.x * y;
      if (corners.offset.y >= 0) base[corners.offset.y] += corners.share.y * y;
      if (corners.offset.z >= 0) base[corners.offset.z] += corners.share.z * y;
      if (corners.offset.w >= 0) base[corners.offset.w] += corners.share.w * y;
    }
  }
}

// How queries that are the tokens of some levels, of which `first` is the first, are cut into tiles: TILE wide and `rows`
// high, `count` in all.
struct Tiles {
  int first, rows, count;
};
constexpr int TILE = 8;

// What a tile adds to a cell: a row of its own, by its first number, times a factor.
struct alignas(8) Addition {
  int row;
  float factor;
};
constexpr int CELLS = 1024;  // that additions are sorted into

// Turns how many there are of each of CELLS kinds into where those of a kind begin, if they lie one after the other;
// begin[CELLS] is where the last ones end. For all threads of a block; `sums` holds one number for every warp.
__device__ __forceinline__ void begin_of_each(int* begin, int* sums) {
  constexpr int EACH = CELLS / THREADS;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int* own = begin + threadIdx.x * EACH;
  int before[EACH], total = 0;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    before[i] = total;
    total += own[i];
  }
  int reached = total;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(ALL, reached, step);
    if (lane >= step) reached += other;
  }
  if (lane == 31) sums[warp] = reached;
  __syncthreads();
  int first = reached - total;
  for (int i = 0; i < warp; ++i) first += sums[i];
#pragma unroll
  for (int i = 0; i < EACH; ++i) own[i] = first + before[i];
  if (threadIdx.x == THREADS - 1) begin[CELLS] = first + total;
  __syncthreads();
}

// A block for a tile of one head of one image. Neighbours look at the same cells: for every level the block sorts by cell
// what its samples add to their corners (a counting sort), and adds the sums of the cells.
template <typename T>
__global__ void __launch_bounds__(THREADS, 5)
    scatter_tiles_kernel(const Problem p, const Tiles tiles, const T* __restrict__ rows,
                         const float* __restrict__ locations, const float* __restrict__ factors,
                         float* __restrict__ buffer) {
  const int D = static_cast<int>(p.D), queries = TILE * tiles.rows;
  const int m = blockIdx.x % p.M, n = blockIdx.x / p.M / tiles.count;
  int tile = blockIdx.x / p.M % tiles.count, own = tiles.first * p.points, across;
  for (;; own += p.points) {
    across = (p.width[own] + TILE - 1) / TILE;
    const int here = across * ((p.height[own] + tiles.rows - 1) / tiles.rows);
    if (tile < here) break;
    tile -= here;
  }
  const int left = tile % across * TILE, top = tile / across * tiles.rows;
  // The item of one of the tile's queries; -1 beyond the map.
  const auto item = [&](int query) -> long {
    const int column = left + query % TILE, row = top + query / TILE;
    if (query >= queries || column >= p.width[own] || row >= p.height[own]) return -1;
    const int q = p.start[own] - p.start[tiles.first * p.points] + row * p.width[own] + column;
    return (static_cast<long>(n) * p.Q + q) * p.M + m;
  };

  float* x = reinterpret_cast<float*>(shared);                              // (queries, D), the tile's rows
  Addition* additions = reinterpret_cast<Addition*>(x + queries * D);       // of one level
  int* begin = reinterpret_cast<int*>(additions + 4 * queries * p.points);  // where those of a cell begin
  int* box = begin + CELLS + 1;  // first and last column, first and last row of the cells
  int* sums = box + 4;           // of every warp
  for (int i = threadIdx.x; i < queries * D / 4; i += THREADS) {
    const int query = i / (D / 4), channel = i % (D / 4) * 4;
    const long from = item(query);
    float four[4] = {};
    if (from >= 0) load<T, 4>(rows + from * D + channel, four);
    store<float, 4>(four, x + query * D + channel);
  }

  // A thread has one point of one query in every level, and a team of threads the channels of one cell after the other.
  const int query = threadIdx.x / p.points, point = threadIdx.x % p.points;
  const long mine = item(query);
  const int lanes = D / 4, lane = threadIdx.x % lanes, team = threadIdx.x / lanes, teams = THREADS / lanes;
  float* to = buffer + (n * p.S * p.M + m) * D;
  const int stride = static_cast<int>(p.M) * D;
  for (int k = 0; k < p.K; k += p.points) {
    const int width = p.width[k], height = p.height[k];
    if (threadIdx.x < 4) box[threadIdx.x] = threadIdx.x % 2 ? -1 : INT_MAX;
    __syncthreads();
    float2 location = make_float2(-2.f, -2.f);  // outside
    float factor = 0.f;
    if (mine >= 0) {
      location = reinterpret_cast<const float2*>(locations)[mine * p.K + k + point];
      factor = factors[mine * p.K + k + point];
    }
    const Between place_x(location.x, width), place_y(location.y, height);
    const float share_x[2] = {place_x.share(0), place_x.share(1)}, share_y[2] = {place_y.share(0), place_y.share(1)};
    const int first_x = place_x.first, first_y = place_y.first;
    const bool inside = share_x[0] + share_x[1] > 0.f && share_y[0] + share_y[1] > 0.f;
    const int least_x = smallest_of_warp(inside ? max(first_x, 0) : INT_MAX);
    const int most_x = largest_of_warp(inside ? min(first_x + 1, width - 1) : -1);
    const int least_y = smallest_of_warp(inside ? max(first_y, 0) : INT_MAX);
    const int most_y = largest_of_warp(inside ? min(first_y + 1, height - 1) : -1);
    if (threadIdx.x % 32 == 0) {
      atomicMin(box, least_x);
      atomicMax(box + 1, most_x);
      atomicMin(box + 2, least_y);
      atomicMax(box + 3, most_y);
    }
    __syncthreads();
    const int box_x = box[0], box_y = box[2], box_width = box[1] - box_x + 1;
    const int cells = box[1] < 0 ? 0 : box_width * (box[3] - box_y + 1);
    const bool fits = cells <= CELLS;
    if (fits)
      for (int i = threadIdx.x; i < CELLS; i += THREADS) begin[i] = 0;
    __syncthreads();

    int cell[4], rank[4];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      cell[corner] = -1;
      if (!fits || share_x[corner % 2] * share_y[corner / 2] == 0.f) continue;
      cell[corner] = (first_y + corner / 2 - box_y) * box_width + first_x + corner % 2 - box_x;
      rank[corner] = atomicAdd(begin + cell[corner], 1);
    }
    if (!fits) {  // samples far apart: there is little to sum up
#pragma unroll 1
      for (int i = 0; i < 4 * lanes; ++i) {
        const int corner = i / lanes, channel = i % lanes * 4;
        const float share = (corner % 2 ? share_x[1] : share_x[0]) * (corner / 2 ? share_y[1] : share_y[0]);
        if (share == 0.f) continue;
        float four[4];
        load<float, 4>(x + query * D + channel, four);
#pragma unroll
        for (int j = 0; j < 4; ++j) four[j] *= factor * share;
        const long token = p.start[k] + (first_y + corner / 2) * width + first_x + corner % 2;
        add_atomically<4>(to + token * stride + channel, four);
      }
    }
    if (!fits) continue;
    __syncthreads();
    begin_of_each(begin, sums);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (cell[corner] < 0) continue;
      const float share = share_x[corner % 2] * share_y[corner / 2];
      additions[begin[cell[corner]] + rank[corner]] = {query * D, factor * share};
    }
    __syncthreads();
    const float inverse = 1.f / box_width;
    for (int c = team; c < cells && team < teams; c += teams) {
      const int end = begin[c + 1];
      int i = begin[c];
      if (i == end) continue;
      float sum[4] = {};
#pragma unroll 2
      for (; i < end; ++i) {
        const Addition addition = additions[i];
        float four[4];
        load<float, 4>(x + addition.row + lane * 4, four);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += addition.factor * four[j];
      }
      const int row = static_cast<int>((c + 0.5f) * inverse), column = c - row * box_width;
      const long token = p.start[k] + (box_y + row) * width + box_x + column;
      add_atomically<4>(to + token * stride + lane * 4, sum);
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
constexpr size_t BACKWARD = sizeof(Corners) + sizeof(float2);

// Sixteen-bit types move 8 numbers at once where heads allow.
template <typename T>
constexpr int WIDEST = 16 / sizeof(T);

// Runs the last argument with the WIDTH of a kernel that scatters, or does not.
#define BY_WIDTH(scatters, ...)                      \
  if (scatters) {                                    \
    [[maybe_unused]] constexpr bool SCATTER = true;  \
    constexpr int WIDTH = 4;                         \
    __VA_ARGS__                                      \
  } else if (p.D % WIDEST<T> == 0) {                 \
    [[maybe_unused]] constexpr bool SCATTER = false; \
    constexpr int WIDTH = WIDEST<T>;                 \
    __VA_ARGS__                                      \
  } else {                                           \
    [[maybe_unused]] constexpr bool SCATTER = false; \
    constexpr int WIDTH = 4;                         \
    __VA_ARGS__                                      \
  }

// The tiles of queries that are the tokens of some neighbouring levels; none where they are not.
Tiles tiles_of(const Problem& p) {
  Tiles tiles = {0, std::min(8, THREADS / TILE / p.points), 0};
  if (tiles.rows == 0) return tiles;
  for (int first = 0; first < p.L; ++first) {
    long tokens = 0, count = 0;
    for (int last = first; last < p.L && tokens < p.Q; ++last) {
      const int k = last * p.points;
      tokens += static_cast<long>(p.width[k]) * p.height[k];
      count += static_cast<long>((p.width[k] + TILE - 1) / TILE) * ((p.height[k] + tiles.rows - 1) / tiles.rows);
      if (tokens == p.Q) return {first, tiles.rows, static_cast<int>(count)};
    }
  }
  return tiles;
}

}  // namespace

template <typename T>
void plain(const Problem& p, const T* value, const float* locations, const float* weights, T* answer,
           cudaStream_t stream) {
  BY_WIDTH(false, {
    const Cut cut(p, WIDTH, FORWARD);
    plain_kernel<T, WIDTH><<<cut.blocks, cut.threads, cut.bytes, stream>>>(p, cut.lanes, cut.groups, value, locations,
                                                                           weights, answer);
  })
}

template <typename T>
void plain_backward(const Problem& p, const T* grad, const T* value, const float* locations, const float* weights,
                    float* grad_value, float* grad_locations, float* grad_weights, cudaStream_t stream) {
  BY_WIDTH(grad_value != nullptr, {
    const Cut cut(p, WIDTH, BACKWARD);
    const auto kernel = plain_backward_kernel<T, WIDTH, SCATTER>;
    kernel<<<cut.blocks, cut.threads, cut.bytes, stream>>>(p, cut.lanes, cut.groups, grad, value, locations, weights,
                                                           grad_value, grad_locations, grad_weights);
  })
}

template <typename T>
void aware(const Problem& p, const T* query, const T* key, const T* value, const float* locations, T* answer,
           cudaStream_t stream) {
  BY_WIDTH(false, {
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
  BY_WIDTH(grad_value != nullptr, {
    const Cut cut(p, WIDTH, BACKWARD + 2 * sizeof(float));
    const auto kernel = key == value ? aware_backward_kernel<T, WIDTH, true, SCATTER>
                                     : aware_backward_kernel<T, WIDTH, false, SCATTER>;
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

bool has_tiles(const Problem& p) { return tiles_of(p).count > 0; }

template <typename T>
void scatter_tiles(const Problem& p, const T* rows, const float* locations, const float* factors, float* buffer,
                   cudaStream_t stream) {
  const Tiles tiles = tiles_of(p);
  const int queries = TILE * tiles.rows, numbers = queries * static_cast<int>(p.D) + 8 * queries * p.points;
  const size_t bytes = sizeof(float) * (numbers + CELLS + 1 + 4 + THREADS / 32);
  const unsigned blocks = static_cast<unsigned>(p.N * tiles.count * p.M);
  scatter_tiles_kernel<T><<<blocks, THREADS, bytes, stream>>>(p, tiles, rows, locations, factors, buffer);
}

#define INSTANTIATE(T)                                                                                               \
  template void plain<T>(const Problem&, const T*, const float*, const float*, T*, cudaStream_t);                    \
  template void plain_backward<T>(const Problem&, const T*, const T*, const float*, const float*, float*, float*,    \
                                  float*, cudaStream_t);                                                             \
  template void aware<T>(const Problem&, const T*, const T*, const T*, const float*, T*, cudaStream_t);              \
  template void aware_backward<T>(const Problem&, const T*, const T*, const T*, const T*, const float*, T*, float*,  \
                                  float*, float*, float*, float*, cudaStream_t);                                     \
  template void scatter_tiles<T>(const Problem&, const T*, const float*, const float*, float*, cudaStream_t);       \
  template void scatter_in_order<T>(const Problem&, const T*, const float*, const float*, float*, cudaStream_t);

INSTANTIATE(float)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace cuda
}  // namespace leandetr
