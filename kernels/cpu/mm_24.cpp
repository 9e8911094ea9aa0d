// Y = X W^T for W packed 2:4 with bitmasks, as kernels/layouts_24.py has them: per row two values of every four columns,
// and four bits for each four columns that tell which two.
//
// With many tokens a value multiplies the row of the tile that its place says; columns go in spans that stay in the
// first-level cache. With few, a vector of values multiplies the inputs of its columns, which are picked out of two
// vectors by an index computed from the bits.
#include "floats.h"
#include "many_tokens.h"

namespace {

constexpr int64_t FIRST_CACHE = 36 << 10;  // bytes that a span of columns may take
constexpr int64_t FEW = 12;  // tokens up to which they are not turned over, but multiplied four at a time

// The two places of a quad, by its four bits: two bits each, so that a shift looks them up.
constexpr uint32_t places(bool is_second) {
  uint32_t found = 0;
  for (uint32_t bits = 0; bits < 16; bits++) {
    uint32_t first = bits & 1 ? 0 : bits & 2 ? 1 : 2, second = bits & 8 ? 3 : bits & 4 ? 2 : 1;
    found |= (is_second ? second : first) << 2 * bits;
  }
  return found;
}

struct TwoFour {
  const float* values;
  const uint16_t* words;  // of sixteen columns
  int64_t rows, cols, stride, height = 1, groups = rows, block = 64;  // `stride` values a row
  static constexpr int most = REGISTERS == 32 ? 8 : 6;

  int64_t span(int64_t width) const { return rounded(FIRST_CACHE / (width * sizeof(float)) - 15); }
  int64_t rounded(int64_t columns) const { return (columns + 15) / 16 * 16; }
  int32_t start(int64_t) const { return 0; }
  bool rows_of(int64_t, int64_t, int32_t*) const { return false; }

  template <int VECTORS>
  [[gnu::noinline]] void add(
      const float* tile, int64_t k, int64_t end, int64_t from, int64_t to, int32_t*, float* sums, bool) const {
    constexpr int WIDTH = VECTORS * LANES, CHAINS = chains(VECTORS);
    int32_t first[16], second[16];
    for (int bits = 0; bits < 16; bits++) {
      first[bits] = (places(false) >> 2 * bits & 3) * WIDTH;
      second[bits] = (places(true) >> 2 * bits & 3) * WIDTH;
    }
    for (int64_t row = from; row < to; row++, sums += WIDTH) {
      const float *value = values + row * stride + k / 2, *x = tile;
      const uint16_t* word = words + row * (stride / 8) + k / 16;
      Vec acc[CHAINS][VECTORS];
#pragma GCC unroll 4
      for (int c = 0; c < CHAINS; c++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) acc[c][v] = Vec{};
      for (int64_t column = k; column < end; column += 16) {
        uint32_t bits = *word++;
#pragma GCC unroll 4
        for (int quad = 0; quad < 4; quad++, bits >>= 4, value += 2, x += 4 * WIDTH) {
          const float *one = x + first[bits & 15], *two = x + second[bits & 15];
#pragma GCC unroll 8
          for (int v = 0; v < VECTORS; v++) acc[2 * quad % CHAINS][v] += value[0] * load<Vec>(one + v * LANES);
#pragma GCC unroll 8
          for (int v = 0; v < VECTORS; v++) acc[(2 * quad + 1) % CHAINS][v] += value[1] * load<Vec>(two + v * LANES);
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) {
        Vec found = acc[0][v];
#pragma GCC unroll 4
        for (int c = 1; c < CHAINS; c++) found += acc[c][v];
        store(sums + v * LANES, k ? found + load<Vec>(sums + v * LANES) : found);
      }
    }
  }
};

// For each lane of a vector of values, where of its quad's four columns its input is.
static inline Bits index_of(uint32_t mask) {
  Bits shift, table;
  for (int i = 0; i < LANES; i++) shift[i] = i / 2 * 4, table[i] = places(i % 2);
  return table >> ((mask + Bits{}) >> shift << 1 & 30);
}

// Inputs of a vector of values, as `arranged` has them. On AVX2 quads change places, so that each half of a register picks
// from its own columns, which is one instruction where picking from all takes three.
#if defined(__AVX2__) && !defined(__AVX512F__)
static inline int64_t arranged(int64_t column) { return (column & ~12) | (column & 4) << 1 | (column & 8) >> 1; }
static inline Vec picked(const float* from, Bits index) {
  Vec even = _mm256_permutevar_ps(load<Vec>(from), (__m256i)index);
  Vec odd = _mm256_permutevar_ps(load<Vec>(from + LANES), (__m256i)index);
  return _mm256_blend_ps(even, odd, 0xcc);
}
#else
static inline int64_t arranged(int64_t column) { return column; }
static inline Vec picked(const float* from, Bits index) {
  Bits base;
  for (int i = 0; i < LANES; i++) base[i] = i / 2 * 4;
  return __builtin_shuffle(load<Vec>(from), load<Vec>(from + LANES), (index & 3) + base);
}
#endif

// Bits of as many values, from the one on.
static inline uint32_t mask_at(const uint16_t* words, int64_t value) {
  if constexpr (LANES == 16) return load<uint32_t>(words + value / 8);
  return (uint32_t)words[value / 8] >> (value % 8 * 2);
}

template <int TOKENS, class Value>
void product_of_few(
    const Value* x, const Value* values, const TwoFour& w, const Value* bias, int64_t activation, Value* y,
    int64_t threads) {
  static thread_local Scratch sums_memory, inputs_memory;
  int64_t wide = 2 * w.stride, high = w.rows + LANES;
  float* sums = sums_memory.take<float>(TOKENS * high);
  float* inputs = inputs_memory.take<float>(TOKENS * wide);  // as floats, and zero beyond the last column
  for (int t = 0; t < TOKENS; t++)
    for (int64_t k = 0; k < wide; k++)
      inputs[t * wide + arranged(k)] = k < w.cols ? to_float(x[t * w.cols + k]) : 0.0f;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t first = 0; first < w.rows; first += LANES) {
    Vec found[TOKENS][LANES] = {};
    for (int64_t i = 0; i < std::min<int64_t>(LANES, w.rows - first); i++) {
      const Value* value = values + (first + i) * w.stride;
      const uint16_t* words = w.words + (first + i) * (w.stride / 8);
      Vec acc[2][TOKENS] = {};
      auto add = [&](int chain, int64_t at) __attribute__((always_inline)) {
        Bits index = index_of(mask_at(words, at));
        Vec v = load_floats(value + at);
#pragma GCC unroll 4
        for (int t = 0; t < TOKENS; t++) acc[chain][t] += v * picked(inputs + t * wide + 2 * at, index);
      };
      for (int64_t at = 0; at < w.stride; at += 2 * LANES) {  // `stride` is a multiple of 32
        add(0, at);
        add(1, at + LANES);
      }
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; t++) found[t][i] = acc[0][t] + acc[1][t];
    }
    for (int t = 0; t < TOKENS; t++) store(sums + t * high + first, totals(found[t]));
  }
  finish(sums, high, TOKENS, bias, activation, y, w.rows);
}

