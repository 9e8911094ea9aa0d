// Multiplications that never leave the registers: what a core can do at most, in operations a second.
#include <chrono>
#include <cstdio>

#include "simd.h"

int main() {
  constexpr int SUMS = 12;
  constexpr long ROUNDS = 1000000;
  double best = 0;
  for (int repeat = 0; repeat < 20; repeat++) {
    Vec sums[SUMS], factor = all(0.999f);
    for (int i = 0; i < SUMS; i++) sums[i] = all((float)(repeat + i));
    auto begin = std::chrono::steady_clock::now();
    for (long round = 0; round < ROUNDS; round++)
#pragma GCC unroll 12
      for (int i = 0; i < SUMS; i++) sums[i] = sums[i] * factor + factor;
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    float used = 0;
    for (int i = 0; i < SUMS; i++) used += sums[i][0];
    double rate = 2.0 * SUMS * LANES * ROUNDS / seconds;
    if (used != 1.0f && rate > best) best = rate;
  }
  std::printf("%.3e\n", best);
}
