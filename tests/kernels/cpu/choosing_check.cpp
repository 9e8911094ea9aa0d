// As spmm_check.cpp, for what chooses: scores, masked writes, N:M masks and units, against loops over single weights.
#include <omp.h>

#include <algorithm>
#include <cstring>

#include "check.h"

// each source has names of its own; two share a header, which is theirs once
#include "score_rows.h"
namespace scoring {
#include "score_units.cpp"
}
namespace stepping {
#include "masked_adamw.cpp"
}
namespace masking {
#include "apply_masks.cpp"
}
namespace ranking {
#include "nm_mask.cpp"
}

namespace selecting {
#include "select_units.cpp"
}

struct Shape {
  int64_t down, across, n, m, gap;  // rows are `gap` weights longer than they need be
};

static std::vector<bf16> upper(const std::vector<float>& from, bool is_half) {
  return is_half ? halves(from) : std::vector<bf16>();
}

static int check_scores(const Shape& s, std::mt19937& random, bool is_half, int64_t criterion, int64_t reduction, bool is_bad) {
  int64_t stride = s.across * s.m + s.gap, rows = s.down * s.n, size = (rows - 1) * stride + s.across * s.m;
  std::vector<float> weight = draw(size, random, is_half), grad = draw(size, random, is_half);
  if (is_bad) grad[size - 1] = (random() & 1) ? INFINITY : NAN;
  std::vector<float> score = draw(s.down * s.across, random, false), before = score;
  std::vector<bf16> weight16 = upper(weight, is_half), grad16 = upper(grad, is_half);
  const void *w = is_half ? (const void*)weight16.data() : weight.data(), *g = is_half ? (const void*)grad16.data() : grad.data();
  Layer layer{w, criterion == 0 ? nullptr : g, score.data(), s.down, s.across, s.n, s.m, stride, is_half};
  How how{criterion, reduction, 0.5, 4.0};
  uint8_t updated = 2;
  scoring::score_units(&layer, &how, &updated, 1, 2);
  int wrong = updated != !(is_bad && criterion);
  for (int64_t r = 0; r < s.down; r++)
    for (int64_t c = 0; c < s.across; c++) {
      double sum = 0;
      for (int64_t i = 0; i < s.n; i++)
        for (int64_t j = 0; j < s.m; j++) {
          int64_t at = (r * s.n + i) * stride + c * s.m + j;
          double one = std::abs(criterion == 0 ? weight[at] : criterion == 1 ? grad[at] : (double)weight[at] * grad[at]);
          sum = reduction == 2 ? std::max(sum, one) : sum + one / (reduction == 0 ? s.n * s.m : 1);
        }
      double was = before[r * s.across + c], want = is_bad && criterion ? was : 0.5 * was + sum / 4;
      wrong += differs(score[r * s.across + c], want, false);
    }
  return wrong;
}

static int check_steps(const Shape& s, std::mt19937& random, bool is_scored, bool is_masked) {
  int64_t stride = s.across * s.m + s.gap, rows = s.down * s.n, size = (rows - 1) * stride + s.across * s.m;
  std::vector<float> weight = draw(size, random, false), grad = draw(size, random, false), first = draw(size, random, false);
  std::vector<float> second = draw(size, random, false), score(s.down * s.across, 0);
  for (float& value : second) value *= value;
  std::vector<uint8_t> mask(s.down * s.across);
  for (size_t i = 0; i < mask.size(); i++) mask[i] = i % 48 < 16 ? 0 : random() % 3 > 0;  // some lines are pruned whole
  std::vector<float> w = weight, m = first, v = second;
  Layer layer{w.data(), grad.data(), is_scored ? score.data() : nullptr, s.down, s.across, s.n, s.m, stride, 0};
  stepping::Stepped stepped{layer, m.data(), v.data(), is_masked ? mask.data() : nullptr, 0.99, 0.1, 0.999, 0.01, 0.5, 1e-3};
  How how{2, 1, 0.9, 1};
  uint8_t updated = 2;
  stepping::masked_adamw(&stepped, &how, &updated, 1, 2);
  int wrong = updated != is_scored;
  std::vector<double> costs(score.size());
  for (int64_t at = 0; at < size; at++) {
    int64_t row = at / stride, column = at % stride, unit = row / s.n * s.across + column / s.m;
    if (column >= s.across * s.m) {  // what lies between rows
      wrong += w[at] != weight[at] || m[at] != first[at] || v[at] != second[at];
      continue;
    }
    costs[unit] += std::abs((double)weight[at] * grad[at]);
    bool is_kept = !is_masked || mask[unit];
    double to = first[at] + 0.1 * ((double)grad[at] - first[at]), square = 0.999 * second[at] + 0.001 * grad[at] * grad[at];
    wrong += differs(w[at], is_kept ? weight[at] * 0.99 - 0.01 * to / (std::sqrt(square) / 0.5 + 1e-3) : 0, false);
    wrong += is_kept && (differs(m[at], to, false) || differs(v[at], square, false));
    wrong += !is_kept && m[at] != first[at] && differs(m[at], to, false);  // stepped or left as it was
  }
  for (size_t u = 0; u < score.size(); u++) wrong += differs(score[u], is_scored ? costs[u] : 0, false);
  return wrong;
}

