// Deformable attention on the CPU, for one instruction set. Included by kernels_*.cpp; see vectors.h.
//
// Layouts: value (N, S, M, D), locations (N, Q, M, K, 2), weights (N, Q, M, K), query and answer (N, Q, M, D), where
// K = levels * points. One head of one query takes K samples; a sample is a weighted sum of four corners of D numbers.
//
// Work is ordered by image, then head, then query. A thread packs the rows of its head side by side, in the type that
// accumulates, so that all its queries read 1/M of the values, which nearly fits a core's cache, and gradients are summed
// without conflicts and without rounding in between; a few queries read the rows where they are. Every sample's address
// and weight arithmetic is done first, K samples side by side; what remains is a loop over 4 * K rows of D numbers.

#include "vectors.h"

namespace leandetr {
namespace ISA {
namespace {

// ---------------------------------------------------------------------------------------------------------- samples

// Where the K samples of one head of one query are, corner by corner: 0 and 1 differ in x, 0 and 2 in y.
template <typename A>
struct Samples {
  int offset[4][MAX_SAMPLES];    // of a corner's row, in numbers from the head's first row; -D outside the map
  A share[4][MAX_SAMPLES];       // of the corner in the sample; 0 outside the map
  A dx[4][MAX_SAMPLES];          // derivative of the share by x, in units of the map's width; only for gradients
  A dy[4][MAX_SAMPLES];
};

// a * b - c, rounded once, so that its sign is the true one.
#if WIDTH > 4 || defined(__FMA__) || defined(__ARM_FEATURE_FMA)  // one instruction, made by -ffp-contract=fast
template <typename Vector>
INLINE Vector multiply_subtract(Vector a, Vector b, Vector c) {
  return a * b - c;
}
#else
INLINE Types<float, 4>::Vector multiply_subtract(Types<float, 4>::Vector a, Types<float, 4>::Vector b,
                                                 Types<float, 4>::Vector c) {
  typedef Types<double, 4>::Vector Wide;  // holds the product whole
  const Wide exact = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide) - __builtin_convertvector(c, Wide);
  return __builtin_convertvector(exact, Types<float, 4>::Vector);
}
INLINE Types<double, 4>::Vector multiply_subtract(Types<double, 4>::Vector a, Types<double, 4>::Vector b,
                                                  Types<double, 4>::Vector c) {
  for (int i = 0; i < 4; ++i) a[i] = __builtin_fma(a[i], b[i], -c[i]);
  return a;
}
#endif

// Along one side of a map: the pixels that samples lie between, and the shares of both, which are 0 outside the map.
template <typename A, int W>
struct Between {
  typedef typename Types<A, W>::Vector Vector;
  typedef typename Types<A, W>::Integers Integers;
  typedef typename Types<A, W>::Offsets Offsets;
  Offsets first, has_first, has_second;  // the second is first + 1; has: all bits where it lies on the map
  Vector share_of_first, share_of_second;

  // A place that is not a number, or far away, is outside like any other.
  INLINE Between(Vector place, Offsets size, Vector length) {
    const Vector x = place * length - (A)0.5, zero = {};
    const Integers near = (x >= (A)-1) & (x <= length);
    // The floor, or one more where a sum was rounded up to a whole number: the rest tells.
    first = __builtin_convertvector((near ? x : zero - (A)2) + (A)1, Offsets) - 1;
    Vector rest = multiply_subtract(place, length, __builtin_convertvector(first, Vector) + (A)0.5);
    const Integers below = rest < (A)0;
    first += __builtin_convertvector(below, Offsets);
    rest = below ? rest + (A)1 : rest;
    has_first = (first >= 0) & (first < size);
    has_second = (first >= -1) & (first < size - 1);
    share_of_first = only(has_first, (A)1 - rest);
    share_of_second = only(has_second, rest);
  }

