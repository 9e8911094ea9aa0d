// Y = X W^T for W in column vectors N x 1 and in blocks N x M, as sparse_ops/blocks/packed_blocks.py stores them.
//
// Tokens come in tiles that are turned over, `tile[column][token]`. A stored block multiplies rows of the tile by its
// values: HEIGHT rows of outputs times VECTORS vectors of tokens are summed in registers, with one broadcast a value. Four
// rows use a vector of tokens often enough for it to come from the second-level cache; for fewer, columns go in spans that
// fit the first, and between spans the sums wait in a tile of outputs. Each sum is made in one order, however many threads.
#include <omp.h>

#include <climits>
#include <type_traits>

#include "tile.h"

namespace {

constexpr int64_t CACHE = 32 << 10;  // bytes of the first-level cache that a span of columns may take
constexpr int64_t CHUNK = 256;       // rows of outputs between two looks at the same span

// As in PackedBlocks; `columns` are int16 unless `wide`.
struct Matrix {
  const void* values;
  const void* columns;
  const int32_t* pointers;
  const int32_t* order;
  int64_t rows, cols, n, m, run, wide;

  int64_t groups() const { return (rows + n - 1) / n; }
  int64_t column(int64_t slot) const {
    return wide ? static_cast<const int32_t*>(columns)[slot] : static_cast<const int16_t*>(columns)[slot];
  }
};

constexpr int most_vectors(int height) {
  // sums, a vector of tokens for each, and one broadcast have to fit the registers
  return height >= 8 ? (REGISTERS == 32 ? 3 : 1) : height == 4 ? (REGISTERS == 32 ? 6 : 3) : 6;
}

// Some groups of rows, and what of their slots the inner loop wants, in memory of the thread.
struct Chunk {
  struct Group {
    const float* values;   // of its slots
    const uint32_t* next;  // offset of its next slot's first row in the tile, from which the next span of columns goes on
    const uint32_t* end;   // without those that only fill up
  };
  Scratch groups_memory, offsets_memory, values_memory, rows_memory;
  int64_t count;
  Group* groups;
  int32_t* rows;  // of the matrix, for each row of the chunk; null where they lie one after the other
};

template <int HEIGHT, int VECTORS>
void add_span(
    const float* tile, const float* w, int64_t size, int64_t m, const uint32_t* from, const uint32_t* to, float* sums,
    bool is_first) {
  constexpr int WIDTH = VECTORS * LANES;
  Vec acc[HEIGHT][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) acc[i][v] = Vec{};
  for (; from < to; from++, w += size) {
    const float* x = tile + *from;
    for (int64_t c = 0; c < m; c++, x += WIDTH) {
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) {
        Vec tokens = load<Vec>(x + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < HEIGHT; i++) acc[i][v] += w[i * m + c] * tokens;
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < HEIGHT; i++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
      float* sum = sums + i * WIDTH + v * LANES;
      store(sum, is_first ? acc[i][v] : acc[i][v] + load<Vec>(sum));
    }
}


template <int HEIGHT, int VECTORS>
void add_spans(const Matrix& w, Chunk& chunk, const float* tile, float* sums) {
  constexpr int WIDTH = VECTORS * LANES;
  // with four rows a vector of tokens is used often enough to come from the second-level cache
  int64_t size = w.n * w.m, span = HEIGHT >= 4 ? w.cols : std::max<int64_t>(CACHE / (WIDTH * 4), w.m);
  bool is_first = true;
  for (int64_t k = 0; k < w.cols || is_first; k += span, is_first = false) {
    uint32_t limit = (uint32_t)((k + span) * WIDTH);
    for (int64_t g = 0; g < chunk.count; g++) {
      Chunk::Group& group = chunk.groups[g];
      const uint32_t* to = group.next;
      if (span >= w.cols) to = group.end;
      while (to < group.end && *to < limit) to++;
      for (int64_t i = 0; i < w.n; i += HEIGHT)
        add_span<HEIGHT, VECTORS>(
            tile, group.values + i * w.m, size, w.m, group.next, to, sums + (g * w.n + i) * WIDTH, is_first);
      group.values += (to - group.next) * size;
      group.next = to;
    }
  }
}

template <int HEIGHT>
void add_spans(const Matrix& w, Chunk& chunk, const float* tile, int64_t vectors, float* sums) {
  constexpr int MOST = most_vectors(HEIGHT);
  switch (vectors) {
    case 1: return add_spans<HEIGHT, 1>(w, chunk, tile, sums);
    case 2: return add_spans<HEIGHT, std::min(2, MOST)>(w, chunk, tile, sums);
    case 3: return add_spans<HEIGHT, std::min(3, MOST)>(w, chunk, tile, sums);
    case 4: return add_spans<HEIGHT, std::min(4, MOST)>(w, chunk, tile, sums);
    case 5: return add_spans<HEIGHT, std::min(5, MOST)>(w, chunk, tile, sums);
    default: return add_spans<HEIGHT, std::min(6, MOST)>(w, chunk, tile, sums);
  }
}

// The slots of groups [from, to), counted in the order of their outputs.
template <class Value>
void look_up(const Matrix& w, const int32_t* stored, int64_t from, int64_t to, int64_t width, Chunk& chunk) {
  int64_t count = chunk.count = to - from, slots = 0, size = w.n * w.m;
  for (int64_t g = from; g < to; g++) slots += w.pointers[stored[g] + 1] - w.pointers[stored[g]];
  chunk.groups = chunk.groups_memory.take<Chunk::Group>(count);
  uint32_t* offsets = chunk.offsets_memory.take<uint32_t>(slots);
  float* floats = std::is_same_v<Value, float> ? nullptr : chunk.values_memory.take<float>(slots * size);
  for (int64_t g = 0; g < count; g++) {
    int64_t first = w.pointers[stored[from + g]], last = w.pointers[stored[from + g] + 1];
    while (last > first && w.column(last - 1) < 0) last--;
    const Value* values = static_cast<const Value*>(w.values) + first * size;
    chunk.groups[g] = {(const float*)values, offsets, offsets + (last - first)};
    for (int64_t s = first; s < last; s++) *offsets++ = (uint32_t)(w.column(s) * w.m * width);
    if constexpr (!std::is_same_v<Value, float>) {
      chunk.groups[g].values = floats;
      for (int64_t i = 0; i < (last - first) * size; i++) *floats++ = to_float(values[i]);
    }
  }
  if (w.run < w.n) {
    chunk.rows = chunk.rows_memory.take<int32_t>(count * w.n + LANES);
    for (int64_t i = 0; i < count * w.n + LANES; i++) {
      bool is_there = i < count * w.n;
      int64_t at = is_there ? stored[from + i / w.n] * w.n + i % w.n : 0;
      chunk.rows[i] = is_there ? (int32_t)(w.order[at / w.run] * w.run + at % w.run) : INT32_MAX;
    }
  } else {
    chunk.rows = nullptr;
  }
}

constexpr int FEW = 4;      // tokens up to which they are not turned over
constexpr int CHAINS = 16;  // sums that are made side by side, for speed and since shorter sums round less

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
  typedef uint16_t Halves __attribute__((vector_size(8)));
  static Floats of(const float* from) { return load<Floats>(from); }
  static Floats of(const bf16* from) { return (Floats)(__builtin_convertvector(load<Halves>(from), Whole) << 16); }
};

// Outputs of HEIGHT rows of one group for TOKENS tokens: a vector has the rows of one column.
template <int HEIGHT, int TOKENS, class Value>
void multiply_rows(
    const Value* x, const Matrix& w, int64_t first, int64_t last, int64_t row, float (&out)[TOKENS][HEIGHT]) {
  using Rows = Column<HEIGHT>;
  constexpr int SIDE = CHAINS / (TOKENS == 3 ? 2 : TOKENS);
  typename Rows::Floats acc[SIDE][TOKENS] = {};
  const Value* v = static_cast<const Value*>(w.values) + row * w.m;
  auto add = [&](int chain, typename Rows::Floats values, int64_t k) {
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) acc[chain][t] += values * to_float(x[t * w.cols + k]);
  };
  if (w.m == 1) {
    int64_t slot = first;
    for (; slot + SIDE <= last; slot += SIDE) {
#pragma GCC unroll 16
      for (int chain = 0; chain < SIDE; chain++) add(chain, Rows::of(v + (slot + chain) * w.n), w.column(slot + chain));
    }
    for (int chain = 0; slot < last; slot++, chain++) add(chain, Rows::of(v + slot * w.n), w.column(slot));
  } else {
    for (int64_t slot = first; slot < last; slot++) {
      int64_t k = w.column(slot) * w.m, wide = std::min(w.m, w.cols - k);
      for (int64_t c = 0; c < wide; c++) {
        Value column[HEIGHT];
        for (int i = 0; i < HEIGHT; i++) column[i] = v[slot * w.n * w.m + i * w.m + c];
        add((int)(c % SIDE), Rows::of(column), k + c);
      }
    }
  }
  for (int half = SIDE / 2; half; half /= 2)
    for (int chain = 0; chain < half; chain++)
      for (int t = 0; t < TOKENS; t++) acc[chain][t] += acc[chain + half][t];
  for (int t = 0; t < TOKENS; t++) store(out[t], acc[0][t]);
}

