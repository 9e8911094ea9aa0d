// Values as floats: where they lie if they are floats, in memory of the thread otherwise.
#pragma once

#include "scratch.h"
#include "simd.h"

static inline const float* as_floats(const float* values, int64_t, Scratch&, int64_t) { return values; }
static inline const float* as_floats(const bf16* values, int64_t count, Scratch& memory, int64_t threads) {
  float* floats = memory.take<float>(count);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < count; i++) floats[i] = to_float(values[i]);
  return floats;
}

// Where to write values as floats, and the way back.
static inline float* floats_of(float* values, int64_t, Scratch&) { return values; }
static inline float* floats_of(bf16*, int64_t count, Scratch& memory) { return memory.take<float>(count); }
static inline void from_floats(const float*, int64_t, float*) {}
static inline void from_floats(const float* floats, int64_t count, bf16* values) {
  for (int64_t i = 0; i < count; i++) store_float(values + i, floats[i]);
}