  // v where the bits are set, else 0.
  static INLINE Vector only(Offsets where, Vector v) {
    return (Vector)(__builtin_convertvector(where, Integers) & (Integers)v);
  }
};

// W samples at a time; places beyond K are filled with anything. Rows are `row` numbers apart.
template <typename A, int W, bool GRADIENT>
INLINE void locate(const Problem& p, const A* locations, Samples<A>& s, int row) {
  typedef Between<A, W> B;
  typedef typename B::Vector Vector;
  typedef typename B::Offsets Offsets;
  typedef Pack<A, A, W> P;
  const auto ints = [](const int* from) {
    Offsets v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
  };
  A padded[2 * MAX_SAMPLES];
  if (p.K % W) {
    __builtin_memcpy(padded, locations, 2 * p.K * sizeof(A));
    locations = padded;
  }
  const Offsets outside = Offsets{} - (int)p.D;
  for (int k = 0; k < p.K; k += W) {
    const Offsets width = ints(p.width + k), height = ints(p.height + k);
    const Vector w = __builtin_convertvector(width, Vector), h = __builtin_convertvector(height, Vector);
    const Vector a = P::load(locations + 2 * k), b = P::load(locations + 2 * k + W);
    const B x(Halves<A, W>::even(a, b), width, w), y(Halves<A, W>::odd(a, b), height, h);
    const Offsets first = (ints(p.start + k) + y.first * width + x.first) * row, down = width * row;
    const Offsets offset[4] = {first, first + row, first + down, first + down + row};
    const Offsets on_map[4] = {x.has_first & y.has_first, x.has_second & y.has_first, x.has_first & y.has_second,
                               x.has_second & y.has_second};
    for (int c = 0; c < 4; ++c) {
      const Offsets chosen = on_map[c] ? offset[c] : outside;
      __builtin_memcpy(s.offset[c] + k, &chosen, sizeof chosen);
    }
    const Vector wx0 = x.share_of_first, wx1 = x.share_of_second, wy0 = y.share_of_first, wy1 = y.share_of_second;
    P::store(s.share[0] + k, wx0 * wy0);
    P::store(s.share[1] + k, wx1 * wy0);
    P::store(s.share[2] + k, wx0 * wy1);
    P::store(s.share[3] + k, wx1 * wy1);
    if (GRADIENT) {
      P::store(s.dx[0] + k, B::only(x.has_first, wy0 * -w));
      P::store(s.dx[1] + k, B::only(x.has_second, wy0 * w));
      P::store(s.dx[2] + k, B::only(x.has_first, wy1 * -w));
      P::store(s.dx[3] + k, B::only(x.has_second, wy1 * w));
      P::store(s.dy[0] + k, B::only(y.has_first, wx0 * -h));
      P::store(s.dy[1] + k, B::only(y.has_first, wx1 * -h));
      P::store(s.dy[2] + k, B::only(y.has_second, wx0 * h));
      P::store(s.dy[3] + k, B::only(y.has_second, wx1 * h));
    }
  }
}

// Where rows are read: at(offset) is a row, or D zeros for an offset below 0. A share of 0 would not do for what lies
// outside the map: it makes no number of infinity.
template <typename A>
struct PackedRows {  // D zeros, and then the rows
  typedef A Number;
  const A* rows;
  INLINE const A* at(int offset) const { return rows + offset; }
};
template <typename T>
struct RowsInPlace {
  typedef T Number;
  const T *rows, *zeros;
  INLINE const T* at(int offset) const { return offset < 0 ? zeros : rows + offset; }
};

// ------------------------------------------------------------------------------------------- one head of one query

// Loops over the 4 * K rows. VECTORS * W of the D numbers are held in registers at a time.
template <typename A, int W, int VECTORS>
struct Rows {
  typedef Pack<A, A, W> P;
  typedef typename P::Vector Vector;
  static constexpr int STEP = VECTORS * W;

  // Numbers d to d + STEP of a vector.
  template <typename Y>
  static INLINE Vectors<A, W, VECTORS> piece(const Y* vector, int d) {
    Vectors<A, W, VECTORS> v;
    for (int i = 0; i < VECTORS; ++i) v.of[i] = Pack<Y, A, W>::load(vector + d + i * W);
    return v;
  }

  // What a loop over d adds up: the first time there is nothing yet.
  static INLINE void add(Vector v, A* to, int d) { P::store(to, d ? P::load(to) + v : v); }

  // answer = sum of factor[c][k] * row; rows and answer in any type
  template <typename Table, typename Y>
  static INLINE void gather(const Problem& p, const Table& rows, const Samples<A>& s, const A (*factor)[MAX_SAMPLES],
                            Y* answer) {
    typedef typename Table::Number X;
    for (int d = 0; d < p.D; d += STEP) {
      Vector even[VECTORS] = {}, odd[VECTORS] = {};
      for (int k = 0; k < p.K; ++k) {
        for (int c = 0; c < 4; c += 2) {
          const X *a = rows.at(s.offset[c][k]) + d, *b = rows.at(s.offset[c + 1][k]) + d;
          const A fa = factor[c][k], fb = factor[c + 1][k];
          for (int i = 0; i < VECTORS; ++i) even[i] += fa * Pack<X, A, W>::load(a + i * W);
          for (int i = 0; i < VECTORS; ++i) odd[i] += fb * Pack<X, A, W>::load(b + i * W);
        }
      }
      for (int i = 0; i < VECTORS; ++i) Pack<Y, A, W>::store(answer + d + i * W, even[i] + odd[i]);
    }
  }

