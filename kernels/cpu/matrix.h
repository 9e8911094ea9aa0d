// A weight in column vectors N x 1 or in blocks N x M, as sparse_ops/blocks/packed_blocks.py stores it.
#pragma once

#include <cstdint>

struct Matrix {
  const void* values;
  const int16_t* columns;
  const int32_t* pointers;
  const int32_t* order;
  int64_t rows, cols, n, m, run;

  int64_t groups() const { return (rows + n - 1) / n; }
  int64_t row(int64_t stored) const { return order[stored / run] * run + stored % run; }
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
