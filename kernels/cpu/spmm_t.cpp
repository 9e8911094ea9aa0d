// X = G W, the gradient of a product's input, for W in column vectors N x 1 and in blocks N x M.
//
// Tokens come in tiles that are turned over, `tile[row][token]`. Of a group HEIGHT rows times VECTORS vectors of tokens
// stay in registers, and each of its blocks adds to its own columns of the result, of which as many are made together as
// a cache holds. So each vector of results that is read and written takes HEIGHT multiplications.
#include <omp.h>

#include "floats.h"
#include "matrix.h"
#include "tile.h"

namespace {

// Bytes of results that are made together. Where tiles are narrow, and four rows share each load and store, the
// second-level cache is fast enough for them.
constexpr int64_t most_results(int height) { return REGISTERS == 16 && height > 1 ? 144 << 10 : 36 << 10; }

// Vectors of tokens, so that rows, sums and a value fit into the registers: 12, 3 and 1 of sixteen.
constexpr int most_vectors(int height) { return (REGISTERS == 32 ? 16 : height == 4 ? 12 : 8) / height; }

template <int HEIGHT, bool IS_BLOCK>
struct Rows {
  const Matrix& w;
  const int32_t* where;  // the row of each stored row
  const float* values;

  // Adds to results of columns below block column `limit`, whose column 0 would be at `zero`, from group after group.
  template <int VECTORS>
  [[gnu::noinline]] void add(const float* tile, uint32_t limit, int32_t* next, uintptr_t zero) const {
    constexpr int64_t WIDTH = VECTORS * LANES;
    const int64_t n = w.n, m = IS_BLOCK ? w.m : 1, size = n * m, groups = w.groups();
    for (int64_t g = 0; g < groups; g++) {
      const int16_t *first = w.columns + next[g], *last = w.columns + w.pointers[g + 1], *at = first;
      if (g + 2 < groups) {
        __builtin_prefetch(values + next[g + 2] * size);
        __builtin_prefetch(w.columns + next[g + 2]);
      }
      if (at == last || (uint32_t)*at >= limit) continue;  // what fills up is -1, and so beyond any limit
      for (int64_t i = 0; i < n; i += HEIGHT) {
        Vec rows[HEIGHT][VECTORS];
#pragma GCC unroll 4
        for (int h = 0; h < HEIGHT; h++)
#pragma GCC unroll 16
          for (int v = 0; v < VECTORS; v++) rows[h][v] = load<Vec>(tile + where[g * n + i + h] * WIDTH + v * LANES);
        const float* value = values + next[g] * size + i * m;
        for (at = first; at < last && (uint32_t)*at < limit; at++, value += size - m) {
          float* to = (float*)(zero + *at * m * (WIDTH * sizeof(float)));
          for (int64_t j = 0; j < m; j++, to += WIDTH, value++) {
            Vec sums[VECTORS];  // all of them, before the first store: it might change a value for all gcc knows
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; v++) sums[v] = load<Vec>(to + v * LANES);
#pragma GCC unroll 4
            for (int h = 0; h < HEIGHT; h++) {
              Vec factor = all(value[h * m]);
#pragma GCC unroll 16
              for (int v = 0; v < VECTORS; v++) sums[v] += factor * rows[h][v];
            }
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; v++) store(to + v * LANES, sums[v]);
          }
        }
      }
      next[g] += (int32_t)(at - first);
    }
  }
};

template <int HEIGHT, bool IS_BLOCK, class Value>
void product(const Value* grad, const Matrix& w, Value* y, int64_t tokens, int64_t threads) {
  static thread_local Scratch values_memory, where_memory;
  int64_t groups = w.groups(), high = groups * w.n, wide = (w.cols + w.m - 1) / w.m;
  const float* values =
      as_floats(static_cast<const Value*>(w.values), w.pointers[groups] * w.n * w.m, values_memory, threads);
  int32_t* where = where_memory.take<int32_t>(high);
  for (int64_t i = 0; i < high; i++) where[i] = (int32_t)w.row(i);
  Rows<HEIGHT, IS_BLOCK> weight{w, where, values};
  Tiles tiles(tokens, most_vectors(HEIGHT));
  bool is_past = goes_past(tokens * w.cols * sizeof(Value));
  int64_t parts = std::min(tiles.count >= threads ? 1 : threads, wide);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t task = 0; task < tiles.count * parts; task++) {
    static thread_local Scratch tile_memory, sums_memory, next_memory;
    int64_t number = task / parts, part = task % parts;
    int64_t token = tiles.begin(number), width = tiles.width(number), count = std::min(width, tokens - token);
    int64_t from = wide * part / parts, to = wide * (part + 1) / parts;
    int64_t span = std::max<int64_t>(most_results(HEIGHT) / (width * sizeof(float)) / w.m, 1);
    float* tile = tile_memory.take<float>((high + LANES) * width);
    float* sums = sums_memory.take<float>((span * w.m + LANES) * width);
    int32_t* next = next_memory.take<int32_t>(groups);
    for (int64_t g = 0; g < groups; g++) {
      const uint16_t *begin = (const uint16_t*)w.columns + w.pointers[g],
                     *end = (const uint16_t*)w.columns + w.pointers[g + 1];
      next[g] = w.pointers[g] + (from ? (int32_t)(std::lower_bound(begin, end, (uint16_t)from) - begin) : 0);
    }
    turn_over(grad, w.rows, 0, high, token, count, width, tile);
    for (int64_t k = from; k < to; k += span) {
      int64_t limit = std::min(k + span, to), columns = std::min(limit * w.m, w.cols) - k * w.m;
      std::fill(sums, sums + (limit - k) * w.m * width, 0.0f);
      with_vectors<most_vectors(HEIGHT)>(width / LANES, [&](auto vectors) {
        weight.template add<vectors()>(tile, (uint32_t)limit, next, (uintptr_t)sums - k * w.m * width * sizeof(float));
      });
      turn_back<Value>(sums, columns, width, k * w.m, nullptr, nullptr, NONE, token, count, w.cols, is_past, y);
    }
    if (is_past) finish_stores();
  }
}

template <class Value>
void product(const Value* grad, const Matrix& w, Value* y, int64_t tokens, int64_t threads) {
  if (!tokens || !w.cols) return;
  if (w.m > 1) return product<4, true>(grad, w, y, tokens, threads);
  if (w.n == 1) return product<1, false>(grad, w, y, tokens, threads);
  if (w.n == 2) return product<2, false>(grad, w, y, tokens, threads);
  return product<4, false>(grad, w, y, tokens, threads);
}

}  // namespace

extern "C" void spmm_t(const Weight* weight, const void* grad, void* y, int64_t tokens, int64_t threads) {
  if (weight->is_half)
    product<bf16>((const bf16*)grad, weight->matrix(), (bf16*)y, tokens, threads);
  else
    product<float>((const float*)grad, weight->matrix(), (float*)y, tokens, threads);
}
