// The lowest units of each layer: how keys are spread, those of a range, and what is pruned, for all layers in one call.
//
// A key is an integer that orders like its score, 0 as -0, NaN above infinity, and the least there is for a unit that is
// gone already. Its leading bits are a bin.
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "simd.h"

// `_Layer` of select_units.py; `place` is where its keys go, `prune` how many units are to be gone.
struct Units {
  const float* scores;
  uint8_t* mask;
  int64_t count, place, prune;
};

namespace {

constexpr int64_t SHIFT = 18, BINS = 1 << (32 - SHIFT);
constexpr int32_t GONE = std::numeric_limits<int32_t>::min();
typedef int32_t Keys __attribute__((vector_size(LANES * 4)));
typedef uint8_t Flags __attribute__((vector_size(LANES)));
typedef int8_t Signs __attribute__((vector_size(LANES)));

static inline Keys keys_of(const float* scores, const uint8_t* mask) {
  Vec score = load<Vec>(scores) + 0.0f;  // -0 becomes +0
  Keys bits = (Keys)score, key = bits < 0 ? bits ^ 0x7fffffff : bits;
  key = score == score ? key : Keys{} + 0x7fffffff;
  Keys kept = __builtin_convertvector(load<Signs>(mask), Keys);
  return kept == 0 ? Keys{} + GONE : key;
}

// The keys of LANES units from `at` on; what lies past the end is the highest there is.
static inline int32_t read_keys(const Units& layer, int64_t at, Keys& keys) {
  int64_t here = std::min<int64_t>(LANES, layer.count - at);
  if (here == LANES) {
    keys = keys_of(layer.scores + at, layer.mask + at);
  } else {
    float scores[LANES] = {};
    uint8_t mask[LANES] = {};
    std::memcpy(scores, layer.scores + at, here * sizeof(float));
    std::memcpy(mask, layer.mask + at, here);
    keys = keys_of(scores, mask);
  }
  return (int32_t)here;
}

static inline int64_t bin_of(int32_t key) { return (key >> SHIFT) + BINS / 2; }

static void count(const Units& layer, int64_t* histogram) {
  std::vector<uint32_t> mine(BINS * 2);  // two, since the same bin twice in a row waits for itself
  for (int64_t at = 0; at < layer.count; at += LANES) {
    Keys keys;
    int32_t here = read_keys(layer, at, keys);
    for (int32_t l = 0; l < here; l++) mine[(l & 1) * BINS + bin_of(keys[l])]++;
  }
  for (int64_t b = 0; b < BINS; b++) histogram[b] = mine[b] + mine[BINS + b];
}

// Keys whose bins are in a range, in the order of their units; `out` has room for one more.
static int64_t collect(const Units& layer, int64_t first, int64_t last, int32_t* out) {
  int64_t found = 0;
  for (int64_t at = 0; at < layer.count; at += LANES) {
    Keys keys;
    int32_t here = read_keys(layer, at, keys);
    for (int32_t l = 0; l < here; l++) {
      int64_t bin = bin_of(keys[l]);
      out[found] = keys[l];
      found += bin >= first && bin <= last;
    }
  }
  return found;
}

// Nothing at or below `edge` stays but the ties after the first `ties`.
static void write(const Units& layer, int32_t edge, int64_t ties) {
  for (int64_t at = 0; at < layer.count; at += LANES) {
    Keys keys;
    int32_t here = read_keys(layer, at, keys);
    Keys keep = keys > edge, equal = keys == edge;
    uint8_t flags[LANES];
    store(flags, __builtin_convertvector(keep & 1, Flags));
    int32_t any = 0;
    for (int32_t l = 0; l < LANES; l++) any |= equal[l];
    if (any)
      for (int32_t l = 0; l < here; l++)
        if (keys[l] == edge) flags[l] = ties-- <= 0;
    std::memcpy(layer.mask + at, flags, here);
  }
}

static void prune(const Units& layer, const int64_t* histogram) {
  if (layer.prune <= histogram[0]) return;  // the first bin is of those that are gone
  if (layer.prune >= layer.count) {
    std::memset(layer.mask, 0, layer.count);
    return;
  }
  int64_t before = 0, bin = 0;
  while (before + histogram[bin] < layer.prune) before += histogram[bin++];
  std::vector<int32_t> keys(histogram[bin] + 1);
  int64_t found = collect(layer, bin, bin, keys.data());
  auto nth = keys.begin() + (layer.prune - before - 1);
  std::nth_element(keys.begin(), nth, keys.begin() + found);
  int64_t lower = std::count_if(keys.begin(), nth, [&](int32_t key) { return key < *nth; });
  write(layer, *nth, layer.prune - before - lower);
}

}  // namespace

// int64 [layers, BINS]
extern "C" void count_units(const Units* layers, int64_t* histograms, const void*, int64_t number, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t i = 0; i < number; i++) count(layers[i], histograms + i * BINS);
}

extern "C" void collect_units(const Units* layers, int32_t* keys, const int64_t* bins, int64_t number, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t i = 0; i < number; i++) {
    std::vector<int32_t> mine(layers[i].count + 1);  // a layer's own, since collecting writes one past what it finds
    int64_t found = collect(layers[i], bins[0], bins[1], mine.data());
    std::copy(mine.begin(), mine.begin() + found, keys + layers[i].place);
  }
}

extern "C" void prune_units(const Units* layers, const int64_t* histograms, const void*, int64_t number, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t i = 0; i < number; i++) prune(layers[i], histograms + i * BINS);
}
