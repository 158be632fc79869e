// All kernels once, on small problems, for ThreadSanitizer: what two threads touch without a barrier between them.

#include <cstdio>
#include <random>

struct Shape {
  long N, M, D, Q;
  int L, P;
  int levels[4];  // height and width of each
};

int main() {
  const Shape shapes[] = {
      {1, 2, 8, 57, 2, 3, {5, 9, 3, 4}},     // queries that are all tokens
      {1, 1, 32, 12, 2, 4, {5, 9, 3, 4}},    // those of one level
      {1, 1, 8, 16, 2, 4, {40, 40, 4, 4}},   // with samples too far apart to be sorted
      {2, 3, 12, 5, 2, 3, {3, 4, 2, 1}},     // no tokens
  };
  std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> place(-0.3f, 1.3f);
  for (const Shape& s : shapes) {
    long tokens = 0;
    for (int l = 0; l < s.L; ++l) tokens += s.levels[2 * l] * s.levels[2 * l + 1];
    const long sizes[] = {s.N, tokens, s.Q, s.M, s.D, s.L, s.P};
    const auto drawn = [&](long count) {
      std::vector<float> numbers(count);
      for (float& x : numbers) x = normal(generator);
      return numbers;
    };
    const long samples = s.N * s.Q * s.M * s.L * s.P, rows = s.N * s.Q * s.M * s.D, values = s.N * tokens * s.M * s.D;
    auto query = drawn(rows), grad = drawn(rows), key = drawn(values), value = drawn(values), weights = drawn(samples);
    auto locations = drawn(2 * samples);
    for (float& x : locations) x = place(generator);
    std::vector<float> answer(rows), of_query(rows), of_key(values), of_value(values), of_locations(2 * samples);
    std::vector<float> of_weights(samples), slopes(samples);
    plain_float32(sizes, s.levels, value.data(), locations.data(), weights.data(), answer.data());
    for (float* sums : {of_value.data(), static_cast<float*>(nullptr)})
      plain_backward_float32(sizes, s.levels, grad.data(), value.data(), locations.data(), weights.data(), sums,
                             of_locations.data(), of_weights.data());
    if (has_tiles(sizes, s.levels))
      scatter_tiles_float32(sizes, s.levels, grad.data(), locations.data(), weights.data(), of_value.data());
    scatter_in_order_float32(sizes, s.levels, grad.data(), locations.data(), weights.data(), of_value.data());
    for (float* keys : {key.data(), value.data()}) {
      aware_float32(sizes, s.levels, query.data(), keys, value.data(), locations.data(), answer.data());
      for (float* sums : {of_value.data(), static_cast<float*>(nullptr)})
        aware_backward_float32(sizes, s.levels, grad.data(), query.data(), keys, value.data(), locations.data(),
                               of_query.data(), of_key.data(), sums, of_locations.data(), of_weights.data(),
                               slopes.data());
    }
  }
  std::puts("all kernels ran");
}
