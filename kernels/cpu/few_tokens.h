// Products with vectors and blocks for few tokens, which are multiplied as they lie.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "epilogue.h"
#include "matrix.h"
#include "scratch.h"

// Tokens up to which turning them over does not pay, where so many rows share a column.
constexpr int few(int height) { return height == 4 ? 4 : 2; }

typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));

static inline Four load_four(const float* from) { return load<Four>(from); }
static inline Four load_four(const bf16* from) {
  typedef uint32_t Whole __attribute__((vector_size(16)));
  typedef bf16 Halves __attribute__((vector_size(8)));
  return (Four)(__builtin_convertvector(load<Halves>(from), Whole) << 16);
}

static inline Eight load_eight(const float* from) { return load<Eight>(from); }
static inline Eight load_eight(const bf16* from) {
  typedef uint32_t Whole __attribute__((vector_size(32)));
  typedef bf16 Halves __attribute__((vector_size(16)));
  return (Eight)(__builtin_convertvector(load<Halves>(from), Whole) << 16);
}

// x at eight columns, or at four, twice each.
template <int HEIGHT, class Value>
[[gnu::always_inline]] static inline Eight spread(const Value* x, const int16_t* k) {
  float a = to_float(x[k[0]]), b = to_float(x[k[1]]), c = to_float(x[k[2]]), d = to_float(x[k[3]]);
  if constexpr (HEIGHT == 2)
    return Eight{a, a, b, b, c, c, d, d};
  else
    return Eight{a, b, c, d, to_float(x[k[4]]), to_float(x[k[5]]), to_float(x[k[6]]), to_float(x[k[7]])};
}

// Sums of a group's row or two for TOKENS tokens; eight values lie side by side.
template <int HEIGHT, int TOKENS, class Value>
static inline void sum_narrow(
    const Value* x, const Matrix& w, int64_t first, int64_t last, float (&out)[TOKENS][HEIGHT]) {
  constexpr int SLOTS = 8 / HEIGHT;
  const Value* v = static_cast<const Value*>(w.values);
  Eight acc[HEIGHT][TOKENS] = {};
  int64_t slot = first;
  for (; slot + 8 <= last; slot += 8)
#pragma GCC unroll 2
    for (int chain = 0; chain < HEIGHT; chain++) {
      int64_t at = slot + chain * SLOTS;
      Eight values = load_eight(v + at * HEIGHT);
#pragma GCC unroll 2
      for (int t = 0; t < TOKENS; t++) acc[chain][t] += values * spread<HEIGHT>(x + t * w.cols, w.columns + at);
    }
  float rest[TOKENS][HEIGHT] = {};
  for (; slot < last; slot++)
    for (int t = 0; t < TOKENS; t++)
      for (int i = 0; i < HEIGHT; i++)
        rest[t][i] += to_float(v[slot * HEIGHT + i]) * to_float(x[t * w.cols + w.columns[slot]]);
  for (int t = 0; t < TOKENS; t++) {
    Eight sum = acc[0][t];
    if constexpr (HEIGHT == 2) sum += acc[1][t];
    for (int i = 0; i < HEIGHT; i++) {
      float odd = HEIGHT == 1 ? (sum[1] + sum[5]) + (sum[3] + sum[7]) : 0;
      out[t][i] = (sum[i] + sum[i + 4]) + (sum[i + 2] + sum[i + 6]) + odd + rest[t][i];
    }
  }
}

// Sums of four rows of a group of vectors for TOKENS tokens, `row` the first of them in it.
template <int TOKENS, class Value>
static inline void sum_four(
    const Value* x, const Matrix& w, int64_t first, int64_t last, int64_t row, float (&out)[TOKENS][4]) {
  // as many as registers hold, so that none waits for another; shorter sums round less, too
  constexpr int CHAINS = (REGISTERS == 16 ? 8 : 16) / (TOKENS == 3 ? 2 : TOKENS);
  constexpr int AT_ONCE = CHAINS < 4 ? CHAINS : 4;  // columns that one load gets
  using Columns = std::conditional_t<AT_ONCE == 4, uint64_t, uint32_t>;
  const Value* v = static_cast<const Value*>(w.values) + row;
  Four acc[CHAINS][TOKENS];
#pragma GCC unroll 16
  for (int chain = 0; chain < CHAINS; chain++)
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) acc[chain][t] = Four{};
  // a sum whose number is no constant would wait in memory, and all others with it
  auto add = [&](int chain, int64_t slot, int64_t k) __attribute__((always_inline)) {
    Four values = load_four(v + slot * w.n);
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) acc[chain][t] += values * to_float(x[t * w.cols + k]);
  };
  int64_t slot = first;
  for (; slot + CHAINS <= last; slot += CHAINS)