  // samples[k] = the sampled row, products[n][k] = vectors[n] . samples[k]; there is room for W more products, which are
  // 0. Few instructions read rows, since processors guess from each what it will read next: first a loop over samples,
  // then their products.
  template <int N, typename Table, typename Y>
  static INLINE void sample_and_multiply(const Problem& p, const Table& rows, const Samples<A>& s,
                                         const Y* const (&vectors)[N], A* samples, A* const (&products)[N]) {
    typedef typename Table::Number X;
    const long width = p.D;  // which compilers would read again after every store
    for (int d = 0; d < width; d += STEP) {
      for (int k = 0; k < p.K; ++k) {
        const X *c0 = rows.at(s.offset[0][k]) + d, *c1 = rows.at(s.offset[1][k]) + d;
        const X *c2 = rows.at(s.offset[2][k]) + d, *c3 = rows.at(s.offset[3][k]) + d;
        const A f0 = s.share[0][k], f1 = s.share[1][k], f2 = s.share[2][k], f3 = s.share[3][k];
        for (int i = 0; i < VECTORS; ++i) {
          const Vector v = (f0 * Pack<X, A, W>::load(c0 + i * W) + f1 * Pack<X, A, W>::load(c1 + i * W)) +
                           (f2 * Pack<X, A, W>::load(c2 + i * W) + f3 * Pack<X, A, W>::load(c3 + i * W));
          P::store(samples + k * width + d + i * W, v);
        }
      }
      Vectors<A, W, VECTORS> r[N];
      for (int n = 0; n < N; ++n) r[n] = piece(vectors[n], d);
      const auto product = [&](int k) INLINE_LAMBDA {
        Vectors<A, W, N> sums;
        for (int i = 0; i < VECTORS; ++i) {
          const Vector v = P::load(samples + k * width + d + i * W);
          for (int n = 0; n < N; ++n) sums.of[n] = i ? sums.of[n] + r[n].of[i] * v : r[n].of[i] * v;
        }
        return sums;
      };
      for (int k = 0; k < p.K; k += W) {
        const auto sums = sums_of<A, W, N>(product, k, p.K);
        for (int n = 0; n < N; ++n) add(sums.of[n], products[n] + k, d);
      }
    }
  }

  // products[c][k] = v . row and, in the rows of gradients, row += factor[c][k] * v, where vector(k, d) gives numbers d
  // to d + STEP of v. There is room for W more products, which are anything.
  template <typename Pieces>
  static INLINE void multiply_and_scatter(const Problem& p, const A* rows, A* gradients, const Samples<A>& s,
                                          const A (*factor)[MAX_SAMPLES], const Pieces& vector,
                                          A (*products)[MAX_SAMPLES]) {
    typedef Halves<A, W> H;
    const long width = p.D;
    A parts[MAX_SAMPLES * W];  // of each sample, W / 4 times: sums of every (W / 4)-th number, for its four corners
    for (int d = 0; d < width; d += STEP) {
      for (int k = 0; k < p.K; ++k) {
        const auto v = vector(k, d);
        Vector sums[4];
        for (int c = 0; c < 4; ++c) {
          const A* row = rows + s.offset[c][k] + d;
          A* gradient = gradients + s.offset[c][k] + d;
          const A f = factor[c][k];
          for (int i = 0; i < VECTORS; ++i) {
            const Vector product = v.of[i] * P::load(row + i * W);
            sums[c] = i ? sums[c] + product : product;
            P::store(gradient + i * W, P::load(gradient + i * W) + f * v.of[i]);
          }
        }
        add(H::pairs(H::pairs(sums[0], sums[1]), H::pairs(sums[2], sums[3])), parts + k * W, d);
      }
    }
    for (int k = 0; k < p.K; k += W) {
      Vector whole[4];  // of W / 4 samples each: the products with corners 0, 1, 2, 3 of the first, of the second, ...
      for (int j = 0; j < 4; ++j) {
        Vector v[W / 4];
        for (int i = 0; i < W / 4; ++i) v[i] = P::load(parts + (k + j * (W / 4) + i) * W);
        whole[j] = whole_sums<A, W>(v);
      }
      const Vector low[2] = {H::even(whole[0], whole[1]), H::odd(whole[0], whole[1])};
      const Vector high[2] = {H::even(whole[2], whole[3]), H::odd(whole[2], whole[3])};
      for (int i = 0; i < 2; ++i) {
        P::store(products[i] + k, H::even(low[i], high[i]));
        P::store(products[i + 2] + k, H::odd(low[i], high[i]));
      }
    }
  }

