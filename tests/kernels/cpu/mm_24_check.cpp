// Compiled with sanitizers and run by the tests: 2:4 products over odd shapes, in buffers of exactly their size, against
// sums in double. Prints what differs; the exit status is whether any did.
#include "mm_24.cpp"

#include "check.h"

static int check(int64_t rows, int64_t cols, int64_t tokens, bool is_damaged, bool is_half, std::mt19937& random) {
  int64_t high = (rows + 63) / 64 * 64, wide = (cols + 63) / 64 * 64, size = is_half ? 2 : 4;
  std::vector<char> packed(high * wide / 2 * size + high * wide / 8);
  uint16_t* words = (uint16_t*)(packed.data() + high * wide / 2 * size);
  std::vector<double> dense(high * wide);
  const int patterns[] = {3, 5, 6, 9, 10, 12};
  for (int64_t r = 0; r < high; r++)
    for (int64_t quad = 0; quad < wide / 4; quad++) {
      int bits = is_damaged ? random() % 16 : patterns[random() % 6], stored = 0;
      words[r * (wide / 16) + quad / 4] |= (uint16_t)(bits << quad % 4 * 4);
      for (int place = 0; place < 4; place++) {
        if (!(bits >> place & 1) || stored == 2) continue;
        float value = r < rows && quad * 4 < cols ? draw(random, is_half) : 0.0f;
        int64_t at = r * (wide / 2) + quad * 2 + stored++;
        std::memcpy(packed.data() + at * size, (const char*)&value + 4 - size, size);
        dense[r * wide + quad * 4 + place] = value;
      }
    }
  std::vector<float> x = draw(tokens * cols, random, is_half), bias = draw(rows, random, is_half);
  std::vector<float> y(tokens * rows, NAN);
  std::vector<bf16> x16 = halves(x), bias16 = halves(bias), y16(y.size());
  Weight24 weight{packed.data(), is_half ? (void*)bias16.data() : bias.data(), rows, cols, high, wide, is_half, RELU};
  for (int64_t threads : {1, 2})
    mm_24(&weight, is_half ? (void*)x16.data() : x.data(), is_half ? (void*)y16.data() : y.data(), tokens, threads);
  int wrong = 0;
  for (int64_t t = 0; t < tokens && !is_damaged; t++)  // damage only has to stay inside
    for (int64_t r = 0; r < rows; r++) {
      double sum = bias[r];
      for (int64_t k = 0; k < cols; k++) sum += (double)x[t * cols + k] * dense[r * wide + k];
      double got = is_half ? to_float(y16[t * rows + r]) : y[t * rows + r], want = std::max(sum, 0.0);
      wrong += differs(got, want, is_half);
    }
  if (wrong) std::printf("%ldx%ld, %ld tokens: %d differ\n", rows, cols, tokens, wrong);
  return wrong;
}

int main() {
  std::mt19937 random(0);
  int wrong = 0;
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 4}, {5, 8}, {37, 52}, {70, 36}, {9, 900}})
    for (int64_t tokens : {0, 1, 2, 3, 4, 7, 13, 33, 100, 150})
      for (bool is_damaged : {false, true})
        for (bool is_half : {false, true}) wrong += check(rows, cols, tokens, is_damaged, is_half, random);
  std::printf("%d differ\n", wrong);
  return wrong != 0;
}