template <class Word>
static int check_masks(const Shape& s, std::mt19937& random) {
  int64_t stride = s.across * s.m + s.gap, rows = s.down * s.n, size = (rows - 1) * stride + s.across * s.m;
  std::vector<Word> weight(size);
  for (Word& word : weight) word = (Word)(random() | 1);
  std::vector<Word> before = weight;
  std::vector<uint8_t> mask(s.down * s.across);
  for (uint8_t& keep : mask) keep = random() % 3 > 0;
  masking::Masked layer{weight.data(), mask.data(), s.down, s.across, s.n, s.m, stride, sizeof(Word)};
  masking::apply_masks(&layer, nullptr, nullptr, 1, 2);
  int wrong = 0;
  for (int64_t at = 0; at < size; at++) {
    int64_t row = at / stride, column = at % stride;
    bool stays = column >= s.across * s.m || mask[row / s.n * s.across + column / s.m];
    wrong += weight[at] != (stays ? before[at] : 0);
  }
  return wrong;
}

static int check_groups(int64_t rows, int64_t groups, int64_t n, int64_t m, std::mt19937& random, bool is_half, bool magnitude) {
  std::vector<float> scores(rows * groups * m);
  const float some[] = {0, -0.0f, 1, -1, 2, INFINITY, -INFINITY, NAN, 1e-40f, 3};
  for (float& score : scores) score = some[random() % 10];
  std::vector<bf16> scores16 = upper(scores, is_half);
  if (is_half)
    for (size_t i = 0; i < scores.size(); i++) scores[i] = to_float(scores16[i]);
  std::vector<uint8_t> mask(scores.size(), 7);
  ranking::Groups how{rows, groups * m, n, m, magnitude, is_half};
  ranking::nm_mask(&how, is_half ? (const void*)scores16.data() : scores.data(), mask.data(), 0, 2);
  auto value = [&](int64_t i) {
    float score = magnitude ? std::abs(scores[i]) : scores[i];
    return score != score ? INFINITY * 1.0 : score == INFINITY ? 1e300 : (double)score;  // NaN above infinity
  };
  int wrong = 0;
  for (int64_t i = 0; i < (int64_t)scores.size(); i++) {
    int64_t first = i / m * m, better = 0;
    for (int64_t j = first; j < first + m; j++) better += value(j) > value(i) || (value(j) == value(i) && j < i);
    wrong += mask[i] != (better < n);
  }
  return wrong;
}