  // answer = factor * sum of weights[k] * samples[k]
  template <typename Y>
  static INLINE void combine(const Problem& p, const A* samples, const A* weights, A factor, Y* answer) {
    for (int d = 0; d < p.D; d += STEP) {
      Vector even[VECTORS] = {}, odd[VECTORS] = {};
      for (int k = 0; k < p.K; k += 2) {
        const A *a = samples + k * p.D + d, *b = a + p.D;
        for (int i = 0; i < VECTORS; ++i) even[i] += weights[k] * P::load(a + i * W);
        if (k + 1 == p.K) break;
        for (int i = 0; i < VECTORS; ++i) odd[i] += weights[k + 1] * P::load(b + i * W);
      }
      for (int i = 0; i < VECTORS; ++i) Pack<Y, A, W>::store(answer + d + i * W, (even[i] + odd[i]) * factor);
    }
  }
};

// weights = e^(scale * (weights - the largest of them)), of which there is room for W more. Returns 1 / their sum.
template <typename A, int W>
INLINE A exponentials(int count, A scale, A* weights) {
  typedef Pack<A, A, W> P;
  typedef typename P::Vector Vector;
  for (int k = count; k % W; ++k) weights[k] = -(A)__builtin_inf();
  Vector most = P::load(weights);
  for (int k = W; k < count; k += W) most = larger(most, P::load(weights + k));
  scale *= (A)1.4426950408889634;  // e^x = 2^(x / log 2)
  most = largest_of<A, W>(most) * scale;
  Vector sum = {};
  for (int k = 0; k < count; k += W) {
    const Vector v = power_of_two<W>(P::load(weights + k) * scale - most, A());
    P::store(weights + k, v);
    sum += v;
  }
  return (A)1 / sum_of<A, W>(sum)[0];
}

// From the K logits in `weights` and the gradients of the weights in `slope`: the softmax of scale * logits, and the
// gradients of the logits. There is room for W more of each; slope is 0 there.
template <typename A, int W>
INLINE void softmax_gradient(int count, A scale, A* weights, A* slope) {
  typedef Pack<A, A, W> P;
  typedef typename P::Vector Vector;
  const A factor = exponentials<A, W>(count, scale, weights);
  Vector sum = {};
  for (int k = 0; k < count; k += W) sum += P::load(weights + k) * P::load(slope + k);
  const A mean = factor * sum_of<A, W>(sum)[0];
  for (int k = 0; k < count; k += W) {
    const Vector w = P::load(weights + k) * factor;
    P::store(weights + k, w);
    P::store(slope + k, w * (P::load(slope + k) - mean) * scale);
  }
}

// The sums over c of a[c][k] * b[c][k] for W k.
template <typename A, int W>
INLINE typename Types<A, W>::Vector over_corners(const A (*a)[MAX_SAMPLES], const A (*b)[MAX_SAMPLES], int k) {
  typedef Pack<A, A, W> P;
  return (P::load(a[0] + k) * P::load(b[0] + k) + P::load(a[1] + k) * P::load(b[1] + k)) +
         (P::load(a[2] + k) * P::load(b[2] + k) + P::load(a[3] + k) * P::load(b[3] + k));
}

// Gradient of the K weights, from products of the corners' rows and the gradient.
template <typename A, int W>
INLINE void weight_gradient(int count, const Samples<A>& s, const A (*products)[MAX_SAMPLES], A* grad_weights) {
  typedef Pack<A, A, W> P;
  int k = 0;
  for (; k + W <= count; k += W) P::store(grad_weights + k, over_corners<A, W>(s.share, products, k));
  if (k == count) return;
  const auto rest = over_corners<A, W>(s.share, products, k);
  for (int i = 0; k + i < count; ++i) grad_weights[k + i] = rest[i];
}

// answer[c][k] = weights[k] * share[c][k]; both may be the same
template <typename A, int W>
INLINE void weigh(int count, const A* weights, const A (*share)[MAX_SAMPLES], A (*answer)[MAX_SAMPLES]) {
  typedef Pack<A, A, W> P;
  int k = 0;
  for (; k + W <= count; k += W)
    for (int c = 0; c < 4; ++c) P::store(answer[c] + k, P::load(share[c] + k) * P::load(weights + k));
  for (; k < count; ++k)
    for (int c = 0; c < 4; ++c) answer[c][k] = share[c][k] * weights[k];
}

// Gradient of the K locations, from gradients of the corners' shares.
template <typename A, int W>
INLINE void place_gradient(int count, const Samples<A>& s, const A (*grad_share)[MAX_SAMPLES], A* grad_locations) {
  typedef Pack<A, A, W> P;
  A x[W], y[W];
  for (int k = 0; k < count; k += W) {
    P::store(x, over_corners<A, W>(s.dx, grad_share, k));
    P::store(y, over_corners<A, W>(s.dy, grad_share, k));
    for (int i = 0; i < W && k + i < count; ++i) {
      grad_locations[2 * (k + i)] = x[i];
      grad_locations[2 * (k + i) + 1] = y[i];
    }
  }
}

// --------------------------------------------------------------------------------------------------------- whole heads

// Asks for the cache lines of `count` numbers that will be needed soon. What belongs to one head lies a stride apart,
// which processors do not foresee by themselves.
template <typename X>
INLINE void expect(const X* p, long count) {
  const char* end = (const char*)(p + count);
  for (const char* line = (const char*)((unsigned long)p & ~63ul); line < end; line += 64) __builtin_prefetch(line);
}
constexpr long ROWS_AHEAD = 32;
// The same for what a later query of the head has in an array of `count` numbers per item. The rows of four queries
// fill a small first-level cache: what is asked for earlier is gone again when it is needed.
constexpr long QUERIES_AHEAD = 4;
template <typename X>
INLINE void expect_later(const Problem& p, const X* array, long item, long count) {
  expect(array + (item + QUERIES_AHEAD * p.M) * count, count);
}

// `count` numbers from one type to another, by way of A.
template <typename A, typename X, typename Y>
INLINE void convert(const X* from, Y* to, long count) {
  for (long i = 0; i < count; i += 4) Pack<Y, A, 4>::store(to + i, Pack<X, A, 4>::load(from + i));
}

// D zeros, and a head's rows side by side: its cache lines then spread over the whole cache, which a stride of M * D would
// not.
template <typename T, typename A>
void pack(const Problem& p, const T* value, long n, long m, A* rows) {
  __builtin_memset(rows - p.D, 0, p.D * sizeof(A));
  const T* from = value + (n * p.S * p.M + m) * p.D;
  const long stride = p.M * p.D;
  for (long t = 0; t < p.S; ++t) {
    expect(from + (t + ROWS_AHEAD) * stride, p.D);
    convert<A>(from + t * stride, rows + t * p.D, p.D);
  }
}
template <typename T, typename A>
void unpack(const Problem& p, const A* rows, long n, long m, T* value) {
  T* to = value + (n * p.S * p.M + m) * p.D;
  const long stride = p.M * p.D;
  for (long t = 0; t < p.S; ++t) {
    expect(to + (t + ROWS_AHEAD) * stride, p.D);
    convert<A>(rows + t * p.D, to + t * stride, p.D);
  }
}

// Whether a head's rows are read so often that packing them pays. Offsets of rows that stay where they are must fit an int.
constexpr long READS_WORTH_PACKING = 8;
INLINE bool worth_packing(const Problem& p) {
  return p.Q * p.K * 4 > READS_WORTH_PACKING * p.S || p.S * p.M * p.D > __INT_MAX__;
}

// W numbers, of which the first `left` are there and the others are 0.
template <typename T, typename A, int W>
INLINE typename Types<A, W>::Vector load_most(const T* from, int left) {
  if (left >= W) return Pack<T, A, W>::load(from);
  T some[W] = {};
  for (int i = 0; i < left; ++i) some[i] = from[i];
  return Pack<T, A, W>::load(some);
}

template <typename T, typename A, int W, int VECTORS>
struct Run {
  typedef Rows<A, W, VECTORS> R;

