// How a layer's attention differs from plain causal attention: sliding window, attention sinks, soft-capped scores.
#pragma once
#include "bf16.h"

struct AttentionVariant {
  int64_t window;      // the last tokens that a row sees, itself included; 0: all
  const float* sinks;  // [heads]: an extra score in each row's softmax that attends to nothing; null: none
  float cap;           // scores become cap * tanh(score / cap); 0: no cap
  // The first position that a row at `position` sees.
  int64_t first(int64_t position) const { return window && window <= position ? position + 1 - window : 0; }
};

// The range of a page's tokens that a row sees.
struct VisibleTokens {
  int from, to;
};

// cap * tanh(x / cap), computed from e^-2|x| so that nothing overflows.
inline float soft_capped(float x, float cap) {
  const float part = x / cap, e = exp_below_zero(-2.0f * std::fabs(part));
  return cap * std::copysign((1.0f - e) / (1.0f + e), part);
}

// Caps each number of x [size]; the result is rounded once.
template <typename T>
void soft_cap(T* x, int64_t size, float cap) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) x[i] = narrow<T>(soft_capped(widen(x[i]), cap));
}

#ifdef MINT_AVX512_BF16
// The same for sixteen numbers, without rounding.
inline __m512 soft_capped(__m512 x, float cap) {
  const __m512 part = _mm512_div_ps(x, _mm512_set1_ps(cap)), one = _mm512_set1_ps(1.0f);
  const __m512 e = exp_below_zero(_mm512_mul_ps(_mm512_abs_ps(part), _mm512_set1_ps(-2.0f)));
  const __m512 size = _mm512_div_ps(_mm512_mul_ps(_mm512_set1_ps(cap), _mm512_sub_ps(one, e)), _mm512_add_ps(one, e));
  return _mm512_mask_sub_ps(size, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), _mm512_setzero_ps(), size);
}
template <>
inline void soft_cap<bf16>(bf16* x, int64_t size, float cap) {
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 mask = mask16(size - i);
    store_narrow(x + i, soft_capped(load_wide(x + i, mask), cap), mask);
  }
}
#endif
#ifdef MINT_AVX2
template <>
inline void soft_cap<bf16>(bf16* x, int64_t size, float cap) {
  const __m256 all = _mm256_set1_ps(cap), one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 part = _mm256_div_ps(load_wide(x + i), all);
    const __m256 e = exp_below_zero(_mm256_mul_ps(_mm256_andnot_ps(sign, part), _mm256_set1_ps(-2.0f)));
    const __m256 bound = _mm256_mul_ps(all, _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e)));
    store_narrow(x + i, _mm256_or_ps(bound, _mm256_and_ps(sign, part)));
  }
  for (; i < size; ++i) x[i] = narrow<bf16>(soft_capped(widen(x[i]), cap));
}
#endif
