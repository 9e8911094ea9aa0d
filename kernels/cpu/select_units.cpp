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
  Keys bits = load<Keys>(scores), size = bits & 0x7fffffff;  // of floats a thread may take denormals for zero
  Keys key = size == 0 ? size : bits < 0 ? bits ^ 0x7fffffff : bits;
  key = size > 0x7f800000 ? Keys{} + 0x7fffffff : key;
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

// A byte for each lane, 1 where a comparison holds, eight to a word.
struct Lanes {
  uint64_t words[(LANES + 7) / 8] = {};
  explicit Lanes(Keys holds) {
    Flags flags = __builtin_convertvector(holds & 1, Flags);
    std::memcpy(words, &flags, LANES);
  }
  bool any() const {
    uint64_t found = 0;
    for (uint64_t word : words) found |= word;
    return found;
  }
};

static inline int64_t bin_of(int32_t key) { return (key >> SHIFT) + BINS / 2; }

static void count(const Units& layer, int64_t* histogram) {
  if (layer.count < 8 * BINS) {
    std::fill(histogram, histogram + BINS, 0);
    for (int64_t at = 0; at < layer.count; at += LANES) {
      Keys keys;
      int32_t here = read_keys(layer, at, keys);
      for (int32_t l = 0; l < here; l++) histogram[bin_of(keys[l])]++;
    }
    return;
  }
  std::vector<uint32_t> mine(BINS * 2);  // two, since the same bin twice in a row waits for itself
  for (int64_t at = 0; at < layer.count; at += LANES) {
    Keys keys;
    int32_t here = read_keys(layer, at, keys);
    for (int32_t l = 0; l < here; l++) mine[(l & 1) * BINS + bin_of(keys[l])]++;
  }
  for (int64_t b = 0; b < BINS; b++) histogram[b] = mine[b] + mine[BINS + b];
}

// Keys whose bins are in a range, in the order of their units.
static int64_t collect(const Units& layer, int64_t first, int64_t last, int32_t* out) {
  int64_t found = 0;
  int32_t from = (int32_t)(first - BINS / 2), to = (int32_t)(last - BINS / 2);
  for (int64_t at = 0; at < layer.count; at += LANES) {
    Keys keys;
    int32_t here = read_keys(layer, at, keys);
    Lanes inside(((keys >> SHIFT) >= from) & ((keys >> SHIFT) <= to));
    for (int64_t w = 0; w < (LANES + 7) / 8; w++)
      for (uint64_t word = inside.words[w]; word; word &= word - 1) {
        int32_t l = (int32_t)(w * 8 + __builtin_ctzll(word) / 8);
        if (l < here) out[found++] = keys[l];
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
    if (Lanes(equal).any())
      for (int32_t l = 0; l < here; l++)
        if (keys[l] == edge) flags[l] = ties-- <= 0;
    std::memcpy(layer.mask + at, flags, here);
  }
}

// `known` are the keys of one bin.
static void prune(const Units& layer, const int64_t* histogram, const int32_t* known, int64_t known_bin) {
  if (layer.prune <= histogram[0]) return;  // the first bin is of those that are gone
  if (layer.prune >= layer.count) {
    std::memset(layer.mask, 0, layer.count);
    return;
  }
  int64_t before = 0, bin = 0;
  while (before + histogram[bin] < layer.prune) before += histogram[bin++];
  std::vector<int32_t> keys(histogram[bin]);
  if (bin == known_bin)
    std::copy(known, known + keys.size(), keys.begin());
  else
    collect(layer, bin, bin, keys.data());
  auto nth = keys.begin() + (layer.prune - before - 1);
  std::nth_element(keys.begin(), nth, keys.end());
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
  for (int64_t i = 0; i < number; i++) collect(layers[i], bins[0], bins[1], keys + layers[i].place);
}

// `known`: the keys of one bin, as collect_units left them; the bin is before them.
extern "C" void prune_units(
    const Units* layers, const int64_t* histograms, const int32_t* known, int64_t number, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t i = 0; i < number; i++)
    prune(layers[i], histograms + i * BINS, known + 1 + layers[i].place, known[0]);
}