template <class Value>
void product(
    const Value* x, const Value* values, TwoFour w, const Value* bias, int64_t activation, Value* y, int64_t tokens,
    int64_t threads) {
  if (!tokens || !w.rows) return;
  if (tokens <= FEW) {
    for (; tokens > 0; tokens -= 4, x += 4 * w.cols, y += 4 * w.rows) {
      if (tokens >= 4) product_of_few<4>(x, values, w, bias, activation, y, threads);
      if (tokens == 3) product_of_few<3>(x, values, w, bias, activation, y, threads);
      if (tokens == 2) product_of_few<2>(x, values, w, bias, activation, y, threads);
      if (tokens == 1) product_of_few<1>(x, values, w, bias, activation, y, threads);
    }
    return;
  }
  static thread_local Scratch memory;
  w.values = as_floats(values, w.rows * w.stride, memory, threads);
  multiply_tiles(w, x, bias, activation, y, tokens, threads);
}

}  // namespace

// `_Weight` of mm_24.py: what one product has in common with the next.
struct Weight24 {
  const void* values;
  const void* bias;
  int64_t rows, cols, padded_rows, padded_cols, is_half, activation;
};

extern "C" void mm_24(const Weight24* weight, const void* x, void* y, int64_t tokens, int64_t threads) {
  const Weight24& p = *weight;
  int64_t stride = p.padded_cols / 2, size = p.is_half ? 2 : 4;
  const char* words = (const char*)p.values + p.padded_rows * stride * size;
  TwoFour w{nullptr, (const uint16_t*)words, p.rows, p.cols, stride};
  if (p.is_half)
    product((const bf16*)x, (const bf16*)p.values, w, (const bf16*)p.bias, p.activation, (bf16*)y, tokens, threads);
  else
    product((const float*)x, (const float*)p.values, w, (const float*)p.bias, p.activation, (float*)y, tokens, threads);
}
