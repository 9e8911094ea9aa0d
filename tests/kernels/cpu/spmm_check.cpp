// Compiled with sanitizers and run by the tests: products over odd shapes, in buffers of exactly their size, against sums
// in double. Prints what differs; the exit status is how much did.
#include "spmm.cpp"

#include "check.h"

struct Case {
  int64_t rows, cols, n, m, run, tokens;
  double density;
};

static int check(const Case& c, std::mt19937& random, bool is_half) {
  std::uniform_real_distribution<double> uniform;
  int64_t groups = (c.rows + c.n - 1) / c.n, wide = (c.cols + c.m - 1) / c.m, step = c.m == 1 && c.n >= 4 ? 16 : 1;
  std::vector<int32_t> order(groups * c.n / c.run), pointers{0};
  for (size_t i = 0; i < order.size(); i++) order[i] = (int32_t)i;
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random() % i]);
  std::vector<int16_t> columns;
  std::vector<float> values;
  std::vector<double> dense(groups * c.n * wide * c.m);
  for (int64_t g = 0; g < groups; g++) {
    for (int64_t k = 0; k < wide; k++) {
      if (uniform(random) >= c.density) continue;
      columns.push_back((int16_t)k);
      for (int64_t i = 0; i < c.n; i++)
        for (int64_t j = 0; j < c.m; j++) {
          int64_t at = g * c.n + i, row = order[at / c.run] * c.run + at % c.run;
          bool is_inside = row < c.rows && k * c.m + j < c.cols;
          float value = is_inside ? draw(random, is_half) : 0.0f;
          values.push_back(value);
          dense[row * wide * c.m + k * c.m + j] = value;
        }
    }
    while (columns.size() % step) {
      columns.push_back(-1);
      values.insert(values.end(), c.n * c.m, NAN);  // what fills up is never read
    }
    pointers.push_back((int32_t)columns.size());
  }
  std::vector<float> x = draw(c.tokens * c.cols, random, is_half), bias = draw(c.rows, random, is_half);
  std::vector<float> y(c.tokens * c.rows, NAN);
  std::vector<bf16> x16 = halves(x), values16 = halves(values), bias16 = halves(bias), y16(y.size());
  Weight weight{values.data(), columns.data(), pointers.data(), order.data(), bias.data(), c.rows, c.cols, c.n,
                c.m,           c.run,          0,               RELU};
  Weight weight16 = weight;
  weight16.values = values16.data(), weight16.bias = bias16.data(), weight16.is_half = 1;
  for (int64_t threads : {1, 2})
    if (is_half)
      spmm(&weight16, x16.data(), y16.data(), c.tokens, threads);
    else
      spmm(&weight, x.data(), y.data(), c.tokens, threads);
  int wrong = 0;
  for (int64_t t = 0; t < c.tokens; t++)
    for (int64_t r = 0; r < c.rows; r++) {
      double sum = bias[r];
      for (int64_t k = 0; k < c.cols; k++) sum += (double)x[t * c.cols + k] * dense[r * wide * c.m + k];
      double got = is_half ? to_float(y16[t * c.rows + r]) : y[t * c.rows + r], want = std::max(sum, 0.0);
      wrong += differs(got, want, is_half);
    }
  if (wrong)
    std::printf("%ldx%ld, %ldx%ld, run %ld, %ld tokens: %d differ\n", c.rows, c.cols, c.n, c.m, c.run, c.tokens, wrong);
  return wrong;
}

int main() {
  std::mt19937 random(0);
  int wrong = 0;
  for (int64_t n : {1, 2, 4, 8, 32})
    for (int64_t m : {1, 32})
      for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {5, 7}, {37, 50}, {70, 35}, {9, 900}})
        for (int64_t tokens : {0, 1, 3, 5, 33, 100})
          for (double density : {0.0, 0.3, 1.0})
            if (m == 1 || (n >= 16 && density == 0.3))
              for (int64_t run : {n, m == 1 ? (int64_t)1 : n})
                for (bool is_half : {false, true}) wrong += check({rows, cols, n, m, run, tokens, density}, random, is_half);
  for (int64_t n : {1, 2, 4})  // more columns than one tile holds, and rows than a block
    for (bool is_half : {false, true}) wrong += check({70, 2700, n, 1, n, 100, 0.1}, random, is_half);
  std::printf("%d differ\n", wrong);
  return wrong != 0;
}
