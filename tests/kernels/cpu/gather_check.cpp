// As spmm_check.cpp, for values of a dense weight and the way back: what is moved is equal to the bit.
#include "gather.cpp"

#include "packing.h"

template <class Value>
static int moved(const Packing& p, const std::vector<Value>& dense) {
  const Case& c = p.c;
  Weight weight = p.weight(nullptr, 0);
  std::vector<Value> values(p.values.size(), Value(7)), again(c.rows * c.cols, Value(7)), want(again.size());
  for (int64_t threads : {1, 2}) {
    gather_values(&weight, dense.data(), values.data(), 0, threads);
    scatter_values(&weight, values.data(), again.data(), 0, threads);
  }
  int wrong = 0;
  for (size_t i = 0; i < values.size(); i++) {
    int64_t place = p.places[i] < 0 ? -1 : p.places[i] / p.wide * c.cols + p.places[i] % p.wide;
    wrong += values[i] != (place < 0 ? Value(0) : dense[place]);
    if (place >= 0) want[place] = dense[place];
  }
  return p.report(wrong + (again != want));
}

static int check(const Packing& p, std::mt19937& random) {
  if (p.c.m > 1 || p.c.tokens) return 0;  // vectors alone, once each
  std::vector<float> dense = draw(p.c.rows * p.c.cols, random, p.is_half);
  return p.is_half ? moved(p, halves(dense)) : moved(p, dense);
}

int main() { return over_odd_shapes(check); }