  // Forward kernels take several queries through each step together, so that none waits for the end of another's long
  // chain of operations, such as a softmax. More of them would need too much of the first-level cache.
  static constexpr int TOGETHER = 2;

  // What one thread needs for itself: packed heads, each behind a row for what lies outside the map, and the samples of
  // the queries at work.
  struct Scratch {
    A *first, *second, *third, *fourth, *samples;
    Scratch(const Problem& p, A* memory, int heads) {
      A** head[4] = {&first, &second, &third, &fourth};
      for (int i = 0; i < 4; ++i) {
        *head[i] = memory + p.D;
        memory += i < heads ? (p.S + 1) * p.D : 0;
      }
      samples = memory;
    }
  };
  static long size(const Problem& p, int heads) {
    return (heads * (p.S + 1) + TOGETHER * MAX_SAMPLES) * p.D;
  }

  // A head's rows where they are, and zeros at the beginning of a thread's memory.
  static INLINE RowsInPlace<T> in_place(const Problem& p, const T* value, long n, long m, A* memory) {
    __builtin_memset(memory, 0, p.D * sizeof(A));
    return {value + (n * p.S * p.M + m) * p.D, (const T*)memory};
  }

  // No gradients yet, of a packed head and of what lies outside the map.
  static INLINE void clear(const Problem& p, A* gradients) {
    __builtin_memset(gradients - p.D, 0, (p.S + 1) * p.D * sizeof(A));
  }

  // work(n, m, first, last) for the queries first <= q < last of every head in a range of (n * M + m) * Q + q.
  template <typename Work>
  static INLINE void for_each_head(const Problem& p, long begin, long end, const Work& work) {
    for (long at = begin; at < end;) {
      const long head = at / p.Q, first = at % p.Q;
      const long last = end - at < p.Q - first ? first + end - at : p.Q;
      work(head / p.M, head % p.M, first, last);
      at += last - first;
    }
  }

