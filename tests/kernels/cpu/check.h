// What the check programs share: numbers as their dtype holds them.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "simd.h"

// A random number; one that bf16 holds if `is_half`.
static inline float draw(std::mt19937& random, bool is_half) {
  std::normal_distribution<float> normal;
  float value = normal(random);
  return is_half ? to_float((bf16)(rounded(all(value))[0] >> 16)) : value;
}

static inline std::vector<float> draw(size_t count, std::mt19937& random, bool is_half) {
  std::vector<float> found(count);
  for (float& value : found) value = draw(random, is_half);
  return found;
}

static inline std::vector<bf16> halves(const std::vector<float>& from) {
  std::vector<bf16> to(from.size());
  for (size_t i = 0; i < from.size(); i++) std::memcpy(&to[i], (const char*)&from[i] + 2, 2);
  return to;
}

// Whether a result is not what it should be, or not there.
static inline bool differs(double got, double want, bool is_half) {
  return !(std::abs(got - want) <= (is_half ? 0.02 : 1e-4) * (1 + std::abs(want)));
}
