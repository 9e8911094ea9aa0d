// Scores of the units of one row of them, and whether a gradient is finite: what `score_units` and `masked_adamw` share.
//
// A unit is n rows times m columns. Where m is 1 a vector holds one row of several units; otherwise units are walked one
// by one.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "simd.h"

namespace {

enum Criterion : int64_t { MAGNITUDE, GRADIENT, SNIP };
enum Reduction : int64_t { MEAN, SUM, MAX };

}  // namespace

// `_Layer` of score_units.py: units of n x m weights, `down` times `across` of them; rows are `stride` weights apart.
struct Layer {
  const void *weight, *grad;
  float* score;
  int64_t down, across, n, m, stride, is_half;
};

// `_How` of score_units.py.
struct How {
  int64_t criterion, reduction;
  double decay, divisor;
};

namespace {

constexpr int64_t ROWS = 8;  // of units that a thread takes at once

static inline Vec size_of(Vec v) { return (Vec)((Bits)v & 0x7fffffffu); }

template <int64_t CRITERION, class Value>
static inline Vec cost(const Value* weight, const Value* grad) {
  if constexpr (CRITERION == MAGNITUDE) return size_of(load_floats(weight));
  if constexpr (CRITERION == GRADIENT) return size_of(load_floats(grad));
  return size_of(load_floats(weight) * load_floats(grad));
}

template <int64_t CRITERION, class Value>
static inline float cost_of_one(const Value* weight, const Value* grad) {
  float w = CRITERION == GRADIENT ? 1.0f : to_float(*weight);
  return std::fabs(CRITERION == MAGNITUDE ? w : w * to_float(*grad));
}

// Larger of both; NaN if one is.
static inline Vec larger(Vec a, Vec b) { return (a > b) | (a != a) ? a : b; }

// Whether no number of `count` is infinite or NaN.
template <class Value>
static bool is_finite(const Value* from, int64_t count) {
  Bits worst{};  // exponents alone: the highest is that of what is not finite
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    Bits exponent = (Bits)load_floats(from + i) & 0x7f800000u;
    worst = exponent > worst ? exponent : worst;
  }
  for (int l = 0; l < LANES; l++)
    if (worst[l] == 0x7f800000u) return false;
  for (; i < count; i++)
    if (!std::isfinite(to_float(from[i]))) return false;
  return true;
}

template <class Value>
static bool is_finite(const Layer& layer, int64_t threads) {
  int64_t rows = layer.down * layer.n, cols = layer.across * layer.m, wrong = 0;
  const Value* grad = static_cast<const Value*>(layer.grad);
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : wrong) if (threads > 1)
  for (int64_t r = 0; r < rows; r++) wrong += !is_finite(grad + r * layer.stride, cols);
  return !wrong;
}

// The score of one unit, from what its weights cost. Scores that fade, as those of pruned units do, end at zero: numbers
// below the smallest normal one take many times as long, and rounding would keep them.
static inline Vec updated(Vec old, Vec cost, const How& how) {
  Vec scaled = how.divisor == 1 ? cost : cost / (float)how.divisor;
  if (how.decay == 0) return scaled;
  Vec next = (float)how.decay * old + scaled;
  return (next < FLT_MIN) & (next > -FLT_MIN) ? Vec{} : next;
}

template <int64_t CRITERION, class Value>
static void score_columns(const Layer& layer, const How& how, int64_t row) {
  const Value *weight = static_cast<const Value*>(layer.weight) + row * layer.n * layer.stride,
              *grad = layer.grad ? static_cast<const Value*>(layer.grad) + row * layer.n * layer.stride : nullptr;
  float* score = layer.score + row * layer.across;
  float share = how.reduction == MEAN ? 1.0f / layer.n : 1.0f;
  for (int64_t k = 0; k < layer.across; k += LANES) {
    int64_t wide = std::min<int64_t>(LANES, layer.across - k);
    Vec sum{};
    if (wide == LANES) {
      for (int64_t i = 0; i < layer.n; i++) {
        Vec one = cost<CRITERION>(weight + i * layer.stride + k, grad + i * layer.stride + k);
        sum = how.reduction == MAX ? larger(sum, one) : sum + one;
      }
      store(score + k, updated(load<Vec>(score + k), sum * share, how));
      continue;
    }
    for (int64_t l = 0; l < wide; l++) {
      float one = 0;
      for (int64_t i = 0; i < layer.n; i++) {
        float size = cost_of_one<CRITERION>(weight + i * layer.stride + k + l, grad + i * layer.stride + k + l);
        one = how.reduction == MAX ? (size > one || size != size ? size : one) : one + size;
      }
      score[k + l] = updated(all(score[k + l]), all(one * share), how)[0];
    }
  }
}

template <int64_t CRITERION, class Value>
static void score_blocks(const Layer& layer, const How& how, int64_t row) {
  float share = how.reduction == MEAN ? 1.0f / (layer.n * layer.m) : 1.0f;
  for (int64_t k = 0; k < layer.across; k++) {
    Vec sums{};
    float rest = 0;
    for (int64_t i = 0; i < layer.n; i++) {
      int64_t at = (row * layer.n + i) * layer.stride + k * layer.m, j = 0;
      const Value *weight = static_cast<const Value*>(layer.weight) + at,
                  *grad = layer.grad ? static_cast<const Value*>(layer.grad) + at : nullptr;
      for (; j + LANES <= layer.m; j += LANES) {
        Vec one = cost<CRITERION>(weight + j, grad + j);
        sums = how.reduction == MAX ? larger(sums, one) : sums + one;
      }
      for (; j < layer.m; j++) {
        float size = cost_of_one<CRITERION>(weight + j, grad + j);
        rest = how.reduction == MAX ? (size > rest || size != size ? size : rest) : rest + size;
      }
    }
    for (int l = 0; l < LANES; l++)
      rest = how.reduction == MAX ? (sums[l] > rest || sums[l] != sums[l] ? sums[l] : rest) : rest + sums[l];
    float* score = layer.score + row * layer.across + k;
    *score = updated(all(*score), all(rest * share), how)[0];
  }
}

template <int64_t CRITERION, class Value>
static void score_row(const Layer& layer, const How& how, int64_t row) {
  layer.m == 1 ? score_columns<CRITERION, Value>(layer, how, row) : score_blocks<CRITERION, Value>(layer, how, row);
}

}  // namespace
