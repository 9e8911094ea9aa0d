// G^T X where weights are stored, with sums that stay in registers.
//
// Rows of G and columns of X are turned over, so that a vector has one row or column of several tokens. HEIGHT rows of a
// group times WIDE of its columns are as many sums as there are registers for, each over all tokens of a tile, and their
// lanes are added at its end, all at once.
#pragma once

#include <omp.h>

#include "floats.h"
#include "matrix.h"
#include "tile.h"

namespace {

template <int HEIGHT, bool IS_BLOCK>
struct Sums {
  static constexpr int WIDE = IS_BLOCK ? 2 : HEIGHT == 4 ? 3 : 4;  // columns of a step
  static constexpr int COUNT = HEIGHT * WIDE;                       // sums
  static constexpr int VECTORS = (COUNT + LANES - 1) / LANES;       // of them, once lanes are added
  static constexpr int MOST = 192 / LANES;                          // vectors of tokens of a tile
  static constexpr int64_t SPAN = 192 << 10;  // bytes of columns that are multiplied with one group after the other
  const Matrix& w;
  const int32_t* where;  // the row of each stored row
  float* values;

  // In a register of its own: gcc would load it again for each multiplication.
  static Vec loaded(const float* from) {
    Vec v = load<Vec>(from);
#ifdef __x86_64__
    asm("" : "+x"(v));
#endif
    return v;
  }

  // Lanes of `a` and then of `b`, each the sum of two that lie side by side in units of UNIT lanes, within SIZE lanes.
  template <int UNIT, int SIZE, int... I>
  static Vec add_pairs(Vec a, Vec b, std::integer_sequence<int, I...>) {
    constexpr auto from = [](int i, int second) {
      int place = i % SIZE / UNIT, half = SIZE / UNIT / 2;
      return i / SIZE * SIZE + (place % half * 2 + second) * UNIT + i % UNIT + (place < half ? 0 : LANES);
    };
    return __builtin_shufflevector(a, b, from(I, 0)...) + __builtin_shufflevector(a, b, from(I, 1)...);
  }

  // One lane after the other becomes the sum of all lanes of a vector, of so many. First within four lanes, where it takes
  // two shuffles.
  template <int DONE, int HOW_MANY>
  [[gnu::always_inline]] static void add_lanes(Vec* v) {
    if constexpr (DONE < LANES) {
      constexpr int UNIT = DONE < 4 ? 1 : 4, SIZE = DONE < 4 ? 4 : LANES;
#pragma GCC unroll 16
      for (int i = 0; i < HOW_MANY; i += 2)
        v[i / 2] = add_pairs<UNIT, SIZE>(
            v[i], i + 1 < HOW_MANY ? v[i + 1] : Vec{}, std::make_integer_sequence<int, LANES>());
      add_lanes<2 * DONE, (HOW_MANY + 1) / 2>(v);
    }
  }

  // Sums over `width` tokens, `[column][row]`.
  [[gnu::always_inline]] static void multiply(
      const float* const (&rows)[HEIGHT], const float* const (&columns)[WIDE], int64_t width, Vec (&sums)[COUNT]) {
#pragma GCC unroll 4
    for (int64_t t = 0; t < width; t += LANES) {
      Vec column[WIDE];
#pragma GCC unroll 4
      for (int c = 0; c < WIDE; c++) column[c] = loaded(columns[c] + t);
#pragma GCC unroll 4
      for (int h = 0; h < HEIGHT; h++) {
        Vec row = loaded(rows[h] + t);
#pragma GCC unroll 4
        for (int c = 0; c < WIDE; c++) sums[c * HEIGHT + h] += row * column[c];
      }
    }
    add_lanes<1, COUNT>(sums);
  }

  // WIDE columns from `slot` on, or from column `j` of a block; beyond the last one that one, for nothing.
  void find(
      const float* tile, int64_t width, int64_t slot, int64_t end, int64_t j, const float* (&columns)[WIDE]) const {
#pragma GCC unroll 4
    for (int64_t c = 0; c < WIDE; c++) {
      int64_t column =
          IS_BLOCK ? w.columns[slot] * w.m + std::min(j + c, w.m - 1) : w.columns[std::min(slot + c, end - 1)];
      columns[c] = tile + column * width;
      asm("" : "+r"(columns[c]));  // one by one: gcc would make vectors of addresses, and take them apart again
    }
  }