  // work(item, count) for the queries first <= q < last of a head, in groups of count <= TOGETHER, which are p.M apart.
  template <typename Work>
  static INLINE void in_groups(const Problem& p, long n, long m, long first, long last, const Work& work) {
    for (long q = first; q < last; q += TOGETHER)
      work((n * p.Q + q) * p.M + m, last - q < TOGETHER ? (int)(last - q) : TOGETHER);
  }

  // A head's rows, `row` numbers apart. find(item, locations, weights, places, shares) points the first two to those of an
  // item, or writes them to the last two, which they point to before and which have room for W more.
  template <typename Table, typename Find>
  static INLINE void plain_head(const Problem& p, long n, long m, long first, long last, const Table& rows, int row,
                                const Find& find, T* answer) {
    Samples<A> s[TOGETHER];
    A places[2 * (MAX_SAMPLES + W)], shares[MAX_SAMPLES + W];
    in_groups(p, n, m, first, last, [&](long group, int count) INLINE_LAMBDA {
      for (int j = 0; j < count; ++j) {
        const long item = group + j * p.M;
        const A *locations = places, *weights = shares;
        find(item, locations, weights, places, shares);
        expect_later(p, answer, item, p.D);
        locate<A, W, false>(p, locations, s[j], row);
        weigh<A, W>(p.K, weights, s[j].share, s[j].share);
      }
      for (int j = 0; j < count; ++j) R::gather(p, rows, s[j], s[j].share, answer + (group + j * p.M) * p.D);
    });
  }

  template <typename Find>
  static INLINE void plain_heads(const Problem& p, const T* value, const Find& find, T* answer, A* memory, long begin,
                                 long end) {
    const Scratch own(p, memory, 1);
    for_each_head(p, begin, end, [&](long n, long m, long first, long last) INLINE_LAMBDA {
      if (worth_packing(p)) {
        pack(p, value, n, m, own.first);
        plain_head(p, n, m, first, last, PackedRows<A>{own.first}, (int)p.D, find, answer);
      } else {
        const auto rows = in_place(p, value, n, m, memory);
        plain_head(p, n, m, first, last, rows, (int)(p.M * p.D), find, answer);
      }
    });
  }

  static void plain(const Problem& p, const T* value, const A* locations, const A* weights, T* answer, A* memory,
                    long begin, long end) {
    const auto find = [&](long item, const A*& places, const A*& shares, A*, A*) INLINE_LAMBDA {
      expect_later(p, locations, item, p.K * 2);
      expect_later(p, weights, item, p.K);
      places = locations + item * p.K * 2;
      shares = weights + item * p.K;
    };
    plain_heads(p, value, find, answer, memory, begin, end);
  }

  static void asked(const Problem& p, const T* value, const Asked<T, A>& a, T* answer, A* memory, long begin, long end) {
    typedef typename R::P P;
    const auto find = [&](long item, const A*&, const A*&, A* places, A* shares) INLINE_LAMBDA {
      const T *offsets = a.offsets + item * p.K * 2, *logits = a.logits + item * p.K;
      expect_later(p, a.offsets, item, p.K * 2);
      expect_later(p, a.logits, item, p.K);
      const long query = item / p.M * p.K * 2;
      for (int i = 0; i < 2 * p.K; i += W) {
        const int left = 2 * p.K - i;
        auto by = load_most<T, A, W>(offsets + i, left) / load_most<A, A, W>(a.unit + i, left);
        if (a.extent) by *= load_most<A, A, W>(a.extent + query + i, left);
        P::store(places + i, load_most<A, A, W>(a.center + query + i, left) + by);
      }
      for (int k = 0; k < p.K; k += W) P::store(shares + k, load_most<T, A, W>(logits + k, p.K - k));
      const A factor = exponentials<A, W>(p.K, (A)1, shares);
      for (int k = 0; k < p.K; k += W) P::store(shares + k, P::load(shares + k) * factor);
    };
    plain_heads(p, value, find, answer, memory, begin, end);
  }

  // The rows of a head's keys and values, `row` numbers apart.
  template <typename Table>
  static INLINE void aware_head(const Problem& p, long n, long m, long first, long last, const Table& keys,
                                const Table& values, int row, const Scratch& own, const T* query, const A* locations,
                                T* answer) {
    const A scale = (A)1 / (A)__builtin_sqrt((double)p.D);
    const long size = p.K * p.D;
    Samples<A> s[TOGETHER];
    A weights[TOGETHER][MAX_SAMPLES + W], factor[TOGETHER];
    in_groups(p, n, m, first, last, [&](long group, int count) INLINE_LAMBDA {
      for (int j = 0; j < count; ++j) {
        const long item = group + j * p.M;
        expect_later(p, locations, item, p.K * 2);
        expect_later(p, query, item, p.D);
        expect_later(p, answer, item, p.D);
        locate<A, W, false>(p, locations + item * p.K * 2, s[j], row);
      }
      for (int j = 0; j < count; ++j)
        R::template sample_and_multiply<1>(p, keys, s[j], {query + (group + j * p.M) * p.D}, own.samples + j * size,
                                           {weights[j]});
      for (int j = 0; j < count; ++j) factor[j] = exponentials<A, W>(p.K, scale, weights[j]);
      for (int j = 0; j < count; ++j) {
        T* to = answer + (group + j * p.M) * p.D;
        if (keys.rows == values.rows) {
          R::combine(p, own.samples + j * size, weights[j], factor[j], to);
        } else {
          for (int k = 0; k < p.K; ++k) weights[j][k] *= factor[j];
          weigh<A, W>(p.K, weights[j], s[j].share, s[j].share);
          R::gather(p, values, s[j], s[j].share, to);
        }
      }
    });
  }