template <int HEIGHT, int TOKENS, class Value>
void product_of_few(
    const Value* x, const Matrix& w, const Value* bias, int64_t activation, Value* y, int64_t threads) {
  int64_t groups = w.groups();
#pragma omp parallel for num_threads(threads) schedule(static, 16) if (threads > 1)
  for (int64_t g = 0; g < groups; g++) {
    int64_t first = w.pointers[g], last = w.pointers[g + 1];
    while (last > first && w.column(last - 1) < 0) last--;
    for (int64_t i = 0; i < w.n; i += HEIGHT) {
      float out[TOKENS][HEIGHT];
      multiply_rows<HEIGHT, TOKENS>(x, w, first, last, i, out);
      for (int j = 0; j < HEIGHT; j++) {
        int64_t at = g * w.n + i + j, row = w.order[at / w.run] * w.run + at % w.run;
        for (int t = 0; t < TOKENS && row < w.rows; t++) {
          float sum = out[t][j] + (bias ? to_float(bias[row]) : 0.0f);
          with_activation(activation, [&](auto activate) { store_float(y + t * w.rows + row, activate(all(sum))[0]); });
        }
      }
    }
  }
}

template <int HEIGHT, class Value>
void product_of_few(
    const Value* x, const Matrix& w, const Value* bias, int64_t activation, Value* y, int64_t tokens, int64_t threads) {
  switch (tokens) {
    case 1: return product_of_few<HEIGHT, 1>(x, w, bias, activation, y, threads);
    case 2: return product_of_few<HEIGHT, 2>(x, w, bias, activation, y, threads);
    case 3: return product_of_few<HEIGHT, 3>(x, w, bias, activation, y, threads);
    default: return product_of_few<HEIGHT, 4>(x, w, bias, activation, y, threads);
  }
}

