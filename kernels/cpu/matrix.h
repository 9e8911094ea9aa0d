// A weight in column vectors N x 1 or in blocks N x M, as sparse_ops/blocks/packed_blocks.py stores it.
#pragma once

#include <algorithm>
#include <cstdint>

struct Matrix {
  const void* values;
  const int16_t* columns;
  const int32_t* pointers;
  const int32_t* order;
  int64_t rows, cols, n, m, run;

  int64_t groups() const { return (rows + n - 1) / n; }
  int64_t row(int64_t stored) const {
    uint32_t at = (uint32_t)stored, together = (uint32_t)run;  // a division of 64 bits takes many times as long
    return order[at / together] * run + at % together;
  }
};

// `_Weight` of spmm.py: what one product has in common with the next.
struct Weight {
  const void* values;
  const int16_t* columns;
  const int32_t* pointers;
  const int32_t* order;
  const void* bias;
  int64_t rows, cols, n, m, run, is_half, activation;

  Matrix matrix() const { return {values, columns, pointers, order, rows, cols, n, m, run}; }
};

// Where the slots of groups `from` to `to` end in each span of block columns; before the first, where they begin.
static void find_ends(const Matrix& w, int64_t from, int64_t to, int64_t span, int64_t spans, int32_t* ends) {
  for (int64_t g = from; g < to; g++, ends++) {
    int32_t at = ends[0] = w.pointers[g];
    for (int64_t k = 1; k <= spans; k++) {  // what fills up is -1, and so beyond any limit
      while (at < w.pointers[g + 1] && (uint32_t)w.columns[at] < (uint32_t)(k * span)) at++;
      ends[k * (to - from)] = at;
    }
  }
}
