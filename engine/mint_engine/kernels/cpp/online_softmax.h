// Online softmax of scores computed with AMX, many tokens of the past at a time.
#pragma once
#include "attention_variant.h"
#include "softmax_state.h"

#ifdef MINT_AVX512_BF16
inline __mmask16 clamped_mask16(int64_t count) { return count > 0 ? mask16(count) : __mmask16(0); }

// Turns a row's scores [tokens] into weights, rounded for the next product: 0 except for tokens `from` to `to`.
// Rescales the row's sums [width] to the largest score so far.
inline void softmax_tokens(float* scores, bf16* weights, int64_t tokens, int64_t from, int64_t to, float scale,
                           float cap, SoftmaxState& state, float* sums, int64_t width) {
  const auto seen = [&](int64_t t) { return __mmask16(clamped_mask16(to - t) & ~clamped_mask16(from - t)); };
  __m512 peaks = _mm512_set1_ps(state.peak), sum = _mm512_setzero_ps();
  for (int64_t t = 0; t < tokens; t += LANES) {
    __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + t), _mm512_set1_ps(scale));
    if (cap) score = soft_capped(score, cap);
    peaks = _mm512_mask_max_ps(peaks, seen(t), peaks, score);
    _mm512_storeu_ps(scores + t, score);
  }
  const float peak = _mm512_reduce_max_ps(peaks);
  for (int64_t t = 0; t < tokens; t += LANES) {
    const __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + t), _mm512_set1_ps(peak));
    const __m512 weight = _mm512_maskz_mov_ps(seen(t), exp_below_zero(below));
    sum = _mm512_add_ps(sum, weight);
    store_narrow(weights + t, weight, 0xffff);
  }
  const float shrink = state.peak == NO_SCORE ? 0.0f : std::exp(state.peak - peak);
  if (shrink != 1.0f)
    for (int64_t d = 0; d < width; d += LANES)
      _mm512_storeu_ps(sums + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), _mm512_set1_ps(shrink)));
  state = {peak, state.sum * shrink + _mm512_reduce_add_ps(sum)};
}
#endif