#pragma GCC unroll 4
    for (int some = 0; some < CHAINS; some += AT_ONCE) {
      Columns columns = load<Columns>(w.columns + slot + some);
#pragma GCC unroll 4
      for (int i = 0; i < AT_ONCE; i++) add(some + i, slot + some + i, (uint16_t)(columns >> 16 * i));
    }
#pragma GCC unroll 16
  for (int chain = 0; chain < CHAINS - 1; chain++) {
    if (slot + chain >= last) break;
    add(chain, slot + chain, w.columns[slot + chain]);
  }
#pragma GCC unroll 4
  for (int half = CHAINS / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int chain = 0; chain < half; chain++)
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; t++) acc[chain][t] += acc[chain + half][t];
#pragma GCC unroll 4
  for (int t = 0; t < TOKENS; t++) store(out[t], acc[0][t]);
}

// Sums of LANES rows of a group of blocks for one token, `row` the first of them in it.
template <class Value>
static inline void sum_block(
    const Value* x, const Matrix& w, int64_t first, int64_t last, int64_t row, float (&out)[LANES]) {
  Vec acc[LANES];
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++) acc[i] = Vec{};
  for (int64_t slot = first; slot < last; slot++) {
    const Value* v = static_cast<const Value*>(w.values) + (slot * w.n + row) * w.m;
    for (int64_t c = 0, k = w.columns[slot] * w.m; c < w.m && k < w.cols; c += LANES, k += LANES) {
      Vec inputs;
      if (k + LANES <= w.cols) {
        inputs = load_floats(x + k);
      } else {
        float part[LANES] = {};
        for (int64_t l = 0; k + l < w.cols; l++) part[l] = to_float(x[k + l]);
        inputs = load<Vec>(part);
      }
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) acc[i] += load_floats(v + i * w.m + c) * inputs;
    }
  }
  store(out, totals(acc));
}

template <int HEIGHT, int TOKENS, bool IS_BLOCK, class Value>
static void product_of_few(
    const Value* x, const Matrix& w, const Value* bias, int64_t activation, Value* y, int64_t threads) {
  static thread_local Scratch memory;
  constexpr int ROWS = IS_BLOCK ? LANES : HEIGHT;
  int64_t groups = w.groups(), stride = groups * w.n + LANES;
  float* sums = memory.take<float>(TOKENS * stride);  // in the order of the rows, to be finished by whole vectors
#pragma omp parallel for num_threads(threads) schedule(static, 16) if (threads > 1)
  for (int64_t g = 0; g < groups; g++) {
    int64_t first = w.pointers[g], last = w.pointers[g + 1];
    while (last > first && w.columns[last - 1] < 0) last--;
    for (int64_t i = 0; i < w.n; i += ROWS) {
      float out[TOKENS][ROWS];
      if constexpr (IS_BLOCK)
        for (int t = 0; t < TOKENS; t++) sum_block(x + t * w.cols, w, first, last, i, out[t]);
      else if constexpr (HEIGHT == 4)
        sum_four<TOKENS>(x, w, first, last, i, out);
      else
        sum_narrow<HEIGHT, TOKENS>(x, w, first, last, out);
      for (int j = 0; j < ROWS; j += HEIGHT)
        for (int t = 0; t < TOKENS; t++) {
          if (w.run >= HEIGHT)
            std::memcpy(sums + t * stride + w.row(g * w.n + i + j), out[t] + j, HEIGHT * sizeof(float));
          else
            for (int l = 0; l < HEIGHT; l++) sums[t * stride + w.row(g * w.n + i + j + l)] = out[t][j + l];
        }
    }
  }
  finish(sums, stride, TOKENS, bias, activation, y, w.rows);
}

template <int HEIGHT, bool IS_BLOCK, class Value>
static void product_of_few(
    const Value* x, const Matrix& w, const Value* bias, int64_t activation, Value* y, int64_t tokens, int64_t threads) {
  if (tokens == 1) return product_of_few<HEIGHT, 1, IS_BLOCK>(x, w, bias, activation, y, threads);
  if (tokens == 2) return product_of_few<HEIGHT, 2, IS_BLOCK>(x, w, bias, activation, y, threads);
  if constexpr (few(HEIGHT) == 4) {
    if (tokens == 3) return product_of_few<HEIGHT, 3, IS_BLOCK>(x, w, bias, activation, y, threads);
    return product_of_few<HEIGHT, 4, IS_BLOCK>(x, w, bias, activation, y, threads);
  }
}
