// Y = X W^T for W in column vectors N x 1 and in blocks N x M.
//
// Tokens come in tiles that are turned over, `tile[column][token]`. A stored block multiplies rows of the tile by its
// values: HEIGHT rows of outputs times VECTORS vectors of tokens are summed in registers, with one broadcast a value.
// Four rows use a vector of tokens often enough for it to come from the second-level cache; for fewer, columns go in
// spans that fit the first, and between spans the sums wait in a tile of outputs.
#include "few_tokens.h"
#include "floats.h"
#include "many_tokens.h"

namespace {

// Bytes that a span of columns may take of the first-level cache (twice that where little is stored), and of the second.
constexpr int64_t FIRST_CACHE = 36 << 10, SECOND_CACHE = 512 << 10;
constexpr int64_t ENOUGH = 24;     // slots of a group in a span that are worth the look at the next group
constexpr int64_t LONGEST = 1024;  // columns of a span, since a sum of more rounds more
constexpr int64_t BLOCK = 64;      // rows whose sums are made together
constexpr int64_t AHEAD = 2;       // groups between asking for their slots and multiplying with them

constexpr int most_vectors(int height) {
  // sums, a vector of tokens for each, and one broadcast have to fit the registers
  return height == 4 && REGISTERS == 16 ? 3 : height == 1 && REGISTERS == 32 ? 8 : 6;
}

template <int HEIGHT, bool IS_BLOCK>
struct Vectors {
  const Matrix& w;
  const float* values;
  const int32_t* stored;  // which stored group has the rows of each group of outputs
  int64_t rows, cols, height, groups, block;
  static constexpr int most = most_vectors(HEIGHT);

  Vectors(const Matrix& w, const float* values, const int32_t* stored)
      : w(w), values(values), stored(stored), rows(w.rows), cols(w.cols), height(w.n), groups(w.groups()),
        block(std::max<int64_t>(BLOCK / w.n, 1)) {}

  int64_t span(int64_t width) const {
    int64_t column = width * sizeof(float), slots = w.pointers[groups] + 1;
    int64_t size = std::min(SECOND_CACHE / column, LONGEST);
    if (HEIGHT < 4) size = std::clamp(ENOUGH * groups * cols / slots, FIRST_CACHE / column, 2 * FIRST_CACHE / column);
    int64_t spans = (cols + size - 1) / size;
    return rounded((cols + spans - 1) / spans);
  }
  int64_t rounded(int64_t columns) const { return (columns + w.m - 1) / w.m * w.m; }
  int32_t start(int64_t group) const { return w.pointers[stored[group]]; }

  bool rows_of(int64_t from, int64_t to, int32_t* into) const {
    for (int64_t g = from; w.run < w.n && g < to; g++)
      for (int64_t i = 0; i < w.n; i++) *into++ = (int32_t)w.row(stored[g] * w.n + i);
    return w.run < w.n;
  }

  template <int VECTORS>
  [[gnu::noinline]] void add(
      const float* tile, int64_t k, int64_t end, int64_t from, int64_t to, int32_t* next, float* sums,
      bool is_cold) const {
    const uint32_t limit = (uint32_t)(end / w.m);
    const int64_t m = IS_BLOCK ? w.m : 1, n = w.n, size = n * m;
    const uintptr_t zero = (uintptr_t)tile - k * VECTORS * sizeof(Vec);  // where column 0 would be
    for (int64_t g = from; g < to; g++) {
      int64_t begin = next[g - from], last = w.pointers[stored[g] + 1];
      if (HEIGHT == 1 && g + 2 < to) {
        for (int v = 0; v < VECTORS; v++) __builtin_prefetch(sums + 2 * VECTORS * LANES + v * LANES, 1);
        __builtin_prefetch(values + next[g + 2 - from]);
        __builtin_prefetch(w.columns + next[g + 2 - from]);
      }
      if (HEIGHT == 4 && is_cold && g + AHEAD < groups) {  // groups lie by their lengths, so that nothing foresees where
        int64_t soon = w.pointers[stored[g + AHEAD]], after = w.pointers[stored[g + AHEAD] + 1];
        for (int64_t i = soon * size; i < after * size; i += 16) __builtin_prefetch(values + i, 0, 2);
        for (int64_t i = soon; i < after; i += 32) __builtin_prefetch(w.columns + i, 0, 2);
      }
      const int16_t *first = w.columns + begin, *at = first;
      for (int64_t i = 0; i < n; i += HEIGHT, sums += HEIGHT * VECTORS * LANES)
        at = add_rows<VECTORS>(
            zero, first, first + (last - begin), limit, values + begin * size + i * m, size, m, sums, !k);
      next[g - from] = (int32_t)(begin + (at - first));
    }
  }

