// Matrix products of linear layers on the CPU, for one instruction set, with all that belongs to a layer done while its
// numbers are in a core's cache. Included by kernels_*.cpp; see vectors.h.
//
// A tile of TILE rows and COLUMNS columns of the result is summed in registers over the whole depth K, one depth after
// the other, so a number depends on its row and column alone, not on threads or blocks. Numbers are multiplied in units
// of four bytes: a float, or two bfloat16 of neighbouring depths. What is multiplied is copied first: rows of x to blocks
// whose rows are a fixed distance apart (a tile then needs one address, and its rows do not crowd the same cache lines),
// the weights to panels (depth, COLUMNS).

#pragma once

#include "products.h"
#include "vectors.h"

#if WIDTH == 16
#include <immintrin.h>
#endif

namespace leandetr {
namespace ISA {
namespace {

typedef typename Types<float, WIDTH>::Vector Floats;
typedef typename Types<float, WIDTH>::Integers Integers;
typedef Pack<float, float, WIDTH> F;

constexpr int VECTORS = 2;                    // per row of a tile
constexpr int TILE = WIDTH == 16 ? 12 : 6;    // rows of a tile: as many as registers hold sums for
constexpr int COLUMNS = VECTORS * WIDTH;
constexpr long DEPTH = 256;                   // units of a block's row that lie together
constexpr long ROW = DEPTH + 16;              // from one row of a block to the next
constexpr long BLOCK_BYTES = 400 << 10;       // of the rows that a thread works on, which its cache is to hold
constexpr long DEPTHS = 128;                  // of a gradient's block

// How T is multiplied.
template <typename T>
struct Multiply;

template <>
struct Multiply<float> {
  typedef float Unit;
  static constexpr long EACH = 1;  // numbers per unit
  static INLINE Floats spread(Unit unit) { return unit - Floats{}; }  // x + 0 would cost a sum: it is not -0
  static INLINE Floats add(Floats sum, Floats x, const Unit* w) { return sum + x * F::load(w); }
};

#ifdef BFLOAT16_PRODUCTS
struct Pair {
  BFloat16 of[2];
};
template <>
struct Multiply<BFloat16> {
  typedef Pair Unit;
  static constexpr long EACH = 2;
  static INLINE Floats spread(Unit unit) {
    int bits;
    __builtin_memcpy(&bits, &unit, sizeof bits);
    return (Floats)(bits - Integers{});
  }
  static INLINE Floats add(Floats sum, Floats x, const Unit* w) {
    __m512bh pairs;
    __builtin_memcpy(&pairs, w, sizeof pairs);
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, pairs);
  }
};
#endif

constexpr long up(long count, long step) { return (count + step - 1) / step; }

// A tile's sums: a (TILE rows, DEPTH apart by ROW_STEP, units apart by UNIT_STEP) times a panel of `units` depths, to `c`,
// whose rows are COLUMNS apart. `chunk` is from one DEPTH units of a to the next. ADD: to what c holds.
template <typename T, long ROW_STEP, long UNIT_STEP, bool ADD>
INLINE void multiply(const typename Multiply<T>::Unit* a, long chunk, const typename Multiply<T>::Unit* panel, long units,
                     float* c) {
  typedef Multiply<T> X;
  Floats sums[TILE][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < TILE; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = ADD ? F::load(c + r * COLUMNS + v * WIDTH) : Floats{};
  for (long start = 0; start < units; start += DEPTH, a += chunk) {
    const long end = units - start < DEPTH ? units - start : DEPTH;
    const typename X::Unit* from = a;
    for (long k = 0; k < end; ++k, from += UNIT_STEP, panel += COLUMNS) {
#pragma GCC unroll 16
      for (int r = 0; r < TILE; ++r) {
        const Floats x = X::spread(from[r * ROW_STEP]);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = X::add(sums[r][v], x, panel + v * WIDTH);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < TILE; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) F::store(c + r * COLUMNS + v * WIDTH, sums[r][v]);
}

// ------------------------------------------------------------------------------------------------------------ packing

// Swaps rows and columns of WIDTH vectors.
INLINE void transpose(Floats (&v)[WIDTH]) {
  Integers lanes;
  for (int i = 0; i < WIDTH; ++i) lanes[i] = i;
#pragma GCC unroll 4
  for (int step = WIDTH / 2; step; step /= 2) {
    const Integers second = (lanes & step) != 0;
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; ++i) {
      if (i & step) continue;
      const Floats a = v[i], b = v[i + step];
      v[i] = second ? Halves<float, WIDTH>::crossed(b, step) : a;
      v[i + step] = second ? b : Halves<float, WIDTH>::crossed(a, step);
    }
  }
}

INLINE void convert(float from, float& to) { to = from; }
INLINE void convert(BFloat16 from, BFloat16& to) { to = from; }
INLINE void convert(float from, BFloat16& to) {
  Types<float, 4>::Vector v = {from};
  BFloat16 four[4];
  Pack<BFloat16, float, 4>::store(four, v);
  to = four[0];
}
INLINE float widened(float x) { return x; }
INLINE float widened(BFloat16 x) {
  const unsigned bits = (unsigned)x.bits << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// WIDTH units of numbers that lie side by side.
template <typename T, typename W>
INLINE Floats load_units(const W* from) {
  constexpr long EACH = Multiply<T>::EACH;
  T numbers[WIDTH * EACH];
  for (int i = 0; i < EACH; ++i)
    Pack<T, float, WIDTH>::store(numbers + i * WIDTH, Pack<W, float, WIDTH>::load(from + i * WIDTH));
  Floats units;
  __builtin_memcpy(&units, numbers, sizeof units);
  return units;
}

// W (N, K), or (K, N) where transposed -> panels: units (depth, COLUMNS) each, with zeros beyond N and K.
template <typename T, typename W>
void pack_panels(const W* weight, bool transposed, long N, long K, void* packed, long begin, long end) {
  constexpr long EACH = Multiply<T>::EACH;
  const long units = up(K, EACH);
  for (long panel = begin; panel < end; ++panel) {
    T* to = static_cast<T*>(packed) + panel * units * COLUMNS * EACH;
    const long first = panel * COLUMNS, columns = N - first < COLUMNS ? N - first : COLUMNS;
    long k = 0;
    if (columns == COLUMNS && !transposed)
      for (; k + WIDTH * EACH <= K; k += WIDTH * EACH)
        for (int v = 0; v < VECTORS; ++v) {
          Floats block[WIDTH];  // of units, whatever they hold
          for (int i = 0; i < WIDTH; ++i) block[i] = load_units<T>(weight + (first + v * WIDTH + i) * K + k);
          transpose(block);
          for (int i = 0; i < WIDTH; ++i)
            __builtin_memcpy(to + ((k / EACH + i) * COLUMNS + v * WIDTH) * EACH, &block[i], sizeof block[i]);
        }
    if (columns == COLUMNS && transposed && EACH == 1)
      for (; k < K; ++k)
        for (int v = 0; v < VECTORS; ++v)
          Pack<T, float, WIDTH>::store(to + k * COLUMNS + v * WIDTH,
                                       Pack<W, float, WIDTH>::load(weight + k * N + first + v * WIDTH));
    if (columns == COLUMNS && transposed && EACH == 2 && sizeof(W) == 2)
      for (; k + 1 < K; k += 2)
        for (int v = 0; v < VECTORS; ++v) {
          const W* from = weight + k * N + first + v * WIDTH;
          const Integers upper = (Integers)Pack<W, float, WIDTH>::load(from + N);  // its bits are the upper ones
          const Integers lower = (Integers)Pack<W, float, WIDTH>::load(from) >> 16 & 0xffff;
          const Integers pair = upper | lower;
          __builtin_memcpy(to + (k / 2 * COLUMNS + v * WIDTH) * 2, &pair, sizeof pair);
        }
    for (; k < units * EACH; ++k)
      for (long n = 0; n < COLUMNS; ++n) {
        T& number = to[(k / EACH * COLUMNS + n) * EACH + k % EACH];
        if (k < K && n < columns)
          convert(transposed ? weight[k * N + first + n] : weight[(first + n) * K + k], number);
        else
          number = T{};
      }
  }
}

// Rows of x, (count, K) and `step` apart -> columns `first` and on of a block: chunks of `rows` rows of DEPTH units, ROW
// apart. Zeros fill the rows up to `rows`, and the last unit. `positive` as in Linear, at the same place.
template <typename T, typename X>
void copy_rows(const X* x, long step, const float* positive, long count, long rows, long K, long first, T* block) {
  constexpr long EACH = Multiply<T>::EACH;
  constexpr long WIDE = DEPTH * EACH;
  for (long k = 0; k < K;) {
    const long within = (first + k) % WIDE, room = WIDE - within, width = K - k < room ? K - k : room;
    const long filled = up(width, EACH) * EACH;
    T* chunk = block + (first + k) / WIDE * rows * ROW * EACH + within;
    for (long row = 0; row < rows; ++row) {
      T* to = chunk + row * ROW * EACH;
      if (row >= count) {
        for (long i = 0; i < filled; ++i) to[i] = T{};
        continue;
      }
      const X* from = x + row * step + k;
      const float* where = positive ? positive + row * step + k : nullptr;
      long i = 0;
      if (sizeof(X) == sizeof(T) && !where) {  // they are the same
        __builtin_memcpy(to, from, width * sizeof(T));
        i = width;
      }
      for (; i + WIDTH <= width; i += WIDTH) {
        Floats v = Pack<X, float, WIDTH>::load(from + i);
        if (where) v = F::load(where + i) > 0 ? v : Floats{};
        Pack<T, float, WIDTH>::store(to + i, v);
      }
      for (; i < width; ++i) {
        convert(where && !(where[i] > 0) ? 0.0f : widened(from[i]), to[i]);
      }
      for (; i < filled; ++i) to[i] = T{};
    }
    k += width;
  }
}

// ---------------------------------------------------------------------------------------------------------- epilogues

// The error function within 1.5e-7 (Abramowitz and Stegun, 7.1.26).
INLINE Floats erf_of(Floats x) {
  const Floats zero = {}, size = larger(x, zero - x);
  const Floats t = 1.0f / (size * 0.3275911f + 1.0f);
  const Floats p = ((((t * 1.061405429f - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  const Floats y = 1.0f - p * power_of_two<WIDTH>(size * size * -1.44269504f, 0.0f);
  return x < 0 ? zero - y : y;
}

// x / (1 + exp(-x)), of an exponential that is 1 at most.
INLINE Floats silu_of(Floats x) {
  const Floats zero = {}, size = larger(x, zero - x);
  const Floats e = power_of_two<WIDTH>(size * -1.44269504f, 0.0f);
  const Floats above = x < 0 ? x * e : x, below = e + 1.0f;
#if WIDTH == 16
  const Floats guess = (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)below);  // a division takes as long as all else
  return above * (guess * (2.0f - below * guess));
#else
  return above / below;
#endif
}

// What the numbers of a scaled ReLU are; see Linear.
struct Scaling {
  float scale, shift;
};

template <Activation ACTIVATION>
INLINE Floats activated(Floats x, Scaling scaling) {
  const Floats rectified = x < 0 ? Floats{} : x;  // in this order, what is not a number stays so
  if (ACTIVATION == Activation::relu) return rectified;
  if (ACTIVATION == Activation::gelu) return x * 0.5f * (erf_of(x * 0.707106781f) + 1.0f);
  if (ACTIVATION == Activation::silu) return silu_of(x);
  if (ACTIVATION == Activation::scaled_relu) return rectified * scaling.scale + scaling.shift;
  return x;
}

// The first `columns` numbers of W, the rest 0.
template <typename T>
INLINE Floats load_some(const T* from, long columns) {
  T some[WIDTH] = {};
  for (long i = 0; i < columns; ++i) some[i] = from[i];
  return Pack<T, float, WIDTH>::load(some);
}
template <typename T>
INLINE void store_some(T* to, Floats v, long columns) {
  T some[WIDTH];
  Pack<T, float, WIDTH>::store(some, v);
  for (long i = 0; i < columns; ++i) to[i] = some[i];
}

// A vector of sums with what belongs to it.
template <Activation ACTIVATION, typename R>
INLINE Floats finished(Floats sum, Floats shift, const R* residual, long columns, Scaling scaling) {
  sum += shift;
  if (residual) sum += columns < WIDTH ? load_some(residual, columns) : Pack<R, float, WIDTH>::load(residual);
  return activated<ACTIVATION>(sum, scaling);
}

// A tile of sums -> y, whose rows are `step` apart; bias at the tile's place, and so each row's residual, or null.
template <Activation ACTIVATION, typename Y, typename R>
INLINE void finish(const float* c, long rows, long columns, const float* bias, const R* const* residual, Scaling scaling,
                   Y* y, long step) {
  if (rows == TILE && columns == COLUMNS) {
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      const long at = v * WIDTH;
      const Floats shift = bias ? F::load(bias + at) : Floats{};
#pragma GCC unroll 16
      for (int r = 0; r < TILE; ++r) {
        const R* from = residual ? residual[r] + at : nullptr;
        const Floats sum = finished<ACTIVATION>(F::load(c + r * COLUMNS + at), shift, from, WIDTH, scaling);
        Pack<Y, float, WIDTH>::store(y + r * step + at, sum);
      }
    }
    return;
  }
  for (long at = 0; at < columns; at += WIDTH) {
    const long left = columns - at < WIDTH ? columns - at : WIDTH;
    const Floats shift = bias ? load_some(bias + at, left) : Floats{};
    for (long r = 0; r < rows; ++r) {
      const R* from = residual ? residual[r] + at : nullptr;
      const Floats sum = finished<ACTIVATION>(F::load(c + r * COLUMNS + at), shift, from, left, scaling);
      store_some(y + r * step + at, sum, left);
    }
  }
}

// A layer norm of rows of N numbers, `step` apart.
INLINE void norm_rows(const float* from, long rows, long N, long step, const float* weight, const float* bias, float eps,
                      float* to) {
  const long whole = N / WIDTH * WIDTH;
  for (long row = 0; row < rows; ++row, from += step, to += N) {
    Floats sums = {};
    for (long n = 0; n < whole; n += WIDTH) sums += F::load(from + n);
    if (whole < N) sums += load_some(from + whole, N - whole);
    const Floats mean = sum_of<float, WIDTH>(sums) / (float)N;
    Floats squares = {};
    for (long n = 0; n < whole; n += WIDTH) {
      const Floats d = F::load(from + n) - mean;
      squares += d * d;
    }
    for (long n = whole; n < N; ++n) squares[n - whole] += (from[n] - mean[0]) * (from[n] - mean[0]);
    const float variance = sum_of<float, WIDTH>(squares)[0] / (float)N;
    const Floats scale = 1.0f / __builtin_sqrtf(variance + eps) - Floats{};
    for (long n = 0; n < whole; n += WIDTH)
      F::store(to + n, (F::load(from + n) - mean) * scale * F::load(weight + n) + F::load(bias + n));
    for (long n = whole; n < N; ++n) to[n] = (from[n] - mean[0]) * scale[0] * weight[n] + bias[n];
  }
}

// ------------------------------------------------------------------------------------------------------------ fetching
// What comes from memory is asked for while something else is multiplied.

constexpr long LINE = 64;

template <int WRITES, typename X>
INLINE void expect_rows(const X* from, long rows, long step, long columns) {
  for (long row = 0; row < rows; ++row) {
    const char* at = reinterpret_cast<const char*>(from + row * step);
    for (long byte = 0; byte < columns * (long)sizeof(X); byte += LINE) __builtin_prefetch(at + byte, WRITES);
  }
}

// The rows of x, where it is one matrix without gaps, after those that are being multiplied: a share of them for each of
// `tiles` tiles.
struct Ahead {
  const char* next;
  const char* end;
  long share;

  INLINE Ahead(const Linear& p, long first, long rows, long tiles) : next(nullptr), end(nullptr), share(0) {
    if (p.parts != 1 || p.x->step != p.K || first >= p.M) return;
    const long bytes = p.K * (p.x_is_float ? 4 : 2), left = p.M - first;
    next = static_cast<const char*>(p.x->rows) + first * bytes;
    end = next + (left < rows ? left : rows) * bytes;
    share = up(end - next, tiles);
  }
  INLINE void more() {
    const char* until = end - next < share ? end : next + share;
    for (; next < until; next += LINE) __builtin_prefetch(next, 0, 2);
  }
};

// ------------------------------------------------------------------------------------------------------------- layers

template <typename T>
struct Layers {
  typedef Multiply<T> X;
  typedef typename X::Unit Unit;
  static constexpr long EACH = X::EACH;
  static constexpr long WIDE = DEPTH * EACH;

  static long units(long K) { return up(K, EACH); }
  static long packed_bytes(long N, long K) { return panels(N) * units(K) * COLUMNS * sizeof(Unit); }
  static long panels(long N) { return up(N, COLUMNS); }
  static void pack(const void* weight, bool is_float, bool transposed, long N, long K, void* packed, long begin,
                   long end) {
    if (is_float)
      pack_panels<T>(static_cast<const float*>(weight), transposed, N, K, packed, begin, end);
    else
      pack_panels<T>(static_cast<const T*>(weight), transposed, N, K, packed, begin, end);
  }

  static long row_bytes(long K) { return up(units(K), DEPTH) * ROW * sizeof(Unit); }
  static long normed_step(long N) { return up(N, WIDTH) * WIDTH + WIDTH; }
  static long normed_bytes(const Linear& p) { return p.norm_weight ? normed_step(p.N) * (long)sizeof(float) : 0; }

  // How many rows are multiplied at once, where each needs so many bytes.
  static long rows_of(long bytes, long M) {
    const long fit = BLOCK_BYTES / bytes / TILE * TILE, all = up(M, TILE) * TILE;
    const long rows = fit < TILE ? TILE : fit;
    return rows < all ? rows : all;
  }
  static long linear_rows(const Linear& p) { return rows_of(row_bytes(p.K) + normed_bytes(p), p.M); }
  static long linear_bytes(const Linear& p) { return linear_rows(p) * (row_bytes(p.K) + normed_bytes(p)); }

  static void copy(const Linear& p, long first, long count, long rows, void* block) {
    const float* positive = p.positive ? p.positive + first * p.K : nullptr;
    T* to = static_cast<T*>(block);
    long column = 0;
    for (const Columns* part = p.x; part < p.x + p.parts; column += part->count, ++part) {
      const long at = first * part->step;
      if (p.x_is_float) {
        copy_rows(static_cast<const float*>(part->rows) + at, part->step, positive, count, rows, part->count, column, to);
      } else {
        copy_rows(static_cast<const T*>(part->rows) + at, part->step, positive, count, rows, part->count, column, to);
      }
    }
  }

  // A block of `rows` rows times all panels. place(row, column) is where y's number goes, and rows of a tile are `step`
  // apart there; `first` is the first of the rows in p, of which there are `count`.
  template <Activation ACTIVATION, typename R, typename Place>
  static INLINE void multiply_block(const Linear& p, const void* block, long rows, long first, long count, long step,
                                    const Place& place) {
    float c[TILE * COLUMNS] __attribute__((aligned(64)));
    const long depth = units(p.K);
    Ahead ahead(p, first + rows, rows, panels(p.N) * up(count, TILE));
    const Scaling scaling = {p.scale, p.shift};
    for (long panel = 0; panel < panels(p.N); ++panel) {
      const Unit* w = static_cast<const Unit*>(p.weight) + panel * depth * COLUMNS;
      const long n = panel * COLUMNS, columns = p.N - n < COLUMNS ? p.N - n : COLUMNS;
      for (long row = 0; row < count; row += TILE) {
        auto* y = place(row, n);
        const long height = count - row < TILE ? count - row : TILE;
        const R* residual[TILE];
        if (p.residual)
          for (long r = 0; r < height; ++r) {
            const long of = first + row + r;
            residual[r] = static_cast<const R*>(p.residual) + (p.residual_rows ? p.residual_rows[of] : of) * p.N + n;
            expect_rows<0>(residual[r], 1, p.N, columns);
          }
        expect_rows<1>(y, height, step, columns);
        ahead.more();
        multiply<T, ROW, 1, false>(static_cast<const Unit*>(block) + row * ROW, rows * ROW, w, depth, c);
        finish<ACTIVATION>(c, height, columns, p.bias ? p.bias + n : nullptr, p.residual ? residual : nullptr, scaling, y,
                           step);
      }
    }
  }

  template <Activation ACTIVATION, typename R>
  static void answer_block(const Linear& p, const void* block, long rows, long first, long count, float* sums) {
    if (p.norm_weight) {
      const long step = normed_step(p.N);
      multiply_block<ACTIVATION, R>(p, block, rows, first, count, step,
                                    [&](long row, long n) INLINE_LAMBDA { return sums + row * step + n; });
      norm_rows(sums, count, p.N, step, p.norm_weight, p.norm_bias, p.eps, static_cast<float*>(p.y) + first * p.N);
    } else {
      T* y = static_cast<T*>(p.y) + first * p.N;
      multiply_block<ACTIVATION, R>(p, block, rows, first, count, p.N,
                                    [&](long row, long n) INLINE_LAMBDA { return y + row * p.N + n; });
    }
  }

  template <Activation ACTIVATION>
  static void answer_block(const Linear& p, const void* block, long rows, long first, long count, float* sums) {
    if (p.residual && !p.residual_is_float)
      answer_block<ACTIVATION, T>(p, block, rows, first, count, sums);
    else
      answer_block<ACTIVATION, float>(p, block, rows, first, count, sums);
  }

  static void answer(const Linear& p, const void* block, long rows, long first, long count, float* sums) {
    switch (p.activation) {
      case Activation::none: return answer_block<Activation::none>(p, block, rows, first, count, sums);
      case Activation::relu: return answer_block<Activation::relu>(p, block, rows, first, count, sums);
      case Activation::gelu: return answer_block<Activation::gelu>(p, block, rows, first, count, sums);
      case Activation::silu: return answer_block<Activation::silu>(p, block, rows, first, count, sums);
      case Activation::scaled_relu: return answer_block<Activation::scaled_relu>(p, block, rows, first, count, sums);
    }
  }

  static void linear(const Linear& p, void* memory, long begin, long end) {
    const long rows = linear_rows(p), last = end * TILE < p.M ? end * TILE : p.M;
    float* sums = reinterpret_cast<float*>(static_cast<char*>(memory) + rows * row_bytes(p.K));
    for (long first = begin * TILE; first < last; first += rows) {
      const long count = last - first < rows ? last - first : rows;
      copy(p, first, count, rows, memory);
      answer(p, memory, rows, first, count, sums);
    }
  }

  static long feed_forward_row(const Linear& first, const Linear& second) {
    return row_bytes(first.K) + row_bytes(second.K) + normed_bytes(second);
  }
  static long feed_forward_rows(const Linear& first, const Linear& second) {
    return rows_of(feed_forward_row(first, second), first.M);
  }
  static long feed_forward_bytes(const Linear& first, const Linear& second) {
    return feed_forward_rows(first, second) * feed_forward_row(first, second);
  }

  template <Activation ACTIVATION>
  static void hide(const Linear& p, const void* block, long rows, long first, long count, T* hidden) {
    multiply_block<ACTIVATION, float>(p, block, rows, first, count, ROW * EACH, [&](long row, long n) INLINE_LAMBDA {
      return hidden + (n / WIDE * rows + row) * ROW * EACH + n % WIDE;
    });
  }

  static void feed_forward(const Linear& p, const Linear& second, void* memory, long begin, long end) {
    const long rows = feed_forward_rows(p, second), last = end * TILE < p.M ? end * TILE : p.M;
    char* hidden = static_cast<char*>(memory) + rows * row_bytes(p.K);
    float* sums = reinterpret_cast<float*>(hidden + rows * row_bytes(second.K));
    __builtin_memset(hidden, 0, rows * row_bytes(second.K));
    for (long first = begin * TILE; first < last; first += rows) {
      const long count = last - first < rows ? last - first : rows;
      copy(p, first, count, rows, memory);
      if (p.activation == Activation::relu)
        hide<Activation::relu>(p, memory, rows, first, count, reinterpret_cast<T*>(hidden));
      else
        hide<Activation::gelu>(p, memory, rows, first, count, reinterpret_cast<T*>(hidden));
      answer(second, hidden, rows, first, count, sums);
    }
  }
};

#ifndef BFLOAT16_PRODUCTS
// ------------------------------------------------------------------------------------------------- gradients of weights
// Tasks are tiles of grad_weight's rows, for one stretch of its columns after the other.

constexpr long STRETCH = 256;            // columns
constexpr long TILES = WIDTH == 16 ? 24 : 48;               // of rows that are summed together
constexpr long TALL = TILES * TILE;

long weight_gradient_tasks(const WeightGradient& p) { return up(p.N, TILE) * up(p.K, STRETCH); }

long weight_gradient_bytes(const WeightGradient&) {
  return (DEPTHS * (COLUMNS + TALL) + TALL * STRETCH + TALL) * sizeof(float);
}

// `count` depths of `columns` columns, `step` apart -> (DEPTHS, WIDE), zeros beyond the columns; where: as Linear.positive.
template <int WIDE>
INLINE void copy_depths(const float* from, const float* where, long step, long count, long columns, float* to) {
  if (columns >= WIDE && !where) {
    for (long k = 0; k < count; ++k) __builtin_memcpy(to + k * WIDE, from + k * step, WIDE * sizeof(float));
  } else if (columns >= WIDE) {
    typedef Pack<float, float, 4> Four;  // whole vectors may be wider than a row, and branches would be guessed wrong
    for (long k = 0; k < count; ++k)
#pragma GCC unroll 8
      for (int four = 0; four < WIDE; four += 4) {
        const int n = four + 4 <= WIDE ? four : WIDE - 4;
        const Four::Vector x = Four::load(from + k * step + n), zero = {};
        Four::store(to + k * WIDE + n, Four::load(where + k * step + n) > 0 ? x : zero);
      }
  } else {
    for (long k = 0; k < count; ++k)
      for (long n = 0; n < WIDE; ++n)
        to[k * WIDE + n] = n < columns && (!where || where[k * step + n] > 0) ? from[k * step + n] : 0.0f;
  }
}

// Rows [top, bottom) and columns [left, right) of the gradient.
void weight_gradient_part(const WeightGradient& p, long top, long bottom, long left, long right, float* memory) {
  float* x = memory;                        // (DEPTHS, COLUMNS)
  float* sums = x + DEPTHS * COLUMNS;       // (panel, tile, TILE, COLUMNS)
  float* grads = sums + TALL * STRETCH;     // (tile, DEPTHS, TILE)
  float* biases = grads + DEPTHS * TALL;
  const long tiles = up(bottom - top, TILE), wide = up(right - left, COLUMNS);
  for (long panel = 0; panel < wide; ++panel)
    __builtin_memset(sums + panel * TALL * COLUMNS, 0, tiles * TILE * COLUMNS * sizeof(float));
  __builtin_memset(biases, 0, TALL * sizeof(float));
  const long share = up(DEPTHS, tiles * wide);  // of the next depths, asked for with every tile
  for (long m = 0; m < p.M; m += DEPTHS) {
    const long count = p.M - m < DEPTHS ? p.M - m : DEPTHS;
    const long beyond = p.M - m - count, ahead = beyond < DEPTHS ? beyond : DEPTHS;
    long expected = 0;
    for (long tile = 0; tile < tiles; ++tile) {
      const long row = top + tile * TILE;
      float* to = grads + tile * DEPTHS * TILE;
      copy_depths<TILE>(p.grad + m * p.N + row, p.positive ? p.positive + m * p.N + row : nullptr, p.N, count,
                        bottom - row, to);
      if (left == 0 && p.grad_bias) {
        float columns[TILE];
        __builtin_memcpy(columns, biases + tile * TILE, sizeof columns);
        for (long k = 0; k < count; ++k)
#pragma GCC unroll 16
          for (int n = 0; n < TILE; ++n) columns[n] += to[k * TILE + n];
        __builtin_memcpy(biases + tile * TILE, columns, sizeof columns);
      }
    }
    for (long panel = 0; panel < wide; ++panel) {
      const long column = left + panel * COLUMNS;
      copy_depths<COLUMNS>(p.x + m * p.K + column, nullptr, p.K, count, right - column, x);
      for (long tile = 0; tile < tiles; ++tile) {
        const long some = ahead - expected < share ? ahead - expected : share, next = m + count + expected;
        expect_rows<0>(p.x + next * p.K + left, some, p.K, right - left);
        expect_rows<0>(p.grad + next * p.N + top, some, p.N, bottom - top);
        if (p.positive) expect_rows<0>(p.positive + next * p.N + top, some, p.N, bottom - top);
        expected += some;
        multiply<float, 1, TILE, true>(grads + tile * DEPTHS * TILE, 0, x, count,
                                       sums + (panel * TILES + tile) * TILE * COLUMNS);
      }
    }
  }
  for (long n = top; n < bottom; ++n) {
    const long tile = (n - top) / TILE, row = (n - top) % TILE;
    for (long panel = 0; panel < wide; ++panel) {
      const float* from = sums + ((panel * TILES + tile) * TILE + row) * COLUMNS;
      float* to = p.grad_weight + n * p.K + left + panel * COLUMNS;
      const long columns = right - left - panel * COLUMNS;
      for (int v = 0; v < VECTORS && columns >= COLUMNS; ++v)
        F::store(to + v * WIDTH, p.add ? F::load(to + v * WIDTH) + F::load(from + v * WIDTH) : F::load(from + v * WIDTH));
      for (long k = 0; k < columns && columns < COLUMNS; ++k) to[k] = p.add ? to[k] + from[k] : from[k];
    }
    if (left == 0 && p.grad_bias) p.grad_bias[n] = biases[n - top];
  }
}

void weight_gradient(const WeightGradient& p, void* memory, long begin, long end) {
  const long tiles = up(p.N, TILE);
  while (begin < end) {
    const long stretch = begin / tiles, first = begin % tiles;
    long last = first + (end - begin) < tiles ? first + (end - begin) : tiles;
    if (last > first + TILES) last = first + TILES;
    const long left = stretch * STRETCH, right = p.K < left + STRETCH ? p.K : left + STRETCH;
    weight_gradient_part(p, first * TILE, last * TILE < p.N ? last * TILE : p.N, left, right, static_cast<float*>(memory));
    begin += last - first;
  }
}

#endif

}  // namespace

#define LAYERS(T)                                                                                                     \
  TILE, Layers<T>::packed_bytes, Layers<T>::panels, Layers<T>::pack, Layers<T>::linear_bytes, Layers<T>::linear,         \
      Layers<T>::feed_forward_bytes, Layers<T>::feed_forward
#ifdef BFLOAT16_PRODUCTS
const Products bfloat16_products = {LAYERS(BFloat16), nullptr, nullptr, nullptr};
#else
const Products float32_products = {LAYERS(float), weight_gradient_tasks, weight_gradient_bytes, weight_gradient};
#endif

}  // namespace ISA
}  // namespace leandetr
