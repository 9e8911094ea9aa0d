// Scores of units over the rows of a weight, for all layers in one call.
//
// A layer's gradient is read once before any of its scores is written, since one that is infinite or NaN somewhere leaves
// all of them as they were; the second look finds it in the caches.
#include "score_rows.h"

namespace {

template <int64_t CRITERION, class Value>
static bool score_layer(const Layer& layer, const How& how, int64_t threads) {
  if (CRITERION != MAGNITUDE && !is_finite<Value>(layer, threads)) return false;
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS) if (threads > 1)
  for (int64_t row = 0; row < layer.down; row++)
    score_row<CRITERION, Value>(layer, how, row);
  return true;
}

template <class Value>
static bool score_layer(const Layer& layer, const How& how, int64_t threads) {
  if (how.criterion == MAGNITUDE) return score_layer<MAGNITUDE, Value>(layer, how, threads);
  if (how.criterion == GRADIENT) return score_layer<GRADIENT, Value>(layer, how, threads);
  return score_layer<SNIP, Value>(layer, how, threads);
}

}  // namespace

// Updates the scores of layers; `is_updated` says of which.
extern "C" void score_units(const Layer* layers, const How* how, uint8_t* is_updated, int64_t count, int64_t threads) {
  for (int64_t i = 0; i < count; i++)
    is_updated[i] = layers[i].is_half ? score_layer<bf16>(layers[i], *how, threads)
                                      : score_layer<float>(layers[i], *how, threads);
}
