// AdamW, scores of units and masked writes in one pass over weights, gradients and moments, for all layers in one call.
//
// A row of units is scored from its weights as they are before the step, and stepped while it is in the first-level cache.
// Of a line of the cache whose units are all pruned nothing but the weight is touched: it is zero, and its moments stay.
// Moments too small for a normal float become zero: those of other pruned weights fade, and arithmetic on what they would
// end as takes many times as long.
#include "score_rows.h"

// `_Layer` of masked_adamw.py: a layer to score, its moments, mask and rates.
struct Stepped {
  Layer layer;
  float *first, *second;
  const uint8_t* mask;  // of units; null where all are kept
  double keep, to_first, beta2, size, root, eps;
};

namespace {

constexpr int64_t LINE = 16;  // weights of a line of the cache

static inline float normal(float value) { return std::abs(value) < FLT_MIN ? 0.0f : value; }

struct Rates {
  float keep, to_first, beta2, to_second, size, per_root, eps;

  explicit Rates(const Stepped& s)
      : keep((float)s.keep), to_first((float)s.to_first), beta2((float)s.beta2), to_second((float)(1 - s.beta2)),
        size((float)s.size), per_root((float)(1 / s.root)), eps((float)s.eps) {}

  // The weight after the step.
  float operator()(float w, float g, float& first, float& second) const {
    first = normal(first + to_first * (g - first));
    second = normal(beta2 * second + to_second * g * g);
    return w * keep - size * first / (std::sqrt(second) * per_root + eps);
  }
};

static void step(
    const Rates& rates, float* __restrict w, const float* __restrict g, float* __restrict first,
    float* __restrict second, int64_t count) {
  for (int64_t k = 0; k < count; k++) w[k] = rates(w[k], g[k], first[k], second[k]);
}

static inline void mask_each(float* __restrict w, const uint8_t* __restrict mask, int64_t count) {
  for (int64_t k = 0; k < count; k++) w[k] = mask[k] ? w[k] : 0.0f;
}

static bool is_any(const uint8_t* mask, int64_t count) {
  if (count == LINE) return load<uint64_t>(mask) | load<uint64_t>(mask + LINE / 2);
  uint8_t any = 0;
  for (int64_t k = 0; k < count; k++) any |= mask[k];
  return any;
}

// One row of weights, of units whose flags are `mask`: of lines that hold something kept, as many at once as there are.
static void step_row(const Stepped& s, const Rates& rates, int64_t at, const uint8_t* mask) {
  const int64_t across = s.layer.across, m = s.layer.m, line = m == 1 ? LINE : 1;
  float *w = (float*)s.layer.weight + at, *first = s.first + at, *second = s.second + at;
  const float* g = (const float*)s.layer.grad + at;
  if (!mask) return step(rates, w, g, first, second, across * m);
  for (int64_t k = 0, end; k < across; k = end) {
    bool is_kept = is_any(mask + k, std::min(line, across - k));
    for (end = k + line; end < across && is_any(mask + end, std::min(line, across - end)) == is_kept;) end += line;
    end = std::min(end, across);
    if (!is_kept) {
      std::fill(w + k * m, w + end * m, 0.0f);
      continue;
    }
    step(rates, w + k * m, g + k * m, first + k * m, second + k * m, (end - k) * m);
    if (m == 1) mask_each(w + k, mask + k, end - k);
  }
}

template <int64_t CRITERION>
static bool step_layer(const Stepped& s, const How& how, int64_t threads) {
  const Layer& layer = s.layer;
  const Rates rates(s);
  bool is_scored = layer.score && is_finite<float>(layer, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS) if (threads > 1)
  for (int64_t row = 0; row < layer.down; row++) {
    if (is_scored) score_row<CRITERION, float>(layer, how, row);
    const uint8_t* mask = s.mask ? s.mask + row * layer.across : nullptr;
    for (int64_t i = 0; i < layer.n; i++) step_row(s, rates, (row * layer.n + i) * layer.stride, mask);
  }
  return is_scored;
}

}  // namespace

// Steps layers, all in fp32; `is_updated` says whose scores are new.
extern "C" void masked_adamw(const Stepped* layers, const How* how, uint8_t* is_updated, int64_t count, int64_t threads) {
  for (int64_t i = 0; i < count; i++)
    is_updated[i] = how->criterion == GRADIENT ? step_layer<GRADIENT>(layers[i], *how, threads)
                                               : step_layer<SNIP>(layers[i], *how, threads);
}
