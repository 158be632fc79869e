// Dropout on the CPU, for one instruction set. Included by kernels_*.cpp; see vectors.h.
//
// PyTorch draws the numbers one after the other from a Mersenne twister, which takes longer than the layers around it. Here
// they are Threefry's (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): the bits of every place are
// computed from the seed and the place, by all threads and in whole vectors, and again for the gradient, so that nothing
// is kept.

#pragma once

#include "dropout.h"
#include "product_kernels.h"

namespace leandetr {
namespace ISA {
namespace {

typedef unsigned Words __attribute__((vector_size(WIDTH * 4)));

constexpr long LANES = 16;          // of all instruction sets alike
constexpr long GROUP = LANES * 4;   // numbers: word w of block i goes to number w * LANES + i

INLINE Words rotated(Words x, int by) { return x << by | x >> (32 - by); }

// Threefry-4x32 of 20 rounds: WIDTH blocks of four words, by a key of two words and two zeros.
INLINE void threefry(Words (&x)[4], const unsigned (&key)[2]) {
  constexpr int BY[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5}, {6, 20}, {17, 11}, {25, 10}, {18, 20}};
  const unsigned keys[5] = {key[0], key[1], 0, 0, 0x1BD11BDAu ^ key[0] ^ key[1]};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) x[i] += keys[i];
#pragma GCC unroll 20
  for (int round = 0; round < 20; ++round) {
    const int a = round % 2 ? 3 : 1, b = 4 - a;
    x[0] += x[a];
    x[a] = rotated(x[a], BY[round % 8][0]) ^ x[0];
    x[2] += x[b];
    x[b] = rotated(x[b], BY[round % 8][1]) ^ x[2];
    if (round % 4 == 3) {
      const int turn = round / 4 + 1;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) x[i] += keys[(turn + i) % 5];
      x[3] += (unsigned)turn;
    }
  }
}

template <typename T>
void drop(const Dropout<T>& p, long begin, long end) {
  typedef Pack<T, float, WIDTH> P;
  const unsigned key[2] = {(unsigned)p.seed, (unsigned)(p.seed >> 32)};
  Words lanes;
  for (int i = 0; i < WIDTH; ++i) lanes[i] = i;
  for (long group = begin; group < end; ++group) {
    const unsigned long long block = (unsigned long long)group * LANES;
    for (long lane = 0; lane < LANES; lane += WIDTH) {
      Words bits[4] = {lanes + (unsigned)(block + lane), Words{} + (unsigned)(block >> 32), {}, {}};
      threefry(bits, key);
#pragma GCC unroll 4
      for (int word = 0; word < 4; ++word) {
        const long at = group * GROUP + word * LANES + lane, left = p.count - at < WIDTH ? p.count - at : WIDTH;
        if (left <= 0) continue;
        const bool whole = left == WIDTH;
        const Floats x = whole ? P::load(p.x + at) : load_some(p.x + at, left);
        Floats y = (Integers)(bits[word] >= p.threshold) ? x * p.scale : Floats{};
        if (p.residual) y += whole ? P::load(p.residual + at) : load_some(p.residual + at, left);
        if (whole)
          P::store(p.y + at, y);
        else
          store_some(p.y + at, y, left);
      }
    }
  }
}

}  // namespace

const Dropouts<float> float32_dropout = {GROUP, drop<float>};
const Dropouts<BFloat16> bfloat16_dropout = {GROUP, drop<BFloat16>};

}  // namespace ISA
}  // namespace leandetr
