// Products with vectors and blocks for few tokens, which are multiplied as they lie: a vector has the rows of one column.
#pragma once

#include <algorithm>
#include <cstring>

#include "epilogue.h"
#include "matrix.h"
#include "scratch.h"

// Tokens up to which turning them over does not pay, where so many rows share a column.
constexpr int few(int height) { return height == 4 ? 4 : 2; }

// A column's values in HEIGHT rows.
template <int HEIGHT>
struct Column;

template <>
struct Column<1> {
  typedef float Floats;
  static Floats of(const float* from) { return *from; }
  static Floats of(const bf16* from) { return to_float(*from); }
};

template <>
struct Column<2> {
  typedef float Floats __attribute__((vector_size(8)));
  static Floats of(const float* from) { return load<Floats>(from); }
  static Floats of(const bf16* from) { return Floats{to_float(from[0]), to_float(from[1])}; }
};

template <>
struct Column<4> {
  typedef float Floats __attribute__((vector_size(16)));
  typedef uint32_t Whole __attribute__((vector_size(16)));
  typedef bf16 Halves __attribute__((vector_size(8)));
  static Floats of(const float* from) { return load<Floats>(from); }
  static Floats of(const bf16* from) { return (Floats)(__builtin_convertvector(load<Halves>(from), Whole) << 16); }
};

// Sums of HEIGHT rows of one group for TOKENS tokens, `row` the first of them in it.
template <int HEIGHT, int TOKENS, class Value>
static inline void sum_rows(
    const Value* x, const Matrix& w, int64_t first, int64_t last, int64_t row, float (&out)[TOKENS][HEIGHT]) {
  using Rows = Column<HEIGHT>;
  // as many as registers hold, so that none waits for another; shorter sums round less, too
  constexpr int CHAINS = (HEIGHT == 1 || REGISTERS == 16 ? 8 : 16) / (TOKENS == 3 ? 2 : TOKENS);
  typename Rows::Floats acc[CHAINS][TOKENS] = {};
  const Value* v = static_cast<const Value*>(w.values) + row * w.m;
  auto add = [&](int chain, typename Rows::Floats values, int64_t k) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) acc[chain][t] += values * to_float(x[t * w.cols + k]);
  };
  if (w.m == 1) {
    int64_t slot = first;
    for (; slot + CHAINS <= last; slot += CHAINS) {
#pragma GCC unroll 16
      for (int chain = 0; chain < CHAINS; chain++) add(chain, Rows::of(v + (slot + chain) * w.n), w.columns[slot + chain]);
    }
    for (int chain = 0; slot < last; slot++, chain++) add(chain, Rows::of(v + slot * w.n), w.columns[slot]);
  } else {
    for (int64_t slot = first; slot < last; slot++) {
      int64_t k = w.columns[slot] * w.m, wide = std::min(w.m, w.cols - k);
      for (int64_t c = 0; c < wide; c++) {
        Value column[HEIGHT];
        for (int i = 0; i < HEIGHT; i++) column[i] = v[slot * w.n * w.m + i * w.m + c];
        add((int)(c % CHAINS), Rows::of(column), k + c);
      }
    }
  }
  for (int half = CHAINS / 2; half; half /= 2)
    for (int chain = 0; chain < half; chain++)
      for (int t = 0; t < TOKENS; t++) acc[chain][t] += acc[chain + half][t];
  for (int t = 0; t < TOKENS; t++) store(out[t], acc[0][t]);
}

template <int HEIGHT, int TOKENS, class Value>
static void product_of_few(
    const Value* x, const Matrix& w, const Value* bias, int64_t activation, Value* y, int64_t threads) {
  static thread_local Scratch memory;
  int64_t groups = w.groups(), stride = groups * w.n + LANES;
  float* sums = memory.take<float>(TOKENS * stride);  // in the order of the rows, to be finished by whole vectors
#pragma omp parallel for num_threads(threads) schedule(static, 16) if (threads > 1)
  for (int64_t g = 0; g < groups; g++) {
    int64_t first = w.pointers[g], last = w.pointers[g + 1];
    while (last > first && w.columns[last - 1] < 0) last--;
    for (int64_t i = 0; i < w.n; i += HEIGHT) {
      float out[TOKENS][HEIGHT];
      sum_rows<HEIGHT, TOKENS>(x, w, first, last, i, out);
      if (w.run >= HEIGHT) {
        for (int t = 0; t < TOKENS; t++) std::memcpy(sums + t * stride + w.row(g * w.n + i), out[t], HEIGHT * sizeof(float));
      } else {
        for (int t = 0; t < TOKENS; t++)
          for (int j = 0; j < HEIGHT; j++) sums[t * stride + w.row(g * w.n + i + j)] = out[t][j];
      }
    }
  }
  finish(sums, stride, TOKENS, bias, activation, y, w.rows);
}

template <int HEIGHT, class Value>
static void product_of_few(
    const Value* x, const Matrix& w, const Value* bias, int64_t activation, Value* y, int64_t tokens, int64_t threads) {
  switch (tokens) {
    case 1: return product_of_few<HEIGHT, 1>(x, w, bias, activation, y, threads);
    case 2: return product_of_few<HEIGHT, 2>(x, w, bias, activation, y, threads);
    case 3: return product_of_few<HEIGHT, 3>(x, w, bias, activation, y, threads);
    default: return product_of_few<HEIGHT, 4>(x, w, bias, activation, y, threads);
  }
}
