// For x86 processors with AVX-512; chosen at run time.
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#define ISA avx512
#define WIDTH 16
#include "kernels.h"
#include "product_kernels.h"
#include "convolution_kernels.h"
#include "dropout_kernels.h"
#include "attention_kernels.h"
#include "map_kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
