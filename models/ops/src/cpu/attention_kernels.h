// Dense attention on the CPU for one instruction set and type. Included by kernels_*.cpp; see vectors.h.
//
// A tile of queries is multiplied with all keys of its head, and the weights that come out with all values: both are
// products as those of linear layers (product_kernels.h). No number depends on threads, nor on other images.

#include "attention.h"
#include "product_kernels.h"

namespace leandetr {
namespace ISA {
namespace {

template <typename T>
struct Attend {
  typedef Multiply<T> X;
  typedef typename X::Unit Unit;
  static constexpr long EACH = X::EACH, WIDE = DEPTH * EACH;

  // Whole panels of keys, and what lies in a range's memory one after the other.
  static long padded(const Attention& p) { return up(p.S, COLUMNS) * COLUMNS; }
  static long line(long bytes) { return up(bytes, 64) * 64; }
  static long matrix_bytes(const Attention& p) { return line(padded(p) * p.D * sizeof(T)); }
  static long query_bytes(const Attention& p) { return up(p.D, WIDE) * TILE * ROW * sizeof(Unit); }
  static long weight_bytes(const Attention& p) { return up(padded(p), WIDE) * TILE * ROW * sizeof(Unit); }
  static long score_bytes(const Attention& p) { return padded(p) * sizeof(float); }
  static long bytes(const Attention& p) {
    return 3 * matrix_bytes(p) + query_bytes(p) + weight_bytes(p) + (TILE + 1) * score_bytes(p);
  }

  // Rows of a head -> a matrix without gaps, zeros in the rows from p.S on.
  static void gather(const Attention& p, const T* from, long step, T* to) {
    for (long s = 0; s < p.S; ++s) __builtin_memcpy(to + s * p.D, from + s * step, p.D * sizeof(T));
    __builtin_memset(to + p.S * p.D, 0, (padded(p) - p.S) * p.D * sizeof(T));
  }

  static void softmax(const Attention& p, float* scores, T* weights, float& total) {
    Floats most = F::load(scores), sums = {};
    for (long s = WIDTH; s < padded(p); s += WIDTH) most = larger(most, F::load(scores + s));
    most = largest_of<float, WIDTH>(most);
    for (long s = 0; s < padded(p); s += WIDTH) {
      const Floats e = power_of_two<WIDTH>(F::load(scores + s) - most, 0.0f);
      sums += e;
      Pack<T, float, WIDTH>::store(weights + s / WIDE * TILE * ROW * EACH + s % WIDE, e);
    }
    total = sum_of<float, WIDTH>(sums)[0];
  }

  static void attend(const Attention& p, void* memory, long begin, long end) {
    char* next = static_cast<char*>(memory);
    const auto take = [&](long bytes) {
      char* taken = next;
      next += bytes;
      return taken;
    };
    T* matrix = reinterpret_cast<T*>(take(matrix_bytes(p)));
    T* keys = reinterpret_cast<T*>(take(matrix_bytes(p)));
    T* values = reinterpret_cast<T*>(take(matrix_bytes(p)));
    T* queries = reinterpret_cast<T*>(take(query_bytes(p)));
    T* weights = reinterpret_cast<T*>(take(weight_bytes(p)));
    float* scores = reinterpret_cast<float*>(take(TILE * score_bytes(p)));
    float* shut = reinterpret_cast<float*>(take(score_bytes(p)));
    const long panels = padded(p) / COLUMNS, depth = up(p.D, EACH);
    const Floats scale = 1.44269504f / __builtin_sqrtf((float)p.D) - Floats{};  // of powers of two
    for (long task = begin; task < end; ++task) {
      const long image = task / p.H, head = task % p.H;
      const auto start = [&](const Columns& rows, long from) {
        return static_cast<const T*>(rows.rows) + image * from + head * p.D;
      };
      gather(p, start(p.key, p.key_image), p.key.step, matrix);
      pack_panels<T>(matrix, false, padded(p), p.D, keys, 0, panels);
      gather(p, start(p.value, p.value_image), p.value.step, matrix);
      pack_panels<T>(matrix, true, p.D, padded(p), values, 0, p.D / COLUMNS);
      for (long s = 0; s < padded(p); ++s)
        shut[s] = s >= p.S || (p.blocked && p.blocked[image * p.S + s]) ? -__builtin_inff() : 0.0f;
      for (long first = 0; first < p.Q; first += TILE) {
        const long count = p.Q - first < TILE ? p.Q - first : TILE;
        const T* asking = start(p.query, p.query_image) + first * p.query.step;
        copy_rows(asking, p.query.step, nullptr, count, TILE, p.D, 0, queries);
        float c[TILE * COLUMNS] __attribute__((aligned(64)));
        for (long panel = 0; panel < panels; ++panel) {
          multiply<T, ROW, 1, false>(reinterpret_cast<const Unit*>(queries), TILE * ROW,
                                     reinterpret_cast<const Unit*>(keys) + panel * depth * COLUMNS, depth, c);
          for (int v = 0; v < VECTORS; ++v) {
            const long s = panel * COLUMNS + v * WIDTH;
            const Floats bias = F::load(shut + s);
            for (long r = 0; r < TILE; ++r)
              F::store(scores + r * padded(p) + s, F::load(c + r * COLUMNS + v * WIDTH) * scale + bias);
          }
        }
        float totals[TILE];
        for (long r = 0; r < TILE; ++r) softmax(p, scores + r * padded(p), weights + r * ROW * EACH, totals[r]);
        for (long panel = 0; panel < p.D / COLUMNS; ++panel) {
          const long units = padded(p) / EACH;
          multiply<T, ROW, 1, false>(reinterpret_cast<const Unit*>(weights), TILE * ROW,
                                     reinterpret_cast<const Unit*>(values) + panel * units * COLUMNS, units, c);
          for (long r = 0; r < count; ++r) {
            T* y = static_cast<T*>(p.y) + ((image * p.Q + first + r) * p.H + head) * p.D + panel * COLUMNS;
            const Floats share = 1.0f / totals[r] - Floats{};
            for (int v = 0; v < VECTORS; ++v)
              Pack<T, float, WIDTH>::store(y + v * WIDTH, F::load(c + r * COLUMNS + v * WIDTH) * share);
          }
        }
      }
    }
  }
};

}  // namespace

#ifdef BFLOAT16_PRODUCTS
const Attentions bfloat16_attention = {COLUMNS, Attend<BFloat16>::bytes, Attend<BFloat16>::attend};
#else
const Attentions float32_attention = {COLUMNS, Attend<float>::bytes, Attend<float>::attend};
#endif

}  // namespace ISA
}  // namespace leandetr
