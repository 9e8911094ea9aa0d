// Values of a dense weight at the places that a packing has in column vectors, and the way back.
//
// Float and bf16 are only moved. What comes back is a gradient, which nobody reads before the optimizer does: rows are put
// together in the first-level cache and stored past the others.
#include <omp.h>

#include <algorithm>

#include "matrix.h"
#include "scratch.h"
#include "simd.h"

namespace {

template <class Value>
void gather(const Matrix& w, const Value* dense, Value* values, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t g = 0; g < w.groups(); g++)
    for (int64_t i = 0; i < w.n; i++) {
      int64_t row = w.row(g * w.n + i);
      const Value* from = dense + row * w.cols;
      for (int64_t slot = w.pointers[g]; slot < w.pointers[g + 1]; slot++) {
        int64_t column = w.columns[slot];  // what fills up is -1
        values[slot * w.n + i] = row < w.rows && column >= 0 ? from[column] : Value(0);
      }
    }
}

// `count` numbers; to an address that is a multiple of a vector past the caches.
template <class Value>
void copy_past(const Value* from, int64_t count, Value* to) {
  constexpr int64_t WIDE = sizeof(Vec) / sizeof(Value);
  int64_t k = 0;
  if ((uintptr_t)to % sizeof(Vec) == 0)
    for (; k + WIDE <= count; k += WIDE) store_past((float*)(to + k), load<Vec>(from + k));
  std::copy(from + k, from + count, to + k);
}

template <class Value>
void scatter(const Matrix& w, const Value* values, Value* dense, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t g = 0; g < w.groups(); g++) {
    static thread_local Scratch memory;
    Value* line = memory.take<Value>(w.cols);
    std::fill(line, line + w.cols, Value(0));
    for (int64_t i = 0; i < w.n; i++) {
      int64_t row = w.row(g * w.n + i);
      if (row >= w.rows) continue;
      for (int64_t slot = w.pointers[g]; slot < w.pointers[g + 1]; slot++)
        if (w.columns[slot] >= 0) line[w.columns[slot]] = values[slot * w.n + i];  // the same places for every row
      copy_past(line, w.cols, dense + row * w.cols);
    }
    finish_stores();
  }
}

}  // namespace

// Dense `[rows, cols]` to values `[slots, n]`.
extern "C" void gather_values(const Weight* weight, const void* dense, void* values, int64_t, int64_t threads) {
  if (weight->is_half)
    gather<bf16>(weight->matrix(), (const bf16*)dense, (bf16*)values, threads);
  else
    gather<float>(weight->matrix(), (const float*)dense, (float*)values, threads);
}

// Values `[slots, n]` to dense `[rows, cols]`, zero elsewhere.
extern "C" void scatter_values(const Weight* weight, const void* values, void* dense, int64_t, int64_t threads) {
  if (weight->is_half)
    scatter<bf16>(weight->matrix(), (const bf16*)values, (bf16*)dense, threads);
  else
    scatter<float>(weight->matrix(), (const float*)values, (float*)dense, threads);
}
