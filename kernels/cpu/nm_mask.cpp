// The N best of every M consecutive values of a row; a tie keeps the lower index, NaN is above all.
//
// The rank of a value counts those of its group that are better. Where groups divide a vector, each lane is compared with
// the others of its group in turn; other groups are collected side by side, a lane for each.
#include <omp.h>

#include <cstring>

#include "simd.h"

namespace {

constexpr int64_t MOST = 32;  // values of a group
typedef int32_t Keys __attribute__((vector_size(LANES * 4)));

// An integer in the order of the values: 0 as -0, NaN above infinity.
static inline Keys order(Vec value, bool magnitude) {
  Keys bits = (Keys)value, size = bits & 0x7fffffff;  // of floats a thread may take denormals for zero
  if (magnitude) bits = size;
  Keys key = size == 0 ? size : bits < 0 ? bits ^ 0x7fffffff : bits;
  return size > 0x7f800000 ? Keys{} + 0x7fffffff : key;
}

// Of each lane the one that is D further in its group of M, round and round.
template <int M, int D, int... I>
static inline Keys turned(Keys keys, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(keys, keys, (I / M * M + (I + D) % M)...);
}

// 1 where that one has the lower index.
template <int M, int D, int... I>
static inline Keys is_lower(std::integer_sequence<int, I...>) {
  return Keys{((I + D) % M < I % M)...};
}

template <int M, int D = 1>
static inline Keys rank(Keys keys) {
  if constexpr (D == M) {
    return Keys{};
  } else {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    return rank<M, D + 1>(keys) - (turned<M, D>(keys, lanes) > keys - is_lower<M, D>(lanes));
  }
}

// Whole vectors of a row; returns how many values that was.
template <int M, class Value>
static int64_t mask_vectors(const Value* row, int64_t cols, int64_t n, bool magnitude, uint8_t* mask) {
  typedef uint8_t Flags __attribute__((vector_size(LANES)));
  int64_t k = 0;
  if constexpr (M <= LANES)
    for (; k + LANES <= cols; k += LANES) {
      Keys keep = rank<M>(order(load_floats(row + k), magnitude)) < (int32_t)n;
      store(mask + k, __builtin_convertvector(keep & 1, Flags));
    }
  return k;
}

template <class Value>
static void mask_groups(const Value* row, int64_t groups, int64_t n, int64_t m, bool magnitude, uint8_t* mask) {
  for (int64_t g = 0; g < groups; g += LANES) {
    int64_t here = groups - g < LANES ? groups - g : LANES;
    Keys keys[MOST], better[MOST];
    for (int64_t i = 0; i < m; i++) {
      float part[LANES] = {};
      for (int64_t l = 0; l < here; l++) part[l] = to_float(row[(g + l) * m + i]);
      keys[i] = order(load<Vec>(part), magnitude), better[i] = Keys{};
    }
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = i + 1; j < m; j++) {
        Keys first = keys[i] >= keys[j];  // -1 where it is
        better[j] -= first;
        better[i] += first + 1;
      }
    for (int64_t i = 0; i < m; i++) {
      Keys keep = better[i] < (int32_t)n;
      for (int64_t l = 0; l < here; l++) mask[(g + l) * m + i] = (uint8_t)(keep[l] & 1);
    }
  }
}

template <class Value>
static void mask_row(const Value* row, int64_t cols, int64_t n, int64_t m, bool magnitude, uint8_t* mask) {
  int64_t done = m == 2   ? mask_vectors<2>(row, cols, n, magnitude, mask)
                 : m == 4 ? mask_vectors<4>(row, cols, n, magnitude, mask)
                 : m == 8 ? mask_vectors<8>(row, cols, n, magnitude, mask)
                          : 0;
  mask_groups(row + done, (cols - done) / m, n, m, magnitude, mask + done);
}

template <class Value>
static void mask_rows(
    const Value* scores, int64_t rows, int64_t cols, int64_t n, int64_t m, bool magnitude, uint8_t* mask, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t r = 0; r < rows; r++) mask_row(scores + r * cols, cols, n, m, magnitude, mask + r * cols);
}

}  // namespace

// `_How` of nm_mask.py.
struct Groups {
  int64_t rows, cols, n, m, magnitude, is_half;
};

extern "C" void nm_mask(const Groups* how, const void* scores, void* mask, int64_t, int64_t threads) {
  const Groups& h = *how;
  if (h.is_half)
    mask_rows((const bf16*)scores, h.rows, h.cols, h.n, h.m, h.magnitude, (uint8_t*)mask, threads);
  else
    mask_rows((const float*)scores, h.rows, h.cols, h.n, h.m, h.magnitude, (uint8_t*)mask, threads);
}
