// Just enough of CUDA for a C++ compiler to run src/cuda/kernels.cu: one thread per thread, one block after the other.

#pragma once

#include <algorithm>
#include <barrier>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

using std::max;
using std::min;

typedef void* cudaStream_t;
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

struct dim3 {
  unsigned x, y;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};

struct __nv_bfloat16 { uint16_t bits; };
struct __half { _Float16 value; };
inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

inline thread_local dim3 threadIdx, blockIdx, blockDim;
inline thread_local char* emulated_shared;
inline thread_local std::barrier<>* whole_block;
inline thread_local std::barrier<>* whole_warp;
inline thread_local float* warp_values;

inline void __syncthreads() { whole_block->arrive_and_wait(); }
inline void __syncwarp() { whole_warp->arrive_and_wait(); }
template <typename T>  // of four bytes
T of_lane(T x, int other) {
  std::memcpy(warp_values + threadIdx.x % 32, &x, 4);
  __syncwarp();
  std::memcpy(&x, warp_values + other, 4);
  __syncwarp();
  return x;
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int step) {
  return of_lane(x, threadIdx.x % 32 ^ step);
}
template <typename T>
T __shfl_up_sync(unsigned, T x, int step) {
  const int lane = threadIdx.x % 32;
  return of_lane(x, lane < step ? lane : lane - step);
}
template <typename T, typename Change>
T atomically(T* at, Change change) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  const T before = *at;
  *at = change(before);
  return before;
}
template <typename T>
T atomicAdd(T* to, T x) {
  return atomically(to, [x](T y) { return y + x; });
}
inline int atomicMin(int* to, int x) {
  return atomically(to, [x](int y) { return min(x, y); });
}
inline int atomicMax(int* to, int x) {
  return atomically(to, [x](int y) { return max(x, y); });
}

template <typename Kernel>
void emulate(dim3 blocks, int threads, size_t bytes, Kernel kernel) {
  for (unsigned y = 0; y < blocks.y; ++y) {
    for (unsigned x = 0; x < blocks.x; ++x) {
      const std::unique_ptr<float4[]> shared(new float4[bytes / sizeof(float4) + 1]);
      std::barrier<> block(threads);
      std::vector<std::unique_ptr<std::barrier<>>> warps;
      for (int i = 0; i < threads / 32; ++i) warps.emplace_back(new std::barrier<>(32));
      std::vector<float> values(threads);
      std::vector<std::thread> running;
      for (int i = 0; i < threads; ++i) {
        running.emplace_back([&, i] {
          threadIdx = dim3(i);
          blockIdx = dim3(x, y);
          blockDim = dim3(threads);
          emulated_shared = reinterpret_cast<char*>(shared.get());
          whole_block = &block;
          whole_warp = warps[i / 32].get();
          warp_values = &values[i / 32 * 32];
          kernel();
          whole_warp->arrive_and_drop();
          block.arrive_and_drop();
        });
      }
      for (auto& thread : running) thread.join();
    }
  }
}
