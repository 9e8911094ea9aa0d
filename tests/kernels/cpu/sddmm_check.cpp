// As spmm_check.cpp, for the gradient of what is stored.
#include "sddmm.cpp"

#include "packing.h"

static int check(const Packing& p, std::mt19937& random) {
  const Case& c = p.c;
  std::vector<float> grad = draw(c.tokens * c.rows, random, p.is_half), x = draw(c.tokens * c.cols, random, p.is_half);
  std::vector<float> found(p.values.size(), NAN);
  std::vector<bf16> grad16 = halves(grad), x16 = halves(x), found16(found.size());
  Weight weight = p.weight(nullptr, 0);
  for (int64_t threads : {1, 2})
    if (p.is_half)
      sddmm(&weight, grad16.data(), x16.data(), found16.data(), c.tokens, threads);
    else
      sddmm(&weight, grad.data(), x.data(), found.data(), c.tokens, threads);
  int wrong = 0;
  for (size_t i = 0; i < found.size(); i++) {
    double sum = 0;
    for (int64_t t = 0; t < c.tokens && p.places[i] >= 0; t++)
      sum += (double)grad[t * c.rows + p.places[i] / p.wide] * x[t * c.cols + p.places[i] % p.wide];
    wrong += differs(p.is_half ? to_float(found16[i]) : found[i], sum, p.is_half);
  }
  return p.report(wrong);
}

int main() { return over_odd_shapes(check); }
