// As spmm_check.cpp, for the gradient of the input.
#include "spmm_t.cpp"

#include "packing.h"

static int check(const Packing& p, std::mt19937& random) {
  const Case& c = p.c;
  std::vector<float> grad = draw(c.tokens * c.rows, random, p.is_half), y(c.tokens * c.cols, NAN);
  std::vector<bf16> grad16 = halves(grad), y16(y.size());
  Weight weight = p.weight(nullptr, NONE);
  for (int64_t threads : {1, 2})
    if (p.is_half)
      spmm_t(&weight, grad16.data(), y16.data(), c.tokens, threads);
    else
      spmm_t(&weight, grad.data(), y.data(), c.tokens, threads);
  int wrong = 0;
  for (int64_t t = 0; t < c.tokens; t++)
    for (int64_t k = 0; k < c.cols; k++) {
      double sum = 0;
      for (int64_t r = 0; r < c.rows; r++) sum += (double)grad[t * c.rows + r] * p.dense[r * p.wide + k];
      wrong += differs(p.is_half ? to_float(y16[t * c.cols + k]) : y[t * c.cols + k], sum, p.is_half);
    }
  return p.report(wrong);
}

int main() { return over_odd_shapes(check); }
