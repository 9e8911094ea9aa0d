// Vectors of floats as wide as this machine's registers, through the compiler's own vector extensions.
#pragma once

#ifdef __AVX__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12  // which has the same under its older name
#define __builtin_shufflevector(a, b, ...) \
  __builtin_shuffle(a, b, (int32_t __attribute__((vector_size(sizeof(a))))){__VA_ARGS__})
#endif

#if defined(__AVX512F__) || defined(SIXTEEN_LANES)  // tests make such vectors of narrower ones
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t Half __attribute__((vector_size(LANES * 2)));

using bf16 = uint16_t;  // the upper half of a float

template <class V>
static inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class V>
static inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof(v));
}

static inline Vec all(float value) { return value - Vec{}; }  // 0 + value would be an addition, for the sake of -0

// So many floats again and again; gcc makes a detour over memory of a shuffle that says the same.
template <int COUNT>
static inline Vec repeated(const float* from) {
  static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4 || COUNT == 8 || COUNT == LANES, "");
  typedef uint64_t Pairs __attribute__((vector_size(LANES * 4)));
  if constexpr (COUNT == LANES) return load<Vec>(from);
#if defined(__AVX512F__)
  if constexpr (COUNT == 4) return (Vec)_mm512_maskz_broadcast_f32x4(-1, _mm_loadu_ps(from));
  if constexpr (COUNT == 8) return (Vec)_mm512_maskz_broadcast_f64x4(-1, _mm256_loadu_pd((const double*)from));
#elif defined(__AVX2__)
  if constexpr (COUNT == 4) return (Vec)_mm256_broadcast_ps((const __m128*)from);
#endif
  if constexpr (COUNT > 2) {
    Vec found;
    for (int i = 0; i < LANES; i++) found[i] = from[i % COUNT];
    return found;
  }
  return COUNT == 1 ? all(*from) : (Vec)(Pairs{} + load<uint64_t>(from));
}

static inline Vec load_floats(const float* from) { return load<Vec>(from); }
static inline Vec load_floats(const bf16* from) {
  return (Vec)(__builtin_convertvector(load<Half>(from), Bits) << 16);
}

static inline float to_float(float value) { return value; }
static inline float to_float(bf16 value) {
  uint32_t bits = (uint32_t)value << 16;
  return load<float>(&bits);
}

// To the nearest, ties to even; NaN stays NaN.
static inline Bits rounded(Vec v) {
  Bits bits = (Bits)v;
  Bits up = bits + 0x7fff + ((bits >> 16) & 1);
  return v == v ? up : (bits | 0x400000);
}

static inline void store_floats(float* to, Vec v) { store(to, v); }
static inline void store_floats(bf16* to, Vec v) { store(to, __builtin_convertvector(rounded(v) >> 16, Half)); }

// Past the caches, to an address that is a multiple of a vector, where there is such a store.
static inline void store_past(float* to, Vec v) {
#if defined(__AVX512F__)
  __builtin_ia32_movntps512(to, v);
#elif defined(__AVX2__)
  __builtin_ia32_movntps256(to, v);
#else
  store(to, v);
#endif
}
static inline void store_past(bf16* to, Vec v) { store_floats(to, v); }

// What was stored past the caches is there for other threads.
static inline void finish_stores() {
#if defined(__AVX__)
  __builtin_ia32_sfence();
#endif
}

static inline void store_float(float* to, float value) { *to = value; }
static inline void store_float(bf16* to, float value) { *to = (bf16)(rounded(all(value))[0] >> 16); }

// One round of a transposition: exchange the lanes whose number has bit S, between rows S apart.
template <int S, int... I>
static inline void exchange(Vec& a, Vec& b, std::integer_sequence<int, I...>) {
  Vec upper = __builtin_shufflevector(a, b, ((I & S) ? LANES + I - S : I)...);
  b = __builtin_shufflevector(a, b, ((I & S) ? LANES + I : I + S)...);
  a = upper;
}

template <int S>
static inline void transpose_from(Vec (&rows)[LANES]) {
  if constexpr (S < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_integer_sequence<int, LANES>{});
    transpose_from<2 * S>(rows);
  }
}

// A square of LANES rows: lane j of row i becomes lane i of row j.
static inline void transpose(Vec (&rows)[LANES]) { transpose_from<1>(rows); }

// Lane i is the sum of all lanes of rows[i].
static inline Vec totals(Vec (&rows)[LANES]) {
  transpose(rows);
#pragma GCC unroll 4
  for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) rows[i] += rows[i + half];
  return rows[0];
}
