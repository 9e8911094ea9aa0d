// Tiles of tokens: turned over, so that a vector holds one column of several tokens, and turned back with the epilogue.
#pragma once

#include <cstdlib>
#include <new>

#include "epilogue.h"
#include "simd.h"

// Memory of a thread that later calls find again: fresh pages cost more than a small product.
struct Scratch {
  void* memory = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(memory); }

  template <class T>
  T* take(size_t count) {
    size_t wanted = (count * sizeof(T) + 127) / 64 * 64;
    if (wanted > size) {
      std::free(memory);
      memory = std::aligned_alloc(64, wanted);
      size = memory ? wanted : 0;
      if (!memory) throw std::bad_alloc();
    }
    return static_cast<T*>(memory);
  }
};

// Tokens [first, first + count) of x [tokens, cols] as tile [cols rounded up to `high`, width]; the rest is zero.
template <class Value>
static void turn_over(
    const Value* x, int64_t cols, int64_t high, int64_t first, int64_t count, int64_t width, float* tile) {
  for (int64_t k = 0; k < high; k += LANES) {
    int64_t wide = std::min<int64_t>(LANES, cols - k), rows = std::min<int64_t>(LANES, high - k);
    for (int64_t t = 0; t < width; t += LANES) {
      Vec block[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) block[i] = Vec{};
      int64_t tokens = std::min<int64_t>(LANES, count - t);
      if (wide == LANES && tokens == LANES) {
        const Value* from = x + (first + t) * cols + k;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) block[i] = load_floats(from + i * cols);
      } else {
        for (int64_t i = 0; i < tokens; i++) {
          float part[LANES] = {};
          for (int64_t j = 0; j < wide; j++) part[j] = to_float(x[(first + t + i) * cols + k + j]);
          block[i] = load<Vec>(part);
        }
      }
      transpose(block);
      for (int64_t i = 0; i < rows; i++) store(tile + (k + i) * width + t, block[i]);
    }
  }
}

// Where rows of a tile of outputs go: row i is row `first + i` of the matrix, or rows[i].
struct Outputs {
  int64_t first;
  const int32_t* rows;  // null where they lie one after the other
  int64_t limit;        // rows from here on only fill up

  int64_t of(int64_t i) const { return rows ? rows[i] : first + i; }
};

// A tile of outputs [high, width], high a multiple of LANES, into y [tokens, stride] with bias and activation.
template <class Activate, class Value>
static void turn_back(
    Activate activate, const float* tile, int64_t high, int64_t width, const Outputs& rows, const Value* bias, int64_t first, int64_t count, int64_t stride, Value* y) {
  for (int64_t r = 0; r < high; r += LANES) {
    float shift[LANES];
    bool is_whole = !rows.rows && rows.of(r) + LANES <= rows.limit;
    for (int i = 0; i < LANES; i++) {
      int64_t row = rows.of(r + i);
      shift[i] = bias && row < rows.limit ? to_float(bias[row]) : 0.0f;
    }
    Vec shifts = load<Vec>(shift);
    for (int64_t t = 0; t < count; t += LANES) {
      Vec block[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) block[i] = load<Vec>(tile + (r + i) * width + t);
      transpose(block);
      int64_t tokens = std::min<int64_t>(LANES, count - t);
      for (int64_t i = 0; i < tokens; i++) {
        Vec out = activate(block[i] + shifts);
        Value* to = y + (first + t + i) * stride;
        if (is_whole) {
          store_floats(to + rows.of(r), out);
        } else {
          for (int j = 0; j < LANES; j++)
            if (rows.of(r + j) < rows.limit) store_float(to + rows.of(r + j), out[j]);
        }
      }
    }
  }
}

// How many vectors of tokens a tile has: at most `most`, so that the last tile is filled best.
static inline int64_t vectors_of(int64_t tokens, int64_t most) {
  int64_t tiles = (tokens + most * LANES - 1) / (most * LANES);
  return (tokens + tiles * LANES - 1) / (tiles * LANES);
}
