// Compiled with sanitizers and run by the tests: products over odd shapes, in buffers of exactly their size, against sums
// in double. Prints what differs; the exit status says whether anything did.
#include "spmm.cpp"

#include "packing.h"

static int check(const Packing& p, std::mt19937& random) {
  const Case& c = p.c;
  std::vector<float> x = draw(c.tokens * c.cols, random, p.is_half), bias = draw(c.rows, random, p.is_half);
  std::vector<float> y(c.tokens * c.rows, NAN);
  std::vector<bf16> x16 = halves(x), bias16 = halves(bias), y16(y.size());
  Weight weight = p.weight(p.is_half ? (const void*)bias16.data() : bias.data(), RELU);
  for (int64_t threads : {1, 2})
    if (p.is_half)
      spmm(&weight, x16.data(), y16.data(), c.tokens, threads);
    else
      spmm(&weight, x.data(), y.data(), c.tokens, threads);
  int wrong = 0;
  for (int64_t t = 0; t < c.tokens; t++)
    for (int64_t r = 0; r < c.rows; r++) {
      double sum = bias[r];
      for (int64_t k = 0; k < c.cols; k++) sum += (double)x[t * c.cols + k] * p.dense[r * p.wide + k];
      double got = p.is_half ? to_float(y16[t * c.rows + r]) : y[t * c.rows + r];
      wrong += differs(got, std::max(sum, 0.0), p.is_half);
    }
  return p.report(wrong);
}

int main() { return over_odd_shapes(check); }