  // HEIGHT rows of a group, from one column on as far as `limit`; returns where the next span goes on.
  template <int VECTORS>
  [[gnu::always_inline]] static const int16_t* add_rows(
      uintptr_t zero, const int16_t* at, const int16_t* last, uint32_t limit, const float* value, int64_t size, int64_t m,
      float* sums, bool is_first) {
    constexpr int WIDTH = VECTORS * LANES;
    constexpr int CHAINS = chains(HEIGHT * VECTORS);
    Vec acc[CHAINS][HEIGHT][VECTORS];
#pragma GCC unroll 4
    for (int c = 0; c < CHAINS; c++)
#pragma GCC unroll 4
      for (int h = 0; h < HEIGHT; h++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) acc[c][h][v] = Vec{};
    auto add = [&](Vec(&to)[HEIGHT][VECTORS], int64_t column, const float* value) __attribute__((always_inline)) {
      const float* x = (const float*)(zero + column * m * (WIDTH * sizeof(float)));
      for (int64_t c = 0; c < m; c++, x += WIDTH, value++) {
        if constexpr (HEIGHT <= VECTORS) {  // beside the sums, registers hold whichever are fewer, values or tokens
#pragma GCC unroll 8
          for (int v = 0; v < VECTORS; v++) {
            Vec tokens = load<Vec>(x + v * LANES);
#pragma GCC unroll 4
            for (int h = 0; h < HEIGHT; h++) to[h][v] += value[h * m] * tokens;
          }
        } else {
          Vec tokens[VECTORS];
#pragma GCC unroll 8
          for (int v = 0; v < VECTORS; v++) tokens[v] = load<Vec>(x + v * LANES);
#pragma GCC unroll 4
          for (int h = 0; h < HEIGHT; h++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) to[h][v] += value[h * m] * tokens[v];
        }
      }
    };
    // what fills up is -1, and so beyond any limit
    if constexpr (CHAINS > 1)
      for (; at + CHAINS <= last && (uint32_t)at[CHAINS - 1] < limit; at += CHAINS, value += CHAINS * size)
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; c++) add(acc[c], at[c], value + c * size);
    for (; at < last && (uint32_t)*at < limit; at++, value += size) add(acc[0], *at, value);
#pragma GCC unroll 4
    for (int h = 0; h < HEIGHT; h++)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) {
        float* sum = sums + h * WIDTH + v * LANES;
        Vec found = acc[0][h][v];
#pragma GCC unroll 4
        for (int c = 1; c < CHAINS; c++) found += acc[c][h][v];
        store(sum, is_first ? found : found + load<Vec>(sum));
      }
    return at;
  }
};

template <int HEIGHT, class Value>
void product_of_many(
    const Value* x, const Matrix& w, const Value* bias, int64_t activation, Value* y, int64_t tokens, int64_t threads) {
  static thread_local Scratch order_memory, values_memory;
  int64_t groups = w.groups(), count = w.pointers[groups] * w.n * w.m;
  int32_t* stored = order_memory.take<int32_t>(groups);
  for (int64_t g = 0; g < groups; g++) stored[w.run == w.n ? w.order[g] : g] = (int32_t)g;
  const float* values = as_floats(static_cast<const Value*>(w.values), count, values_memory, threads);
  auto run = [&](auto weight) { multiply_tiles(weight, x, bias, activation, y, tokens, threads); };
  if (w.m > 1) return run(Vectors<4, true>(w, values, stored));
  return run(Vectors<HEIGHT, false>(w, values, stored));
}

template <class Value>
void product(
    const Value* x, const Matrix& w, const Value* bias, int64_t activation, Value* y, int64_t tokens, int64_t threads) {
  if (!tokens || !w.rows) return;
  if (w.m > 1 && tokens <= few(4)) return product_of_few<4, true>(x, w, bias, activation, y, tokens, threads);
  auto run = [&](auto height) {
    if (tokens <= few(height())) return product_of_few<height(), false>(x, w, bias, activation, y, tokens, threads);
    return product_of_many<height()>(x, w, bias, activation, y, tokens, threads);
  };
  if (w.n == 1) return run(std::integral_constant<int, 1>());
  if (w.n == 2) return run(std::integral_constant<int, 2>());
  return run(std::integral_constant<int, 4>());
}

}  // namespace

extern "C" void spmm(const Weight* weight, const void* x, void* y, int64_t tokens, int64_t threads) {
  const Weight& p = *weight;
  Matrix w = p.matrix();
  if (p.is_half)
    product<bf16>((const bf16*)x, w, (const bf16*)p.bias, p.activation, (bf16*)y, tokens, threads);
  else
    product<float>((const float*)x, w, (const float*)p.bias, p.activation, (float*)y, tokens, threads);
}
