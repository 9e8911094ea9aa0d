// What follows a product: bias and activation, a vector at a time.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

enum Activation : int64_t { NONE, RELU, GELU, GELU_TANH };

// e^x for x <= 0; below -87 zero. x = n ln 2 + r, and a polynomial of e^r on |r| <= ln 2 / 2.
static inline Vec exp_negative(Vec x) {
  x = x < -87.0f ? all(-87.0f) : x;
  Vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the nearest integer lies in the lowest bits
  Vec n = shifted - 12582912.0f;
  Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = all(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return (Vec)((Bits)p + ((Bits)shifted << 23));
}

// The tail of the normal distribution beyond |x|, P(X > |x|); Abramowitz and Stegun 7.1.26 is too coarse for fp32, so
// erfc(z) = t exp(-z^2 + P(t)), t = 1 / (1 + z / 2), with the Chebyshev fit of Press et al., Numerical Recipes, 6.2.
static inline Vec normal_tail(Vec size) {
  Vec z = size * 0.707106781f;
  Vec t = 1.0f / (1.0f + 0.5f * z);
  const float fit[] = {-1.26551223f, 1.00002368f, 0.37409196f,  0.09678418f, -0.18628806f,
                       0.27886807f,  -1.13520398f, 1.48851587f, -0.82215223f, 0.17087277f};
  Vec p = all(fit[9]);
#pragma GCC unroll 9
  for (int i = 8; i >= 0; i--) p = p * t + fit[i];
  Vec power = p - z * z;
  return 0.5f * t * exp_negative(power < 0.0f ? power : all(0.0f));
}

static inline Vec gelu(Vec x) {
  Vec size = x < 0.0f ? -x : x;
  Vec near = size < 12.5f ? size : all(12.5f);  // beyond, numbers are so small that the processor is slow with them
  Vec tail = size > 12.5f ? all(0.0f) : x * normal_tail(near);
  return x < 0.0f ? tail : x - tail;
}

static inline Vec gelu_tanh(Vec x) {
  Vec inner = 0.797884561f * (x + 0.044715f * x * x * x);
  Vec size = inner < 0.0f ? -inner : inner;
  Vec e = exp_negative(-2.0f * size);
  Vec tail = size > 43.0f ? all(0.0f) : x * e / (1.0f + e);  // x times half of 1 - tanh |inner|
  return x < 0.0f ? tail : x - tail;
}

// Calls `run` with the function of an activation, which the compiler can then see into.
template <class Run>
static inline void with_activation(int64_t activation, Run run) {
  switch (activation) {
    case RELU:
      return run([](Vec x) { return x < 0.0f ? all(0.0f) : x; });  // NaN stays NaN
    case GELU:
      return run([](Vec x) { return gelu(x); });
    case GELU_TANH:
      return run([](Vec x) { return gelu_tanh(x); });
    default:
      return run([](Vec x) { return x; });
  }
}

// Sums [tokens, stride] into y [tokens, rows] with bias and activation.
template <class Value>
static void finish(
    const float* sums, int64_t stride, int64_t tokens, const Value* bias, int64_t activation, Value* y, int64_t rows) {
  with_activation(activation, [&](auto activate) {
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t row = 0; row < rows; row += LANES) {
        Value* to = y + t * rows + row;
        Vec sum = load<Vec>(sums + t * stride + row);
        if (row + LANES <= rows) {
          store_floats(to, activate(bias ? sum + load_floats(bias + row) : sum));
          continue;
        }
        for (int64_t j = 0; row + j < rows; j++)
          store_float(to + j, activate(all(bias ? sum[j] + to_float(bias[row + j]) : (float)sum[j]))[0]);
      }
  });
}
