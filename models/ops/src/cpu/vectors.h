// Vectors of numbers for one instruction set: what both families of CPU kernels are written in. Included by them, once in
// every kernels_*.cpp, which sets ISA (a namespace) and WIDTH (floats per vector) and compiles this text for its own
// processors. Includes no library header that has inline functions: they would be compiled for that processor too, and the
// linker may keep that version for all.

#pragma once

#include "../problem.h"

#ifdef BFLOAT16_PRODUCTS
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace leandetr {
namespace ISA {
namespace {

// How W numbers of a storage type T are read and written as a vector of the type A that accumulates. Spelt out for each W
// by a macro, since compilers want vector types with plain sizes. Integers are as wide as A, and what comparing gives;
// Offsets are ints.
template <typename T, typename A, int W>
struct Pack;
template <typename A, int W>
struct Types;

// Where processors have an instruction for it, whole vectors are rounded by that.
#ifdef BFLOAT16_PRODUCTS
#define ROUND_BFLOAT16(W)                                       \
  if (W == 16) {                                                \
    __m512 whole;                                               \
    __builtin_memcpy(&whole, &v, W * 4 < 64 ? W * 4 : 64);      \
    const __m256bh halves = _mm512_cvtneps_pbh(whole);          \
    __builtin_memcpy(p, &halves, sizeof(Shorts));               \
    return;                                                     \
  }
#else
#define ROUND_BFLOAT16(W)
#endif

#define PACKS(W)                                                                                            \
  template <>                                                                                               \
  struct Types<float, W> {                                                                                  \
    typedef float Vector __attribute__((vector_size(W * 4)));                                               \
    typedef int Integers __attribute__((vector_size(W * 4)));                                               \
    typedef Integers Offsets;                                                                               \
  };                                                                                                        \
  template <>                                                                                               \
  struct Pack<float, float, W> {                                                                            \
    typedef Types<float, W>::Vector Vector;                                                                 \
    static INLINE Vector load(const float* p) {                                                             \
      Vector v;                                                                                             \
      __builtin_memcpy(&v, p, sizeof v);                                                                    \
      return v;                                                                                             \
    }                                                                                                       \
    static INLINE void store(float* p, Vector v) { __builtin_memcpy(p, &v, sizeof v); }                     \
  };                                                                                                        \
  /* Rounds to nearest, ties to even; what is not a number stays so. */                                     \
  template <>                                                                                               \
  struct Pack<BFloat16, float, W> {                                                                         \
    typedef Types<float, W>::Vector Vector;                                                                 \
    typedef unsigned int Words __attribute__((vector_size(W * 4)));                                         \
    typedef unsigned short Shorts __attribute__((vector_size(W * 2)));                                      \
    static INLINE Vector load(const BFloat16* p) {                                                          \
      Shorts s;                                                                                             \
      __builtin_memcpy(&s, p, sizeof s);                                                                    \
      return (Vector)(__builtin_convertvector(s, Words) << 16);                                             \
    }                                                                                                       \
    static INLINE void store(BFloat16* p, Vector v) {                                                       \
      ROUND_BFLOAT16(W)                                                                                     \
      const Words w = (Words)v, is_nan = (Words)(v != v);                                                   \
      const Words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;                                           \
      const Words chosen = (is_nan & ((w >> 16) | 0x40)) | (~is_nan & rounded);                             \
      const Shorts s = __builtin_convertvector(chosen, Shorts);                                             \
      __builtin_memcpy(p, &s, sizeof s);                                                                    \
    }                                                                                                       \
  };                                                                                                        \
  HALF_PACK(W)

#ifdef __FLT16_MAX__
#define HALF_PACK(W)                                                                                        \
  template <>                                                                                               \
  struct Pack<Float16, float, W> {                                                                          \
    typedef Types<float, W>::Vector Vector;                                                                 \
    typedef _Float16 Halves __attribute__((vector_size(W * 2)));                                            \
    static INLINE Vector load(const Float16* p) {                                                           \
      Halves h;                                                                                             \
      __builtin_memcpy(&h, p, sizeof h);                                                                    \
      return __builtin_convertvector(h, Vector);                                                            \
    }                                                                                                       \
    static INLINE void store(Float16* p, Vector v) {                                                        \
      const Halves h = __builtin_convertvector(v, Halves);                                                  \
      __builtin_memcpy(p, &h, sizeof h);                                                                    \
    }                                                                                                       \
  };
#else
#define HALF_PACK(W)
#endif

PACKS(4)
#if WIDTH > 4
PACKS(WIDTH)
#endif

template <>
struct Types<double, 4> {
  typedef double Vector __attribute__((vector_size(32)));
  typedef long Integers __attribute__((vector_size(32)));
  typedef int Offsets __attribute__((vector_size(16)));
};
template <>
struct Pack<double, double, 4> {
  typedef Types<double, 4>::Vector Vector;
  static INLINE Vector load(const double* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static INLINE void store(double* p, Vector v) { __builtin_memcpy(p, &v, sizeof v); }
};

#ifdef __clang__
#define PICK2(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK2(a, b, ...) __builtin_shuffle(a, b, (typename Types<A, W>::Integers){__VA_ARGS__})
#endif

// Ways to merge two vectors, a and then b, by halves. `even` and `odd` take every second number. `pairs` and `quads` add
// neighbours: numbers within each four (in the order that costs processors least), and whole fours. `crossed` swaps
// numbers that are `step`, a power of two, apart.
template <typename A, int W>
struct Halves;
template <typename A>
struct Halves<A, 4> {
  static constexpr int W = 4;
  typedef typename Types<A, 4>::Vector Vector;
  static INLINE Vector even(Vector a, Vector b) { return PICK2(a, b, 0, 2, 4, 6); }
  static INLINE Vector odd(Vector a, Vector b) { return PICK2(a, b, 1, 3, 5, 7); }
  static INLINE Vector pairs(Vector a, Vector b) { return even(a, b) + odd(a, b); }
  static INLINE Vector quads(Vector a, Vector) { return a; }
  static INLINE Vector crossed(Vector v, int step) {
    return step == 2 ? PICK2(v, v, 2, 3, 0, 1) : PICK2(v, v, 1, 0, 3, 2);
  }
};
template <typename A>
struct Halves<A, 8> {
  static constexpr int W = 8;
  typedef typename Types<A, 8>::Vector Vector;
  static INLINE Vector even(Vector a, Vector b) { return PICK2(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
  static INLINE Vector odd(Vector a, Vector b) { return PICK2(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
  static INLINE Vector pairs(Vector a, Vector b) {
    return PICK2(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + PICK2(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  }
  static INLINE Vector quads(Vector a, Vector b) {
    return PICK2(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + PICK2(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
  static INLINE Vector crossed(Vector v, int step) {
    return step == 4   ? PICK2(v, v, 4, 5, 6, 7, 0, 1, 2, 3)
           : step == 2 ? PICK2(v, v, 2, 3, 0, 1, 6, 7, 4, 5)
                       : PICK2(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
  }
};
template <typename A>
struct Halves<A, 16> {
  static constexpr int W = 16;
  typedef typename Types<A, 16>::Vector Vector;
  static INLINE Vector even(Vector a, Vector b) {
    return PICK2(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
  static INLINE Vector odd(Vector a, Vector b) {
    return PICK2(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
  static INLINE Vector pairs(Vector a, Vector b) {
    return PICK2(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
           PICK2(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
  }
  static INLINE Vector quads(Vector a, Vector b) {
    return PICK2(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           PICK2(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  static INLINE Vector crossed(Vector v, int step) {
    return step == 8   ? PICK2(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
           : step == 4 ? PICK2(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
           : step == 2 ? PICK2(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
                       : PICK2(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  }
};

// Some vectors that are treated alike.
template <typename A, int W, int N>
struct Vectors {
  typename Types<A, W>::Vector of[N];
};

// From sums of every (W / 4)-th number, four side by side in each of W / 4 vectors: the whole sums, W side by side.
// Overwrites them.
template <typename A, int W, typename Vector>
INLINE Vector whole_sums(Vector (&parts)[W / 4]) {
  for (int left = W / 8; left; left /= 2)
    for (int i = 0; i < left; ++i) parts[i] = Halves<A, W>::quads(parts[2 * i], parts[2 * i + 1]);
  return parts[0];
}

// The sums of the numbers in each vector of product(first), product(first + 1), ..., W sums side by side. There are
// `count` products; sums beyond them are 0.
template <typename A, int W, int N, typename Product>
INLINE Vectors<A, W, N> sums_of(const Product& product, int first, int count) {
  typedef Halves<A, W> H;
  typedef Vectors<A, W, N> Several;
  typename H::Vector parts[N][W / 4] = {};  // in each, sums of a quarter of the numbers of four products
  for (int j = 0; j < W / 4; ++j) {
    const int k = first + 4 * j;
    if (k + 3 < count) {
      const Several a = product(k), b = product(k + 1), c = product(k + 2), d = product(k + 3);
      for (int n = 0; n < N; ++n) parts[n][j] = H::pairs(H::pairs(a.of[n], b.of[n]), H::pairs(c.of[n], d.of[n]));
    } else {
      Several v[4] = {};
      for (int i = 0; k + i < count; ++i) v[i] = product(k + i);
      for (int n = 0; n < N; ++n)
        parts[n][j] = H::pairs(H::pairs(v[0].of[n], v[1].of[n]), H::pairs(v[2].of[n], v[3].of[n]));
      break;
    }
  }
  Several sums;
  for (int n = 0; n < N; ++n) sums.of[n] = whole_sums<A, W>(parts[n]);
  return sums;
}

template <typename Vector>
INLINE Vector larger(Vector a, Vector b) {
  return a > b ? a : b;
}

// The sum, or the largest, of W numbers, in every place.
template <typename A, int W, typename Vector>
INLINE Vector sum_of(Vector v) {
  for (int step = W / 2; step; step /= 2) v += Halves<A, W>::crossed(v, step);
  return v;
}
template <typename A, int W, typename Vector>
INLINE Vector largest_of(Vector v) {
  for (int step = W / 2; step; step /= 2) v = larger(v, Halves<A, W>::crossed(v, step));
  return v;
}

// 2^x within 2 units in the last place; almost 0 below -126. The polynomial is a minimax fit on [-1/2, 1/2].
template <int W, typename Vector = typename Types<float, W>::Vector>
INLINE Vector power_of_two(Vector x, float) {
  typedef typename Types<float, W>::Integers Integers;
  const Vector zero = {}, rounds = zero + 12582912.0f;  // 1.5 * 2^23: adding it leaves whole numbers in the low bits
  x = larger(zero - 126.0f, x);  // in this order, what is not a number stays so
  const Vector whole = x + rounds;
  const Vector r = x - (whole - rounds), square = r * r;
  const Vector low = r * 0.693146976f + 1.0f, middle = r * 5.55073503e-2f + 0.240222405f;
  const Vector high = r * 1.32645911e-3f + 9.67161905e-3f;
  const Vector y = (high * square + middle) * square + low;
  return (Vector)((Integers)y + ((Integers)whole << 23));
}
template <int W, typename Vector = typename Types<double, W>::Vector>
INLINE Vector power_of_two(Vector x, double) {
  for (int i = 0; i < W; ++i) x[i] = __builtin_exp2(x[i]);
  return x;
}

}  // namespace
}  // namespace ISA
}  // namespace leandetr
