// For x86 processors with AVX2 (2013 on); chosen at run time.
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define ISA avx2
#define WIDTH 8
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
