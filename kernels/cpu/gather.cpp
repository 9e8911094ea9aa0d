// Values of a dense weight at the places that a packing has in column vectors, and the way back.
//
// Float and bf16 are only moved. Each group's rows are read, or cleared and written, while they are in the caches.
#include <omp.h>

#include <cstring>

#include "matrix.h"
#include "simd.h"

namespace {

// Calls `move(dense, value)` for all that is stored in each group, after `begin(row)` for each of its rows.
template <class Value, class Begin, class Move>
void over_groups(const Matrix& w, Value* dense, Value* values, int64_t threads, Begin begin, Move move) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t g = 0; g < w.groups(); g++)
    for (int64_t i = 0; i < w.n; i++) {
      int64_t row = w.row(g * w.n + i);
      Value* from = dense + row * w.cols;
      if (row < w.rows) begin(from);
      for (int64_t slot = w.pointers[g]; slot < w.pointers[g + 1]; slot++) {
        int64_t column = w.columns[slot];  // what fills up is -1
        move(row < w.rows && column >= 0 ? from + column : nullptr, values + slot * w.n + i);
      }
    }
}

template <class Value>
void gather(const Matrix& w, Value* dense, Value* values, int64_t threads) {
  over_groups(w, dense, values, threads, [](Value*) {}, [](Value* at, Value* value) { *value = at ? *at : Value(0); });
}

template <class Value>
void scatter(const Matrix& w, Value* values, Value* dense, int64_t threads) {
  auto clear = [&](Value* row) { std::memset(row, 0, w.cols * sizeof(Value)); };
  over_groups(w, dense, values, threads, clear, [](Value* at, Value* value) {
    if (at) *at = *value;
  });
}

}  // namespace

// Dense `[rows, cols]` to values `[slots, n]`.
extern "C" void gather_values(const Weight* weight, void* dense, void* values, int64_t, int64_t threads) {
  if (weight->is_half)
    gather<bf16>(weight->matrix(), (bf16*)dense, (bf16*)values, threads);
  else
    gather<float>(weight->matrix(), (float*)dense, (float*)values, threads);
}

// Values `[slots, n]` to dense `[rows, cols]`, zero elsewhere.
extern "C" void scatter_values(const Weight* weight, void* values, void* dense, int64_t, int64_t threads) {
  if (weight->is_half)
    scatter<bf16>(weight->matrix(), (bf16*)values, (bf16*)dense, threads);
  else
    scatter<float>(weight->matrix(), (float*)values, (float*)dense, threads);
}