// Units of two layers: how many are in each bin, those of some bins, and the lowest, after sorting all of them.
static int check_units(int64_t first_count, int64_t second_count, std::mt19937& random) {
  constexpr int64_t bins = selecting::BINS;
  const float some[] = {0, -0.0f, 1, 2, INFINITY, NAN, 1e-40f, -1, -INFINITY, 3.5f};
  std::vector<float> scores[2];
  std::vector<uint8_t> masks[2];
  std::vector<selecting::Units> layers;
  int64_t counts[2] = {first_count, second_count};
  for (int i : {0, 1}) {
    for (int64_t u = 0; u < counts[i]; u++) {
      scores[i].push_back(random() % 2 ? some[random() % 10] : draw(random, false));
      masks[i].push_back(random() % 4 > 0);
    }
    layers.push_back({scores[i].data(), masks[i].data(), counts[i], i * first_count, (int64_t)(random() % (counts[i] + 1))});
  }
  auto key = [&](int i, int64_t u) -> int64_t {  // where a score stands among all others
    if (!masks[i][u]) return std::numeric_limits<int32_t>::min();
    float score = scores[i][u] == 0 ? 0.0f : scores[i][u];
    int32_t bits;
    std::memcpy(&bits, &score, 4);
    return score != score ? 0x7fffffff : bits < 0 ? bits ^ 0x7fffffff : bits;
  };
  std::vector<int64_t> histograms(2 * bins, 7), want(2 * bins);
  std::vector<int32_t> keys(first_count + second_count, 7);
  std::vector<std::vector<int64_t>> every(2);
  for (int i : {0, 1})
    for (int64_t u = 0; u < counts[i]; u++) {
      every[i].push_back(key(i, u));
      want[i * bins + (key(i, u) >> selecting::SHIFT) + bins / 2]++;
    }
  selecting::count_units(layers.data(), histograms.data(), nullptr, 2, 2);
  int wrong = histograms != want;
  int64_t all_bins[2] = {0, bins - 1};
  selecting::collect_units(layers.data(), keys.data(), all_bins, 2, 2);
  for (int i : {0, 1})
    for (int64_t u = 0; u < counts[i]; u++) wrong += keys[i * first_count + u] != every[i][u];
  std::vector<uint8_t> before[2] = {masks[0], masks[1]};
  int64_t known_bin[2] = {bins / 2, bins / 2};  // of zeros
  std::vector<int32_t> known(first_count + second_count + 1);
  for (int i : {0, 1}) layers[i].place = i ? histograms[bins / 2] : 0;
  selecting::collect_units(layers.data(), known.data() + 1, known_bin, 2, 2);
  known[0] = (int32_t)(random() % 2 ? bins / 2 : -1);
  selecting::prune_units(layers.data(), histograms.data(), known.data(), 2, 2);
  for (int i : {0, 1}) {
    int64_t gone = std::count(before[i].begin(), before[i].end(), 0), most = std::max(gone, layers[i].prune);
    for (int64_t u = 0; u < counts[i]; u++) {
      int64_t lower = 0;
      for (int64_t v = 0; v < counts[i]; v++) lower += every[i][v] < every[i][u] || (every[i][v] == every[i][u] && v < u);
      wrong += masks[i][u] != (before[i][u] && lower >= most);
    }
  }
  return wrong;
}

int main() {
  std::mt19937 random(0);
  int wrong = 0;
  for (Shape s : {Shape{1, 1, 1, 1, 0}, {3, 37, 4, 1, 0}, {2, 70, 1, 1, 5}, {5, 3, 2, 3, 1}, {3, 2, 16, 16, 0}, {4, 1, 1, 90, 0}}) {
    for (bool is_half : {false, true})
      for (bool is_bad : {false, true})
        for (int64_t criterion : {0, 1, 2})
          for (int64_t reduction : {0, 1, 2}) wrong += check_scores(s, random, is_half, criterion, reduction, is_bad);
    for (bool is_scored : {false, true})
      for (bool is_masked : {false, true}) wrong += check_steps(s, random, is_scored, is_masked);
    wrong += check_masks<uint16_t>(s, random) + check_masks<uint32_t>(s, random) + check_masks<uint64_t>(s, random);
  }
  for (auto [n, m] : {std::pair<int64_t, int64_t>{1, 1}, {1, 2}, {2, 4}, {4, 4}, {3, 8}, {2, 5}, {7, 16}, {31, 32}})
    for (int64_t groups : {1, 3, 20})
      for (bool is_half : {false, true})
        for (bool magnitude : {false, true}) wrong += check_groups(3, groups, n, m, random, is_half, magnitude);
  for (int64_t count : {0, 1, 15, 16, 17, 200})
    for (int turn = 0; turn < 6; turn++) wrong += check_units(count, 37, random);
  std::printf("%d differ\n", wrong);
  return wrong != 0;
}
