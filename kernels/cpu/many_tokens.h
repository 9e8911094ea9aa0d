// Products with many tokens: tile after tile of tokens, in each the columns that one span holds, and all rows.
#pragma once

#include <omp.h>

#include <type_traits>
#include "tile.h"

constexpr int64_t BLOCK = 64;  // rows whose sums wait in the first-level cache to be turned back

// Calls `run` with `vectors`, 1 to MOST, as a constant.
template <int MOST, class Run>
static void with_vectors(int64_t vectors, Run run) {
  if constexpr (MOST > 1)
    if (vectors < MOST) return with_vectors<MOST - 1>(vectors, run);
  run(std::integral_constant<int, MOST>());
}

// y = activation(x w^T + bias). A weight has
//   rows, cols               of the dense matrix
//   height                   rows of a group
//   groups                   how many
//   most                     vectors of tokens that a tile may have
//   span(width)              columns that a tile of this width may have, a multiple of what a block has
//   rounded(columns)         up to whole blocks
//   start(group)             where the group begins, as `add` takes it
//   rows_of(from, to, into)  where the rows of some groups lie; false where they lie one after the other
//   add<VECTORS>(...)        sums of some groups over a span, in one order, so that threads change nothing
template <class Weight, class Value>
static void multiply_tiles(
    const Weight& w, const Value* x, const Value* bias, int64_t activation, Value* y, int64_t tokens, int64_t threads) {
  Tiles tiles(tokens, w.most);
  int64_t parts = tiles.count >= threads ? 1 : threads, groups = w.groups;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t task = 0; task < tiles.count * parts; task++) {
    static thread_local Scratch tile_memory, sums_memory, next_memory, rows_memory;
    int64_t number = task / parts, part = task % parts;
    int64_t token = tiles.begin(number), width = tiles.width(number), count = std::min(width, tokens - token);
    int64_t from = groups * part / parts, to = groups * (part + 1) / parts;
    int64_t span = std::min(w.span(width), w.rounded(w.cols)), spans = (w.cols + span - 1) / span;
    // with one span sums go back at once; with several all rows have to wait for the last
    int64_t block = spans > 1 ? to - from : std::max<int64_t>(BLOCK / w.height, 1);
    float* tile = tile_memory.take<float>((span + LANES) * width);
    float* sums = sums_memory.take<float>((block * w.height + LANES) * width);
    int32_t* next = next_memory.take<int32_t>(block);
    int32_t* rows = rows_memory.take<int32_t>(block * w.height);
    for (int64_t g = from; g < to; g += block) {
      int64_t last = std::min(g + block, to);
      for (int64_t i = g; i < last; i++) next[i - g] = w.start(i);
      for (int64_t k = 0; k < w.cols; k += span) {
        int64_t end = std::min(k + span, w.cols);
        if (spans > 1 || g == from) turn_over(x, w.cols, k, w.rounded(end), token, count, width, tile);
        with_vectors<Weight::most>(width / LANES, [&](auto vectors) {
          w.template add<vectors()>(tile, k, end, g, last, next, sums);
        });
      }
      bool is_moved = w.rows_of(g, last, rows);
      turn_back(sums, (last - g) * w.height, width, g * w.height, is_moved ? rows : nullptr, bias, activation, token, count,
                w.rows, y);
    }
  }
}
