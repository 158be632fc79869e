// For x86 processors with AVX-512 and its products of bfloat16, where the compiler knows them; chosen at run time.
#include "products.h"
#ifdef LEANDETR_BFLOAT16_PRODUCTS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
#endif
#define ISA avx512_bf16
#define WIDTH 16
#define BFLOAT16_PRODUCTS
#include "product_kernels.h"
#include "attention_kernels.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
