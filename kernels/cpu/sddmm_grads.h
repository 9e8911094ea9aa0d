// G^T X where weights are stored, with gradients that stay in registers.
//
// Lanes of a vector are HEIGHT rows of a group times APART tokens. STEPS such vectors of G are a tile of tokens, and each
// column of the group multiplies them with its own tokens, repeated for every row. So a stored weight needs a share of one
// sum over lanes, not a sum of its own, and columns come in spans that a cache holds.
#pragma once

#include <omp.h>

#include "floats.h"
#include "matrix.h"
#include "tile.h"

namespace {

// Bytes of columns that are multiplied with one group after the other. Four rows use a column often enough for it to come
// from the second-level cache, asked for one round ahead.
constexpr int64_t FIRST_CACHE = 36 << 10, SECOND_CACHE = 192 << 10;

template <int HEIGHT, bool IS_BLOCK>
struct Dots {
  static constexpr int APART = LANES / HEIGHT;  // tokens of a vector, and columns whose sums are made together
  static constexpr int STEPS = HEIGHT > 1 ? 16 : 8;  // there are 32 registers where HEIGHT > 1
  static constexpr int WIDTH = STEPS * APART;  // tokens of a tile
  static constexpr int TOGETHER = APART < 4 ? APART : 4;
  static constexpr bool IS_FAR = HEIGHT == 4 && !IS_BLOCK;  // whether columns come from the second-level cache
  static constexpr int64_t SPAN = IS_FAR ? SECOND_CACHE : FIRST_CACHE;
  const Matrix& w;
  float* values;

  // A group's tokens times those of TOGETHER columns, summed over the steps in two chains each.
  [[gnu::always_inline]] static void multiply(const Vec (&grad)[STEPS], const float* const* x, Vec* sums) {
    Vec even[TOGETHER] = {}, odd[TOGETHER] = {};
#pragma GCC unroll 16
    for (int s = 0; s < STEPS; s += 2)
#pragma GCC unroll 4
      for (int c = 0; c < TOGETHER; c++) {
        even[c] += grad[s] * repeated<APART>(x[c] + s * APART);
        odd[c] += grad[s + 1] * repeated<APART>(x[c] + (s + 1) * APART);
      }
#pragma GCC unroll 4
    for (int c = 0; c < TOGETHER; c++) sums[c] = even[c] + odd[c];
  }

  // Lane i of a round adds the two lanes of `a` that differ in bit S, or of `b`, where i has that bit.
  template <int S, int... I>
  static Vec halves(Vec a, Vec b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, ((I & S) ? LANES + I : I)...) +
           __builtin_shufflevector(a, b, ((I & S) ? LANES + (I ^ S) : (I ^ S))...);
  }