  static void aware(const Problem& p, const T* query, const T* key, const T* value, const A* locations, T* answer,
                    A* memory, long begin, long end) {
    const bool same = key == value;
    const Scratch own(p, memory, same ? 1 : 2);
    for_each_head(p, begin, end, [&](long n, long m, long first, long last) INLINE_LAMBDA {
      if (worth_packing(p)) {
        const A* values = same ? own.first : own.second;
        pack(p, key, n, m, own.first);
        if (!same) pack(p, value, n, m, own.second);
        aware_head(p, n, m, first, last, PackedRows<A>{own.first}, PackedRows<A>{values}, (int)p.D, own, query,
                   locations, answer);
      } else {
        const auto keys = in_place(p, key, n, m, memory), values = in_place(p, value, n, m, memory);
        aware_head(p, n, m, first, last, keys, values, (int)(p.M * p.D), own, query, locations, answer);
      }
    });
  }

  static void plain_backward(const Problem& p, const T* grad, const T* value, const A* locations, const A* weights,
                             T* grad_value, A* grad_locations, A* grad_weights, A* memory, long begin, long end) {
    const Scratch own(p, memory, 2);
    Samples<A> s;
    A products[4][MAX_SAMPLES], factor[4][MAX_SAMPLES];
    for (long head = begin; head < end; ++head) {
      const long n = head / p.M, m = head % p.M;
      pack(p, value, n, m, own.first);
      clear(p, own.second);
      for (long q = 0; q < p.Q; ++q) {
        const long item = (n * p.Q + q) * p.M + m;
        const A* w = weights + item * p.K;
        expect_later(p, locations, item, p.K * 2);
        expect_later(p, weights, item, p.K);
        expect_later(p, grad, item, p.D);
        expect_later(p, grad_locations, item, p.K * 2);
        expect_later(p, grad_weights, item, p.K);
        locate<A, W, true>(p, locations + item * p.K * 2, s, (int)p.D);
        weigh<A, W>(p.K, w, s.share, factor);
        const auto gradient = [&](int, int d) INLINE_LAMBDA { return R::piece(grad + item * p.D, d); };
        R::multiply_and_scatter(p, own.first, own.second, s, factor, gradient, products);
        weight_gradient<A, W>(p.K, s, products, grad_weights + item * p.K);
        weigh<A, W>(p.K, w, products, products);
        place_gradient<A, W>(p.K, s, products, grad_locations + item * p.K * 2);
      }
      unpack(p, own.second, n, m, grad_value);
    }
  }

