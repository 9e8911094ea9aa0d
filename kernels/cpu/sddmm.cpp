// G^T X at the places of stored weights, the gradient of a packed weight, in column vectors N x 1 and in blocks N x M.
#include "sddmm_grads.h"
#include "sddmm_sums.h"

namespace {

template <int HEIGHT, bool IS_BLOCK, class Value>
void product(const Value* grad, const Value* x, const Matrix& w, Value* values, int64_t tokens, int64_t threads) {
  if constexpr (REGISTERS == 16 && HEIGHT > 1)  // too few for gradients of many tokens; with 32 sums were not timed
    by_sums<HEIGHT, IS_BLOCK>(grad, x, w, values, tokens, threads);
  else
    by_grads<HEIGHT, IS_BLOCK>(grad, x, w, values, tokens, threads);
}

template <class Value>
void product(const Value* grad, const Value* x, const Matrix& w, Value* values, int64_t tokens, int64_t threads) {
  if (!w.rows) return;
  if (w.m > 1) return product<4, true>(grad, x, w, values, tokens, threads);
  if (w.n == 1) return product<1, false>(grad, x, w, values, tokens, threads);
  if (w.n == 2) return product<2, false>(grad, x, w, values, tokens, threads);
  return product<4, false>(grad, x, w, values, tokens, threads);
}

}  // namespace

extern "C" void sddmm(
    const Weight* weight, const void* grad, const void* x, void* values, int64_t tokens, int64_t threads) {
  if (weight->is_half)
    product<bf16>((const bf16*)grad, (const bf16*)x, weight->matrix(), (bf16*)values, tokens, threads);
  else
    product<float>((const float*)grad, (const float*)x, weight->matrix(), (float*)values, tokens, threads);
}
