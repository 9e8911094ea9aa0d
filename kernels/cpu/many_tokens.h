// Products with many tokens: tile after tile of tokens, in each the columns that one span holds, and all rows.
#pragma once

#include <omp.h>

#include "tile.h"

constexpr int64_t HELD = 640 << 10;  // bytes of the second-level cache that tokens turned over may take

// Sums made side by side, where fewer would wait for one another; shorter sums also round less.
constexpr int chains(int sums) { return sums == 1 ? 4 : sums <= 4 ? 2 : 1; }

// y = activation(x w^T + bias). A weight has
//   rows, cols               of the dense matrix
//   height                   rows of a group
//   groups                   how many
//   most                     vectors of tokens that a tile may have
//   block                    groups whose sums are made together
//   span(width)              columns of a tile of this width that one look at a group takes, in whole blocks
//   rounded(columns)         up to whole blocks
//   start(group)             where the group begins, as `add` takes it
//   rows_of(from, to, into)  where the rows of some groups lie; false where they lie one after the other
//   add<VECTORS>(...)        sums of some groups over a span, in one order, so that threads change nothing; the last
//                            argument says whether the weight may not be in the caches yet
template <class Weight, class Value>
static void multiply_tiles(
    const Weight& w, const Value* x, const Value* bias, int64_t activation, Value* y, int64_t tokens, int64_t threads) {
  Tiles tiles(tokens, w.most);
  bool is_past = goes_past(tokens * w.rows * sizeof(Value));
  int64_t parts = tiles.count >= threads ? 1 : threads, groups = w.groups, cols = w.rounded(w.cols);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t task = 0; task < tiles.count * parts; task++) {
    static thread_local Scratch tile_memory, sums_memory, next_memory, rows_memory;
    int64_t number = task / parts, part = task % parts;
    int64_t token = tiles.begin(number), width = tiles.width(number), count = std::min(width, tokens - token);
    int64_t from = groups * part / parts, to = groups * (part + 1) / parts;
    int64_t span = std::min(w.span(width), cols);
    int64_t held = std::min(std::max<int64_t>(HELD / (width * sizeof(float)) / span, 1) * span, cols);
    bool is_whole = held >= cols;  // sums go back at once; otherwise all have to wait for the last columns
    float* tile = tile_memory.take<float>((held + LANES) * width);
    float* sums = sums_memory.take<float>(((is_whole ? w.block : to - from) * w.height + LANES) * width);
    int32_t* next = next_memory.take<int32_t>(to - from);
    int32_t* rows = rows_memory.take<int32_t>(w.block * w.height);
    for (int64_t g = from; g < to; g++) next[g - from] = w.start(g);
    for (int64_t begin = 0; begin < cols; begin += held) {
      int64_t end = std::min(begin + held, cols);
      turn_over(x, w.cols, begin, end, token, count, width, tile);
      for (int64_t g = from; g < to; g += w.block) {
        int64_t last = std::min(g + w.block, to), size = w.height * width;
        float* at = is_whole ? sums : sums + (g - from) * size;
        if (end >= cols && !is_past)  // their lines of the cache are fetched while sums are made
          for (int64_t t = token; t < token + count; t++)
            for (int64_t row = g * w.height; row < std::min(last * w.height, w.rows); row += 64 / sizeof(Value))
              __builtin_prefetch(y + t * w.rows + row, 1);
        for (int64_t k = begin; k < end; k += span)
          with_vectors<Weight::most>(width / LANES, [&](auto vectors) {
            const float* columns = tile + (k - begin) * width;
            w.template add<vectors()>(
                columns, k, std::min(k + span, end), g, last, next + (g - from), at, number < threads);
          });
        if (end < cols) continue;
        bool is_moved = w.rows_of(g, last, rows);
        turn_back(at, (last - g) * w.height, width, g * w.height, is_moved ? rows : nullptr, bias, activation, token,
                  count, w.rows, is_past, y);
      }
    }
    if (is_past) finish_stores();
  }
}
