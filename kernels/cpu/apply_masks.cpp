// Zeros where masks prune, in place, for all layers in one call.
#include <omp.h>

#include <cstdint>
#include <cstring>

// `_Layer` of apply_masks.py: units of n x m weights, `down` times `across` of them; rows are `stride` weights apart.
struct Masked {
  void* weight;
  const uint8_t* mask;
  int64_t down, across, n, m, stride, bytes;
};

namespace {

constexpr int64_t ROWS = 8;  // of units that a thread takes at once

// A row of weights, each with a flag of its own.
template <class Word>
static void mask_row(Word* __restrict weight, const uint8_t* __restrict mask, int64_t count) {
  for (int64_t k = 0; k < count; k++) weight[k] &= -(Word)(mask[k] != 0);
}

template <class Word>
static void mask_layer(const Masked& layer, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS) if (threads > 1)
  for (int64_t row = 0; row < layer.down; row++) {
    Word* weight = static_cast<Word*>(layer.weight) + row * layer.n * layer.stride;
    const uint8_t* mask = layer.mask + row * layer.across;
    for (int64_t i = 0; i < layer.n; i++, weight += layer.stride) {
      if (layer.m == 1) {
        mask_row(weight, mask, layer.across);
        continue;
      }
      for (int64_t k = 0; k < layer.across; k++)
        if (!mask[k]) std::memset(weight + k * layer.m, 0, layer.m * sizeof(Word));
    }
  }
}

}  // namespace

extern "C" void apply_masks(const Masked* layers, const void*, const void*, int64_t count, int64_t threads) {
  for (int64_t i = 0; i < count; i++) {
    if (layers[i].bytes == 2) mask_layer<uint16_t>(layers[i], threads);
    if (layers[i].bytes == 4) mask_layer<uint32_t>(layers[i], threads);
    if (layers[i].bytes == 8) mask_layer<uint64_t>(layers[i], threads);
  }
}
