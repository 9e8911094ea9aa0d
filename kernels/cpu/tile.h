// Tiles of tokens: turned over, so that a vector holds one column of several tokens, and turned back with the epilogue.
#pragma once

#include <algorithm>
#include <type_traits>

#include "epilogue.h"
#include "scratch.h"
#include "simd.h"

// Tokens in tiles of at most `most` vectors, as even as can be, so that little is multiplied for nothing.
struct Tiles {
  int64_t tokens, vectors, count;

  Tiles(int64_t tokens, int64_t most)
      : tokens(tokens), vectors((tokens + LANES - 1) / LANES), count((vectors + most - 1) / most) {}
  int64_t begin(int64_t tile) const { return vectors * tile / count * LANES; }
  int64_t width(int64_t tile) const { return begin(tile + 1) - begin(tile); }
};

// Calls `run` with `vectors`, 1 to MOST, as a constant.
template <int MOST, class Run>
static void with_vectors(int64_t vectors, Run run) {
  if constexpr (MOST > 1)
    if (vectors < MOST) return with_vectors<MOST - 1>(vectors, run);
  run(std::integral_constant<int, MOST>());
}

// Whether so many bytes of outputs are more than a cache keeps until they are read; stores of half a line of the cache pay
// later still.
constexpr bool goes_past(int64_t bytes) { return bytes > (LANES == 16 ? 2 << 20 : 32 << 20); }

// Columns [k, end) of tokens [first, first + count) of x [tokens, cols] as tile [end - k, width]; zero where x has none.
// A row of tokens at a time: the pages of more than sixteen of them are too many for the processor to look up.
template <class Value>
[[gnu::noinline]] static void turn_over(
    const Value* x, int64_t cols, int64_t k, int64_t end, int64_t first, int64_t count, int64_t width, float* tile) {
  int64_t high = end - k;
  for (int64_t t = 0; t < width; t += LANES) {
    int64_t tokens = std::min<int64_t>(LANES, count - t);
    for (int64_t i = 0; i < high; i += LANES) {
      const Value* from = x + (first + t) * cols + k + i;
      float* to = tile + i * width + t;
      Vec block[LANES];
      if (tokens == LANES && k + i + LANES <= cols) {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) block[j] = load_floats(from + j * cols);
      } else {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) block[j] = Vec{};
        for (int64_t j = 0; j < tokens; j++) {
          float part[LANES] = {};
          for (int64_t l = 0; l < LANES && k + i + l < cols; l++) part[l] = to_float(from[j * cols + l]);
          block[j] = load<Vec>(part);
        }
      }
      transpose(block);
      if (i + LANES <= high) {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) store(to + j * width, block[j]);
      } else {
        for (int64_t j = 0; j < high - i; j++) store(to + j * width, block[j]);
      }
    }
  }
}

// Rows of a tile of sums [count, width] into y [tokens, stride] with bias and activation. Row i is row `first + i` of
// the matrix, or, where `rows` is there, rows[i]; what lies beyond `stride` only fills up. The tile has room for more
// rows. With `is_past` outputs go past the caches.
template <class Activate, class Value>
[[gnu::noinline]] static void turn_back(
    Activate activate, const float* tile, int64_t count, int64_t width, int64_t first, const int32_t* rows,
    const Value* bias, int64_t token, int64_t tokens, int64_t stride, bool is_past, Value* y) {
  for (int64_t t = 0; t < tokens; t += LANES) {
    for (int64_t i = 0; i < count; i += LANES) {
      int64_t high = std::min<int64_t>(LANES, count - i), wide = std::min<int64_t>(LANES, tokens - t);
      Value* to = y + (token + t) * stride;
      Vec block[LANES];
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++) block[j] = load<Vec>(tile + (i + j) * width + t);
      transpose(block);
      if (!rows && high == LANES && wide == LANES && first + i + LANES <= stride) {
        Vec shift = bias ? load_floats(bias + first + i) : Vec{};
        if (is_past && (uintptr_t)(to + first + i) % sizeof(Vec) == 0 && stride % LANES == 0) {
#pragma GCC unroll 16
          for (int j = 0; j < LANES; j++) store_past(to + j * stride + first + i, activate(block[j] + shift));
        } else {
#pragma GCC unroll 16
          for (int j = 0; j < LANES; j++) store_floats(to + j * stride + first + i, activate(block[j] + shift));
        }
        continue;
      }
      float shift[LANES] = {};
      int64_t row[LANES];
      for (int64_t l = 0; l < high; l++) {
        row[l] = rows ? rows[i + l] : first + i + l;
        if (bias && row[l] < stride) shift[l] = to_float(bias[row[l]]);
      }
      for (int64_t j = 0; j < wide; j++) {
        Vec out = activate(block[j] + load<Vec>(shift));
        for (int64_t l = 0; l < high; l++)
          if (row[l] < stride) store_float(to + j * stride + row[l], out[l]);
      }
    }
  }
}

template <class Value>
static void turn_back(
    const float* tile, int64_t count, int64_t width, int64_t first, const int32_t* rows, const Value* bias,
    int64_t activation, int64_t token, int64_t tokens, int64_t stride, bool is_past, Value* y) {
  with_activation(activation, [&](auto activate) {
    turn_back(activate, tile, count, width, first, rows, bias, token, tokens, stride, is_past, y);
  });
}
