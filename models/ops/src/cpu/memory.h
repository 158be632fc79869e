// Threads, and the memory that each of them works in.

#pragma once

#include <ATen/Parallel.h>

#include <cstdint>
#include <memory>
#include <new>

namespace leandetr {

// Rows of numbers begin with a cache line: vectors that reach into the next line cost twice.
constexpr int64_t CACHE_LINE_BYTES = 64;
constexpr std::align_val_t CACHE_LINE{CACHE_LINE_BYTES};
struct Release {
  void operator()(void* memory) const { ::operator delete(memory, CACHE_LINE); }
};

// The first cache line that begins there or later.
inline void* aligned(void* memory) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory) + CACHE_LINE_BYTES - 1) / CACHE_LINE_BYTES *
                                 CACHE_LINE_BYTES);
}

// Shares `count` pieces of work among the threads; each gets `bytes` of memory of its own.
template <typename Work>
void in_threads(int64_t count, int64_t bytes, const Work& work) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<void, Release> memory(::operator new(bytes, CACHE_LINE));
    work(memory.get(), begin, end);
  });
}

}  // namespace leandetr
