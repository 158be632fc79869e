// 3x3 convolutions on the CPU by Winograd's method, F(4x4, 3x3) (Lavin and Gray, 2016), for one instruction set. Included
// by kernels_*.cpp; see vectors.h.
//
// Squares of 4x4 answers are read off squares of 6x6 pixels: both are transformed so that the convolution is 36 products
// of a pixel's channels with weights, a quarter of the multiplications. A block of squares goes through input transform,
// products (product_kernels.h) and output transform while it is in a core's cache. Weights are transformed in every call,
// since who kept them would have to know when they change.

#include "convolution.h"
#include "product_kernels.h"

namespace leandetr {
namespace ISA {
namespace {

constexpr int OUT = 4, IN = OUT + 2, PLACES = IN * IN;
constexpr long SQUARES_BYTES = 640 << 10;  // of the squares that a thread works on
constexpr long LEAST_SQUARES = 2 * TILE;   // for which it is worth to read all weights
constexpr long PACKED_TOGETHER = 16;       // channels

// Transforms of the pixels, of the answers and of the weights, along one side.
INLINE void transform_pixels(const Floats (&d)[IN], Floats (&t)[IN]) {
  const Floats a = d[4] - d[2] * 4.0f, b = d[3] - d[1] * 4.0f, c = d[4] - d[2], e = (d[3] - d[1]) * 2.0f;
  t[0] = d[0] * 4.0f - d[2] * 5.0f + d[4];
  t[1] = a + b;
  t[2] = a - b;
  t[3] = c + e;
  t[4] = c - e;
  t[5] = d[1] * 4.0f - d[3] * 5.0f + d[5];
}
INLINE void transform_answers(const Floats (&m)[IN], Floats (&y)[OUT]) {
  const Floats a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
  y[0] = m[0] + a + c;
  y[1] = b + d * 2.0f;
  y[2] = a + c * 4.0f;
  y[3] = b + d * 8.0f + m[5];
}
INLINE void transform_weights(const Floats (&g)[3], Floats (&u)[IN]) {
  const Floats a = (g[0] + g[2]) * (-1.0f / 6), b = g[1] * (1.0f / 6);
  const Floats c = g[0] * (1.0f / 24) + g[2] * (1.0f / 6), d = g[1] * (1.0f / 12);
  u[0] = g[0] * 0.25f;
  u[1] = a - b;
  u[2] = a + b;
  u[3] = c + d;
  u[4] = c - d;
  u[5] = g[2];
}

// The transforms of answers and of weights the other way, for gradients.
INLINE void transform_gradients(const Floats (&y)[OUT], Floats (&u)[IN]) {
  const Floats a = y[0] + y[2], b = y[1] + y[3], c = y[0] + y[2] * 4.0f, d = (y[1] + y[3] * 4.0f) * 2.0f;
  u[0] = y[0];
  u[1] = a + b;
  u[2] = a - b;
  u[3] = c + d;
  u[4] = c - d;
  u[5] = y[3];
}
INLINE void transform_sums(const Floats (&u)[IN], Floats (&g)[3]) {
  const Floats a = (u[1] + u[2]) * (-1.0f / 6), b = u[3] + u[4];
  g[0] = u[0] * 0.25f + a + b * (1.0f / 24);
  g[1] = (u[2] - u[1]) * (1.0f / 6) + (u[3] - u[4]) * (1.0f / 12);
  g[2] = a + b * (1.0f / 6) + u[5];
}

bool serves(long C, long O) { return C % WIDTH == 0 && O % COLUMNS == 0; }
// From one place's weights of a panel to the next one's; they should not crowd the same cache lines.
long place_step(long C) { return C * COLUMNS + 16; }
long convolution_panels(long O) { return O / COLUMNS; }
long convolution_packed_bytes(long C) { return PLACES * place_step(C) * sizeof(float); }
long pack_tasks(long C) { return up(C, PACKED_TOGETHER); }

// -> (panel, place, channel, COLUMNS)
void pack_weights(const float* weight, long C, long first, float* packed, long begin, long end) {
  const long parts = pack_tasks(C);
  for (long task = begin; task < end; ++task) {
    const long panel = task / parts, start = task % parts * PACKED_TOGETHER;
    for (long c = start; c < C && c < start + PACKED_TOGETHER; c += WIDTH)
      for (int v = 0; v < VECTORS; ++v) {
        const float* from = weight + (panel * COLUMNS + v * WIDTH) * 9 * C + c;
        float* to = packed + (panel - first) * PLACES * place_step(C) + c * COLUMNS + v * WIDTH;
        Floats taps[9][WIDTH];  // for every channel its weights of WIDTH answers
        for (int tap = 0; tap < 9; ++tap) {
          for (int o = 0; o < WIDTH; ++o) taps[tap][o] = F::load(from + (o * 9 + tap) * C);
          transpose(taps[tap]);
        }
        for (int channel = 0; channel < WIDTH; ++channel, to += COLUMNS) {
          Floats half[3][IN];
          for (int x = 0; x < 3; ++x) {
            const Floats column[3] = {taps[x][channel], taps[3 + x][channel], taps[6 + x][channel]};
            transform_weights(column, half[x]);
          }
          for (int i = 0; i < IN; ++i) {
            const Floats row[3] = {half[0][i], half[1][i], half[2][i]};
            Floats whole[IN];
            transform_weights(row, whole);
            for (int j = 0; j < IN; ++j) F::store(to + (i * IN + j) * place_step(C), whole[j]);
          }
        }
      }
  }
}

// The squares of all images: image by image, row by row.
struct Squares {
  long down, across, count;
  template <typename Problem>
  INLINE explicit Squares(const Problem& p)
      : down(up(p.H, OUT)), across(up(p.W, OUT)), count(p.N * down * across) {}
};
struct Square {
  long image, top, left;
  INLINE Square(const Squares& all, long index) {
    image = index / (all.down * all.across);
    top = index / all.across % all.down * OUT;
    left = index % all.across * OUT;
  }
};

// A square of maps (H, W, C), transformed: of channels from c on, its places go to at(c), `place` numbers apart.
template <typename T, typename At>
INLINE void read_square(const T* maps, long H, long W, long C, const Square& s, long place, const At& at) {
  const T* image = maps + s.image * H * W * C;
  const T* from[PLACES];
  for (int i = 0; i < IN; ++i)
    for (int j = 0; j < IN; ++j) {
      const long y = s.top + i - 1, x = s.left + j - 1;
      from[i * IN + j] = y >= 0 && y < H && x >= 0 && x < W ? image + (y * W + x) * C : nullptr;
    }
  for (long c = 0; c < C; c += WIDTH) {
    float* to = at(c);
    Floats half[IN][IN];
#pragma GCC unroll 6
    for (int j = 0; j < IN; ++j) {
      Floats column[IN];
#pragma GCC unroll 6
      for (int i = 0; i < IN; ++i)
        column[i] = from[i * IN + j] ? Pack<T, float, WIDTH>::load(from[i * IN + j] + c) : Floats{};
      transform_pixels(column, half[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < IN; ++i) {
      const Floats row[IN] = {half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]};
      Floats whole[IN];
      transform_pixels(row, whole);
#pragma GCC unroll 6
      for (int j = 0; j < IN; ++j) F::store(to + (i * IN + j) * place, whole[j]);
    }
  }
}

// The same of a square of gradients of answers (H, W, O).
INLINE void read_gradients(const float* maps, long H, long W, long O, const Square& s, long place, float* to) {
  const float* from[OUT * OUT];
  for (int i = 0; i < OUT; ++i)
    for (int j = 0; j < OUT; ++j) {
      const long y = s.top + i, x = s.left + j;
      from[i * OUT + j] = y < H && x < W ? maps + ((s.image * H + y) * W + x) * O : nullptr;
    }
  for (long o = 0; o < O; o += WIDTH) {
    Floats half[OUT][IN];
#pragma GCC unroll 4
    for (int j = 0; j < OUT; ++j) {
      Floats column[OUT];
#pragma GCC unroll 4
      for (int i = 0; i < OUT; ++i) column[i] = from[i * OUT + j] ? F::load(from[i * OUT + j] + o) : Floats{};
      transform_gradients(column, half[j]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < IN; ++i) {
      const Floats row[OUT] = {half[0][i], half[1][i], half[2][i], half[3][i]};
      Floats whole[IN];
      transform_gradients(row, whole);
#pragma GCC unroll 6
      for (int j = 0; j < IN; ++j) F::store(to + (i * IN + j) * place + o, whole[j]);
    }
  }
}

// T: of the maps. STEP: from one square's channels to the next one's; a product's rows should not crowd the same cache
// lines.
template <typename T, long STEP>
struct Winograd {
  typedef Pack<T, float, WIDTH> P;

  static long chunks(const Convolution& p) { return up(p.C, DEPTH); }
  static long pixel_numbers(const Convolution& p) { return PLACES * chunks(p) * STEP; }  // of a square
  static long numbers(const Convolution& p) { return pixel_numbers(p) + PLACES * COLUMNS; }
  static long squares(const Convolution& p) {
    const long fit = SQUARES_BYTES / (numbers(p) * (long)sizeof(float)) / TILE * TILE;
    const long all = up(Squares(p).count, TILE) * TILE, wanted = fit < LEAST_SQUARES ? LEAST_SQUARES : fit;
    return wanted < all ? wanted : all;
  }
  static long bytes(const Convolution& p) { return squares(p) * numbers(p) * sizeof(float); }

  // -> pixels (place, chunk, square, STEP)
  static void read(const Convolution& p, const Square& s, long square, long rows, float* pixels) {
    read_square(static_cast<const T*>(p.x), p.H, p.W, p.C, s, chunks(p) * rows * STEP, [&](long c) INLINE_LAMBDA {
      return pixels + (c / DEPTH * rows + square) * STEP + c % DEPTH;
    });
  }

  // A square of sums (place, squares, COLUMNS) -> y.
  template <Activation ACTIVATION>
  static void write(const Convolution& p, const Square& s, long square, long rows, long panel, const float* sums) {
    for (int v = 0; v < VECTORS; ++v) {
      const long o = panel * COLUMNS + v * WIDTH;
      const Floats shift = F::load(p.bias + o);
      Floats half[IN][OUT];
#pragma GCC unroll 6
      for (int j = 0; j < IN; ++j) {
        Floats column[IN];
#pragma GCC unroll 6
        for (int i = 0; i < IN; ++i) column[i] = F::load(sums + ((i * IN + j) * rows + square) * COLUMNS + v * WIDTH);
        transform_answers(column, half[j]);
      }
      for (int i = 0; i < OUT && s.top + i < p.H; ++i) {
        const Floats row[IN] = {half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]};
        Floats answer[OUT];
        transform_answers(row, answer);
        for (int j = 0; j < OUT && s.left + j < p.W; ++j) {
          const long at = ((s.image * p.H + s.top + i) * p.W + s.left + j) * p.O + o;
          Floats y = answer[j] + shift;
          if (p.residual) y += P::load(static_cast<const T*>(p.residual) + at);
          P::store(static_cast<T*>(p.y) + at, activated<ACTIVATION>(y, {p.scale, p.shift}));
        }
      }
    }
  }

  template <Activation ACTIVATION>
  static void convolve(const Convolution& p, void* memory, long begin, long end) {
    const Squares all(p);
    const long rows = squares(p), last = end * TILE < all.count ? end * TILE : all.count;
    float* pixels = static_cast<float*>(memory);
    float* sums = pixels + rows * pixel_numbers(p);
    for (long first = begin * TILE; first < last; first += rows) {
      const long count = last - first < rows ? last - first : rows;
      for (long square = 0; square < count; ++square) read(p, Square(all, first + square), square, rows, pixels);
      for (long panel = p.first; panel < p.last; ++panel) {
        for (long place = 0; place < PLACES; ++place) {
          const float* weight = p.weight + ((panel - p.first) * PLACES + place) * place_step(p.C);
          for (long square = 0; square < count; square += TILE)
            multiply<float, STEP, 1, false>(pixels + (place * chunks(p) * rows + square) * STEP, rows * STEP, weight, p.C,
                                            sums + (place * rows + square) * COLUMNS);
        }
        for (long square = 0; square < count; ++square)
          write<ACTIVATION>(p, Square(all, first + square), square, rows, panel, sums);
      }
    }
  }

  static void convolve(const Convolution& p, void* memory, long begin, long end) {
    switch (p.activation) {
      case Activation::relu: return convolve<Activation::relu>(p, memory, begin, end);
      case Activation::silu: return convolve<Activation::silu>(p, memory, begin, end);
      case Activation::scaled_relu: return convolve<Activation::scaled_relu>(p, memory, begin, end);
      default: return convolve<Activation::none>(p, memory, begin, end);
    }
  }
};

#define CHOOSE_STEP(T, member, ...)                             \
  if (p.C <= 64) return Winograd<T, 80>::member(__VA_ARGS__);   \
  if (p.C <= 128) return Winograd<T, 144>::member(__VA_ARGS__); \
  return Winograd<T, ROW>::member(__VA_ARGS__);

template <typename T>
void convolve_maps(const Convolution& p, void* memory, long begin, long end) {
  CHOOSE_STEP(T, convolve, p, memory, begin, end)
}

long convolution_tasks(const Convolution& p) { return up(Squares(p).count, TILE); }
long convolution_bytes(const Convolution& p) { CHOOSE_STEP(float, bytes, p) }
void convolve(const Convolution& p, void* memory, long begin, long end) {
  if (p.is_float)
    convolve_maps<float>(p, memory, begin, end);
  else
    convolve_maps<BFloat16>(p, memory, begin, end);
}

long gradient_squares(const ConvolutionGradient& p) { return Squares(p).count; }

void transform_squares(const ConvolutionGradient& p, long first, long count, float* grads, float* pixels, long begin,
                       long end) {
  const Squares all(p);
  for (long square = begin; square < end; ++square) {
    const Square s(all, first + square);
    read_square(p.x, p.H, p.W, p.C, s, count * p.C, [&](long c) INLINE_LAMBDA { return pixels + square * p.C + c; });
    read_gradients(p.grad, p.H, p.W, p.O, s, count * p.O, grads + square * p.O);
  }
}

void transform_back(const ConvolutionGradient& p, const float* sums, long begin, long end) {
  for (long o = begin; o < end; ++o)
    for (long c = 0; c < p.C; c += WIDTH) {
      Floats half[IN][3];
      for (int j = 0; j < IN; ++j) {
        Floats column[IN];
        for (int i = 0; i < IN; ++i) column[i] = F::load(sums + ((i * IN + j) * p.O + o) * p.C + c);
        transform_sums(column, half[j]);
      }
      for (int i = 0; i < 3; ++i) {
        const Floats row[IN] = {half[0][i], half[1][i], half[2][i], half[3][i], half[4][i], half[5][i]};
        Floats whole[3];
        transform_sums(row, whole);
        for (int j = 0; j < 3; ++j) F::store(p.weight + ((o * 3 + i) * 3 + j) * p.C + c, whole[j]);
      }
    }
}

}  // namespace

const Convolutions convolutions = {serves,           convolution_panels, convolution_packed_bytes, pack_tasks,
                                   pack_weights,     convolution_tasks,  convolution_bytes,        convolve,
                                   PLACES,           gradient_squares,   transform_squares,        transform_back};

}  // namespace ISA
}  // namespace leandetr
