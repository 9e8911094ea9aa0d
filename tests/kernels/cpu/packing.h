// Random weights in column vectors and blocks, in buffers of exactly their size, for the check programs.
#pragma once

#include <algorithm>

#include "check.h"
#include "matrix.h"

struct Case {
  int64_t rows, cols, n, m, run, tokens;
  double density;
};

struct Packing {
  Case c;
  bool is_half;
  int64_t wide;  // columns, in whole blocks
  std::vector<int32_t> order, pointers{0};
  std::vector<int16_t> columns;
  std::vector<float> values;
  std::vector<bf16> values16;
  std::vector<double> dense;    // [rows, wide], rows in whole groups
  std::vector<int64_t> places;  // of each value in `dense`, -1 where it only fills up

  Packing(const Case& c, std::mt19937& random, bool is_half) : c(c), is_half(is_half) {
    std::uniform_real_distribution<double> uniform;
    int64_t groups = (c.rows + c.n - 1) / c.n, across = (c.cols + c.m - 1) / c.m, step = c.m == 1 && c.n >= 4 ? 16 : 1;
    wide = across * c.m;
    order.resize(groups * c.n / c.run);
    for (size_t i = 0; i < order.size(); i++) order[i] = (int32_t)i;
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random() % i]);
    dense.resize(groups * c.n * wide);
    for (int64_t g = 0; g < groups; g++) {
      for (int64_t k = 0; k < across; k++) {
        if (uniform(random) >= c.density) continue;
        columns.push_back((int16_t)k);
        for (int64_t i = 0; i < c.n; i++)
          for (int64_t j = 0; j < c.m; j++) {
            int64_t at = g * c.n + i, row = order[at / c.run] * c.run + at % c.run, column = k * c.m + j;
            bool is_inside = row < c.rows && column < c.cols;
            values.push_back(is_inside ? draw(random, is_half) : 0.0f);
            places.push_back(is_inside ? row * wide + column : -1);
            dense[row * wide + column] = values.back();
          }
      }
      while (columns.size() % step) {
        columns.push_back(-1);
        values.insert(values.end(), c.n * c.m, NAN);  // what fills up is never read
        places.insert(places.end(), c.n * c.m, -1);
      }
      pointers.push_back((int32_t)columns.size());
    }
    values16 = halves(values);
  }

  Weight weight(const void* bias, int64_t activation) const {
    const void* held = is_half ? (const void*)values16.data() : values.data();
    return {held, columns.data(), pointers.data(), order.data(), bias, c.rows, c.cols, c.n, c.m, c.run, is_half, activation};
  }

  int report(int wrong) const {
    if (wrong)
      std::printf("%ldx%ld, %ldx%ld, run %ld, %ld tokens: %d differ\n", c.rows, c.cols, c.n, c.m, c.run, c.tokens, wrong);
    return wrong;
  }
};

// Calls `check` with odd shapes and all kinds of blocks; the exit status of the program.
template <class Check>
static int over_odd_shapes(Check check) {
  std::mt19937 random(0);
  int wrong = 0;
  auto both = [&](const Case& c) {
    for (bool is_half : {false, true}) wrong += check(Packing(c, random, is_half), random);
  };
  for (int64_t n : {1, 2, 4, 8, 32})
    for (int64_t m : {1, 32})
      for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {5, 7}, {37, 50}, {70, 35}, {9, 900}})
        for (int64_t tokens : {0, 1, 3, 5, 33, 100})
          for (double density : {0.0, 0.3, 1.0})
            if (m == 1 || (n >= 16 && density == 0.3))
              for (int64_t run : {n, m == 1 ? (int64_t)1 : n}) both({rows, cols, n, m, run, tokens, density});
  for (int64_t n : {1, 2, 4}) both({70, 2700, n, 1, n, 100, 0.1});  // more columns than a tile holds, rows than a block
  for (int64_t n : {1, 2, 4}) both({8, 48, n, 1, n, 400, 1.0});  // several tiles of tokens, no place that only fills up
  std::printf("%d differ\n", wrong);
  return wrong != 0;
}