template <class Value>
void product(
    const Value* x, const Matrix& w, const Value* bias, int64_t activation, Value* y, int64_t tokens, int64_t threads) {
  if (!tokens || !w.rows) return;
  int64_t height = w.n >= 4 ? 4 : w.n, groups = w.groups();
  if (tokens <= FEW) {
    if (height == 4) return product_of_few<4>(x, w, bias, activation, y, tokens, threads);
    if (height == 2) return product_of_few<2>(x, w, bias, activation, y, tokens, threads);
    return product_of_few<1>(x, w, bias, activation, y, tokens, threads);
  }
  int64_t vectors = vectors_of(tokens, height == 4 ? most_vectors(4) : most_vectors(1)), width = vectors * LANES;
  int64_t tiles = (tokens + width - 1) / width, high = (w.cols + w.m - 1) / w.m * w.m;
  int64_t size = std::max<int64_t>(CHUNK / w.n, 1), chunks = (groups + size - 1) / size;
  // which stored group has the rows of each group of outputs; where rows were grouped anew, groups stay as stored
  static thread_local Scratch order_memory;
  int32_t* stored = order_memory.take<int32_t>(groups);
  for (int64_t g = 0; g < groups; g++) stored[w.run == w.n ? w.order[g] : g] = (int32_t)g;
  bool by_tile = tiles >= threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t task = 0; task < (by_tile ? tiles : tiles * threads); task++) {
    static thread_local Scratch tile_memory, sums_memory;
    static thread_local Chunk chunk;
    int64_t number = by_tile ? task : task / threads, part = by_tile ? 0 : task % threads;
    int64_t first = number * width, count = std::min(width, tokens - first);
    float* tile = tile_memory.take<float>((high + LANES) * width);
    float* sums = sums_memory.take<float>((size * w.n + LANES) * width);
    turn_over(x, w.cols, high, first, count, width, tile);
    int64_t from = by_tile ? 0 : chunks * part / threads, to = by_tile ? chunks : chunks * (part + 1) / threads;
    for (int64_t c = from; c < to; c++) {
      int64_t g = c * size, end = std::min(groups, g + size);
      look_up<Value>(w, stored, g, end, width, chunk);
      if (height == 4)
        add_spans<4>(w, chunk, tile, vectors, sums);
      else if (height == 2)
        add_spans<2>(w, chunk, tile, vectors, sums);
      else
        add_spans<1>(w, chunk, tile, vectors, sums);
      Outputs outputs{g * w.n, chunk.rows, w.rows};
      int64_t rows = (chunk.count * w.n + LANES - 1) / LANES * LANES;
      with_activation(activation, [&](auto activate) {
        turn_back(activate, sums, rows, width, outputs, bias, first, count, w.rows, y);
      });
    }
  }
}

}  // namespace

extern "C" void spmm(
    const void* x, const void* values, const void* columns, const int32_t* pointers, const int32_t* order,
    const void* bias, void* y, int64_t tokens, int64_t rows, int64_t cols, int64_t n, int64_t m, int64_t run,
    int64_t wide, int64_t is_half, int64_t activation, int64_t threads) {
  Matrix w{values, columns, pointers, order, rows, cols, n, m, run, wide};
  if (is_half)
    product<bf16>((const bf16*)x, w, (const bf16*)bias, activation, (bf16*)y, tokens, threads);
  else
    product<float>((const float*)x, w, (const float*)bias, activation, (float*)y, tokens, threads);
}