  // Adds what a tile gives for slots `begin` to `end` of each of the groups `from` to `to`; `last` is beyond all of theirs.
  [[gnu::noinline]] void add(
      const float* grads, const float* tile, int64_t width, int64_t from, int64_t to, const int32_t* begin,
      const int32_t* end, int64_t last) const {
    const int64_t n = w.n, m = IS_BLOCK ? w.m : 1, size = n * m, step = IS_BLOCK ? 1 : WIDE;
    for (int64_t g = from; g < to; g++, begin++, end++)
      for (int64_t i = 0; i < n && *begin < *end; i += HEIGHT) {
        const float *rows[HEIGHT], *columns[WIDE], *next[WIDE];
        for (int h = 0; h < HEIGHT; h++) rows[h] = grads + where[g * n + i + h] * width;
        find(tile, width, *begin, *end, 0, next);
        for (int64_t slot = *begin; slot < *end; slot += step)
          for (int64_t j = 0; j < m; j += WIDE) {
            std::copy_n(next, WIDE, columns);
            bool is_last = j + WIDE >= m;  // of its slot; the next addresses are found while these are multiplied
            int64_t then = is_last ? std::min<int64_t>(slot + step, *end - 1) : slot;
            find(tile, width, then, *end, is_last ? 0 : j + WIDE, next);
            Vec sums[COUNT] = {};
            multiply(rows, columns, width, sums);
            int64_t count = std::min<int64_t>(WIDE, IS_BLOCK ? m - j : *end - slot);
            float* out = values + slot * size + i * m + j;
            if (size == HEIGHT && count == WIDE && slot + VECTORS * LANES / HEIGHT <= last) {
#pragma GCC unroll 4
              for (int v = 0; v < VECTORS; v++)  // to slots beyond, which are this thread's too, zero is added
                store(out + v * LANES, load<Vec>(out + v * LANES) + sums[v]);
              continue;
            }
            float parts[VECTORS * LANES];
            for (int v = 0; v < VECTORS; v++) store(parts + v * LANES, sums[v]);
            for (int64_t c = 0; c < count; c++)
              for (int h = 0; h < HEIGHT; h++) out[IS_BLOCK ? h * m + c : c * size + h] += parts[c * HEIGHT + h];
          }
      }
  }
};

template <int HEIGHT, bool IS_BLOCK, class Value>
void by_sums(const Value* grad, const Value* x, const Matrix& w, Value* values, int64_t tokens, int64_t threads) {
  using Product = Sums<HEIGHT, IS_BLOCK>;
  static thread_local Scratch floats_memory, where_memory, tile_memory, grads_memory;
  int64_t groups = w.groups(), high = groups * w.n, blocks = (w.cols + w.m - 1) / w.m, wide = blocks * w.m;
  int64_t count = w.pointers[groups] * w.n * w.m;
  float* floats = floats_of(values, count, floats_memory);
  std::fill(floats, floats + count, 0.0f);
  int32_t* where = where_memory.take<int32_t>(high);
  for (int64_t i = 0; i < high; i++) where[i] = (int32_t)w.row(i);
  Product weight{w, where, floats};
  Tiles tiles(tokens, Product::MOST);
  float* tile = tile_memory.take<float>(wide * Product::MOST * LANES);
  float* grads = grads_memory.take<float>(high * Product::MOST * LANES);
  int64_t span = std::max<int64_t>(Product::SPAN / sizeof(float) / (Product::MOST * LANES) / w.m, 1);
  int64_t spans = (blocks + span - 1) / span;
#pragma omp parallel num_threads(std::min(threads, groups)) if (threads > 1)
  {
    static thread_local Scratch ends_memory;
    int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
    const auto share = [&](int64_t all, int64_t at) {  // of what all threads turn over, whole vectors
      return std::min((all + LANES - 1) / LANES * at / parts * LANES, all);
    };
    int64_t from = groups * part / parts, to = groups * (part + 1) / parts;
    int32_t* ends = ends_memory.take<int32_t>((spans + 1) * (to - from));
    find_ends(w, from, to, span, spans, ends);
    for (int64_t number = 0; number < tiles.count; number++) {
      int64_t token = tiles.begin(number), width = tiles.width(number), here = std::min(width, tokens - token);
      int64_t first = share(wide, part), row = share(high, part);
      turn_over(x, w.cols, first, share(wide, part + 1), token, here, width, tile + first * width);
      turn_over(grad, w.rows, row, share(high, part + 1), token, here, width, grads + row * width);
#pragma omp barrier
      for (int64_t k = 0; k < spans; k++)
        weight.add(
            grads, tile, width, from, to, ends + k * (to - from), ends + (k + 1) * (to - from), w.pointers[to]);
#pragma omp barrier
    }
  }
  from_floats(floats, count, values);
}

}  // namespace