  // Sums over tokens of COUNT columns at once, lane `row * APART + column`.
  template <int S, int COUNT>
  static Vec add_tokens(Vec* sums) {
    if constexpr (S == APART) {
      return sums[0];
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < COUNT; i += 2)
        sums[i / 2] = halves<S>(sums[i], i + 1 < COUNT ? sums[i + 1] : Vec{}, std::make_integer_sequence<int, LANES>());
      return add_tokens<2 * S, (COUNT + 1) / 2>(sums);
    }
  }

  template <int... I>
  static Vec by_column(Vec v, std::integer_sequence<int, I...>) {  // [row][column] to [column][row]
    return __builtin_shufflevector(v, v, (I % HEIGHT * APART + I / HEIGHT)...);
  }

  // LANES stored rows of one token, from stored row `first` on.
  template <class Value>
  Vec rows_of(const Value* token, int64_t first) const {
    float part[LANES] = {};
    int64_t count = std::min<int64_t>(LANES, w.groups() * w.n - first);
    for (int64_t l = 0; l < count; l++) {
      int64_t row = w.row(first + l);
      if (row < w.rows) part[l] = to_float(token[row]);
    }
    return load<Vec>(part);
  }

  // Gradients `[token][row]` of groups `from` to `to` as `[piece of HEIGHT rows][STEPS][HEIGHT][APART]`, `count` tokens from
  // `first` on. A square of tokens and rows has bits `step, token` for its vectors and `piece, row` for its lanes; those of
  // token and piece change places.
  template <class Value>
  [[gnu::noinline]] void interleave(
      const Value* grad, int64_t from, int64_t to, int64_t first, int64_t count, float* out) const {
    for (int64_t t = 0; t < WIDTH; t += LANES)
      for (int64_t i = from * w.n; i < to * w.n; i += LANES) {
        const Value* here = grad + (first + t) * w.rows;
        bool is_run = w.run % HEIGHT == 0 && i + LANES <= to * w.n && w.row(i) + LANES <= w.rows;
        for (int64_t l = HEIGHT; is_run && l < LANES; l += HEIGHT) is_run = w.row(i + l) == w.row(i) + l;
        Vec block[LANES];
        if (is_run && t + LANES <= count) {
#pragma GCC unroll 16
          for (int j = 0; j < LANES; j++) block[j] = load_floats(here + j * w.rows + w.row(i));
        } else {
#pragma GCC unroll 1
          for (int j = 0; j < LANES; j++) block[j] = t + j < count ? rows_of(here + j * w.rows, i) : Vec{};
        }
        exchange_tokens<1>(block);
        float* to_piece = out + (i - from * w.n) / HEIGHT * STEPS * LANES + t / APART * LANES;
        for (int p = 0; p < APART && i + p * HEIGHT < to * w.n; p++)
          for (int s = 0; s < LANES / APART; s++)
            store(
                to_piece + (p * STEPS + s) * LANES,
                by_row(block[s * APART + p], std::make_integer_sequence<int, LANES>()));
      }
  }

  template <int BIT>
  static void exchange_tokens(Vec (&block)[LANES]) {
    if constexpr (BIT < APART) {
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++)
        if (!(j & BIT)) exchange<BIT * HEIGHT>(block[j], block[j + BIT], std::make_integer_sequence<int, LANES>());
      exchange_tokens<2 * BIT>(block);
    }
  }

  template <int... I>
  static Vec by_row(Vec v, std::integer_sequence<int, I...>) {  // [token][row] to [row][token]
    return __builtin_shufflevector(v, v, (I % APART * HEIGHT + I / APART)...);
  }

  template <int... I>
  static Bits lanes(std::integer_sequence<int, I...>) {
    return Bits{I...};
  }

  // Adds what a tile gives for some slots of each group, `begin[g]` to `end[g]`; `last` is beyond all of theirs.
  [[gnu::noinline]] void add(
      const float* grads, const float* tile, int64_t groups, const int32_t* begin, const int32_t* end,
      int64_t last) const {
    const int64_t n = w.n, m = IS_BLOCK ? w.m : 1, size = n * m;
    const Bits lane = lanes(std::make_integer_sequence<int, LANES>());
    Vec sums[APART] = {};  // once: what is left of earlier columns goes into lanes that are not used
    for (int64_t g = 0; g < groups; g++, grads += n * WIDTH)
      for (int64_t i = 0; i < n && begin[g] < end[g]; i += HEIGHT) {
        Vec grad[STEPS];
#pragma GCC unroll 16
        for (int s = 0; s < STEPS; s++) grad[s] = load<Vec>(grads + i * WIDTH + s * LANES);
        for (int64_t slot = begin[g]; slot < end[g]; slot += IS_BLOCK ? 1 : APART)
          for (int64_t j = 0; j < m; j += APART) {  // columns of one block, or one of several
            int64_t count = std::min<int64_t>(APART, IS_BLOCK ? m - j : end[g] - slot);
            const float* x[APART];
            for (int64_t c = 0; c < APART; c++) {
              int64_t near = std::min(c, count - 1);  // beyond `count` the last one, for nothing
              x[c] = tile + (IS_BLOCK ? w.columns[slot] * m + j + near : w.columns[slot + near]) * WIDTH;
              asm("" : "+r"(x[c]));  // one by one: gcc would make vectors of addresses, and take them apart again
            }
            if (IS_FAR && slot + 2 * APART <= last)
#pragma GCC unroll 4
              for (int64_t c = 0; c < APART; c++) {
                const float* soon = tile + w.columns[slot + APART + c] * WIDTH;
#pragma GCC unroll 4
                for (int64_t l = 0; l < WIDTH; l += 64 / sizeof(float)) __builtin_prefetch(soon + l);
              }
#pragma GCC unroll 1
            for (int64_t c = 0; c < count; c += TOGETHER) multiply(grad, x + c, sums + c);
            Vec found = APART > 8 && count <= 8 ? add_tokens<1, (APART > 8 ? 8 : APART)>(sums) : add_tokens<1, APART>(sums);
            found = by_column(found, std::make_integer_sequence<int, LANES>());
            float* out = values + slot * size + i * m + j;
            if (size == HEIGHT && slot + APART <= last) {  // zero is added to slots beyond, which are this thread's too
              store(out, load<Vec>(out) + (Vec)((Bits)found & (Bits)(lane < (uint32_t)(count * HEIGHT))));
              continue;
            }
            float parts[LANES];
            store(parts, found);
            for (int64_t c = 0; c < count; c++)
              for (int h = 0; h < HEIGHT; h++) out[IS_BLOCK ? h * m + c : c * size + h] += parts[c * HEIGHT + h];
          }
      }
  }
};

template <int HEIGHT, bool IS_BLOCK, class Value>
void by_grads(
    const Value* grad, const Value* x, const Matrix& w, Value* values, int64_t tokens, int64_t threads) {
  using Tile = Dots<HEIGHT, IS_BLOCK>;
  static thread_local Scratch floats_memory;
  int64_t groups = w.groups(), count = w.pointers[groups] * w.n * w.m, wide = (w.cols + w.m - 1) / w.m;
  float* floats = floats_of(values, count, floats_memory);
  std::fill(floats, floats + count, 0.0f);
  Tile weight{w, floats};
  int64_t span = std::max<int64_t>(Tile::SPAN / sizeof(float) / Tile::WIDTH / w.m, 1), spans = (wide + span - 1) / span;
  int64_t parts = std::min(threads, groups);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int64_t part = 0; part < parts; part++) {
    static thread_local Scratch tile_memory, grads_memory, ends_memory;
    int64_t from = groups * part / parts, to = groups * (part + 1) / parts;
    float* tile = tile_memory.take<float>((wide * w.m + LANES) * Tile::WIDTH);
    float* grads = grads_memory.take<float>((to - from) * w.n * Tile::WIDTH);
    int32_t* ends = ends_memory.take<int32_t>((spans + 1) * (to - from));
    find_ends(w, from, to, span, spans, ends);
    for (int64_t token = 0; token < tokens; token += Tile::WIDTH) {
      int64_t here = std::min<int64_t>(Tile::WIDTH, tokens - token);
      turn_over(x, w.cols, 0, wide * w.m, token, here, Tile::WIDTH, tile);
      weight.interleave(grad, from, to, token, here, grads);
      for (int64_t k = 0; k < spans; k++)
        weight.add(grads, tile, to - from, ends + k * (to - from), ends + (k + 1) * (to - from), w.pointers[to]);
    }
  }
  from_floats(floats, count, values);
}

}  // namespace