  static void aware_backward(const Problem& p, const T* grad, const T* query, const T* key, const T* value,
                             const A* locations, T* grad_query, T* grad_key, T* grad_value, A* grad_locations,
                             A* memory, long begin, long end) {
    const bool same = key == value;
    const A scale = (A)1 / (A)__builtin_sqrt((double)p.D);
    const Scratch own(p, memory, same ? 2 : 4);
    A *keys = own.first, *values = same ? keys : own.third, *grad_values = own.second, *grad_keys = own.fourth;
    Samples<A> s;
    A products[4][MAX_SAMPLES], key_products[4][MAX_SAMPLES], weights[MAX_SAMPLES + W], slope[MAX_SAMPLES + W];
    for (long head = begin; head < end; ++head) {
      const long n = head / p.M, m = head % p.M;
      pack(p, key, n, m, keys);
      clear(p, grad_values);
      if (!same) {
        pack(p, value, n, m, values);
        clear(p, grad_keys);
      }
      for (long q = 0; q < p.Q; ++q) {
        const long item = (n * p.Q + q) * p.M + m;
        expect_later(p, locations, item, p.K * 2);
        expect_later(p, query, item, p.D);
        expect_later(p, grad, item, p.D);
        expect_later(p, grad_query, item, p.D);
        expect_later(p, grad_locations, item, p.K * 2);
        const T *head_query = query + item * p.D, *head_grad = grad + item * p.D;
        locate<A, W, true>(p, locations + item * p.K * 2, s, (int)p.D);
        if (same) {
          R::template sample_and_multiply<2>(p, PackedRows<A>{keys}, s, {head_query, head_grad}, own.samples,
                                             {weights, slope});
        } else {
          R::template sample_and_multiply<1>(p, PackedRows<A>{values}, s, {head_grad}, own.samples, {slope});
          R::template sample_and_multiply<1>(p, PackedRows<A>{keys}, s, {head_query}, own.samples, {weights});
        }
        softmax_gradient<A, W>(p.K, scale, weights, slope);
        R::combine(p, own.samples, slope, (A)1, grad_query + item * p.D);
        const auto key_gradient = [&](int k, int d) INLINE_LAMBDA {
          auto v = R::piece(head_query, d);
          for (auto& x : v.of) x *= slope[k];
          return v;
        };
        const auto value_gradient = [&](int k, int d) INLINE_LAMBDA {
          auto v = R::piece(head_grad, d);
          for (auto& x : v.of) x *= weights[k];
          return v;
        };
        if (same) {
          const auto gradient = [&](int k, int d) INLINE_LAMBDA {
            auto a = key_gradient(k, d), b = value_gradient(k, d);
            for (int i = 0; i < VECTORS; ++i) a.of[i] += b.of[i];
            return a;
          };
          R::multiply_and_scatter(p, values, grad_values, s, s.share, gradient, products);
        } else {
          R::multiply_and_scatter(p, values, grad_values, s, s.share, value_gradient, products);
          R::multiply_and_scatter(p, keys, grad_keys, s, s.share, key_gradient, key_products);
          for (int c = 0; c < 4; ++c)
            for (int k = 0; k < p.K; ++k) products[c][k] += key_products[c][k];
        }
        place_gradient<A, W>(p.K, s, products, grad_locations + item * p.K * 2);
      }
      unpack(p, grad_values, n, m, grad_value);
      if (!same) unpack(p, grad_keys, n, m, grad_key);
    }
  }
};

// Calls the member of Run whose vectors fit D.
#define CHOOSE(member, ...)                                  \
  const long vectors = p.D % WIDE ? 0 : p.D / WIDE;          \
  if (vectors == 0) return Run<T, A, 4, 1>::member(__VA_ARGS__);      \
  if (vectors % 4 == 0) return Run<T, A, WIDE, 4>::member(__VA_ARGS__); \
  if (vectors % 2 == 0) return Run<T, A, WIDE, 2>::member(__VA_ARGS__); \
  return Run<T, A, WIDE, 1>::member(__VA_ARGS__);

template <typename T, typename A, int WIDE>
struct Fit {
  static long scratch(const Problem& p, int heads) { CHOOSE(size, p, heads) }
  static void plain(const Problem& p, const T* value, const A* locations, const A* weights, T* answer, A* memory,
                    long begin, long end) {
    CHOOSE(plain, p, value, locations, weights, answer, memory, begin, end)
  }
  static void asked(const Problem& p, const T* value, const Asked<T, A>& a, T* answer, A* memory, long begin, long end) {
    CHOOSE(asked, p, value, a, answer, memory, begin, end)
  }
  static void plain_backward(const Problem& p, const T* grad, const T* value, const A* locations, const A* weights,
                             T* grad_value, A* grad_locations, A* grad_weights, A* memory, long begin, long end) {
    CHOOSE(plain_backward, p, grad, value, locations, weights, grad_value, grad_locations, grad_weights, memory, begin,
           end)
  }
  static void aware(const Problem& p, const T* query, const T* key, const T* value, const A* locations, T* answer,
                    A* memory, long begin, long end) {
    CHOOSE(aware, p, query, key, value, locations, answer, memory, begin, end)
  }
  static void aware_backward(const Problem& p, const T* grad, const T* query, const T* key, const T* value,
                             const A* locations, T* grad_query, T* grad_key, T* grad_value, A* grad_locations,
                             A* memory, long begin, long end) {
    CHOOSE(aware_backward, p, grad, query, key, value, locations, grad_query, grad_key, grad_value, grad_locations,
           memory, begin, end)
  }
  static constexpr Kernels<T, A> table = {scratch, plain, asked, plain_backward, aware, aware_backward};
};

}  // namespace

const Kernels<float, float> float32_kernels = Fit<float, float, WIDTH>::table;
const Kernels<double, double> float64_kernels = Fit<double, double, 4>::table;
const Kernels<BFloat16, float> bfloat16_kernels = Fit<BFloat16, float, WIDTH>::table;
#ifdef __FLT16_MAX__
const Kernels<Float16, float> float16_kernels = Fit<Float16, float, WIDTH>::table;
#else
const Kernels<Float16, float> float16_kernels = {};
#endif

}  // namespace ISA
}  // namespace leandetr
