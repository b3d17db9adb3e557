// Attention's products with AVX2, which has none of bfloat16: a register of pairs becomes two of floats, the first and
// the second numbers of the pairs. Part of attend.h.
#pragma once

struct Halves {
  __m256 first, second;
};

inline Halves load_pairs(const bf16* from) {
  const __m256i pairs = _mm256_loadu_si256((const __m256i*)from);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000))))};
}

inline float largest_of(__m256 x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

inline float sum_of(__m256 x) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

template <int N>
inline void score_block(const bf16* const* q, const bf16* keys, int64_t dim, float scale, float* scores) {
  __m256 low[N], high[N];
  for (int n = 0; n < N; ++n) low[n] = high[n] = _mm256_setzero_ps();
  for (int64_t d = 0; d < dim; d += 2) {
    const Halves left = load_pairs(keys + d * PAGE), right = load_pairs(keys + d * PAGE + PAGE);
    for (int n = 0; n < N; ++n) {
      const __m256 first = _mm256_set1_ps(widen(q[n][d])), second = _mm256_set1_ps(widen(q[n][d + 1]));
      low[n] = _mm256_fmadd_ps(left.second, second, _mm256_fmadd_ps(left.first, first, low[n]));
      high[n] = _mm256_fmadd_ps(right.second, second, _mm256_fmadd_ps(right.first, first, high[n]));
    }
  }
  for (int n = 0; n < N; ++n) {
    _mm256_storeu_ps(scores + n * PAGE, _mm256_mul_ps(low[n], _mm256_set1_ps(scale)));
    _mm256_storeu_ps(scores + n * PAGE + 8, _mm256_mul_ps(high[n], _mm256_set1_ps(scale)));
  }
}

template <>
inline void score<bf16>(const bf16* const* q, int rows, const bf16* keys, const bf16*, int64_t dim, float scale,
                        float* scores) {
  int row = 0;
  for (; row + 4 <= rows; row += 4) score_block<4>(q + row, keys, dim, scale, scores + row * PAGE);
  for (; row < rows; ++row) score_block<1>(q + row, keys, dim, scale, scores + row * PAGE);
}

// As `weigh`, but weights are rounded to bfloat16, as values are.
inline float softmax_page_fast(float* scores, VisibleTokens seen, SoftmaxState& state) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto mask = [&](int from, int to) {
    const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane);
    return _mm256_castsi256_ps(_mm256_andnot_si256(before, _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane)));
  };
  const __m256 low_mask = mask(seen.from, seen.to), high_mask = mask(seen.from - 8, seen.to - 8);
  const __m256 low = _mm256_loadu_ps(scores), high = _mm256_loadu_ps(scores + 8), never = _mm256_set1_ps(NO_SCORE);
  const __m256 shown = _mm256_max_ps(_mm256_blendv_ps(never, low, low_mask), _mm256_blendv_ps(never, high, high_mask));
  const float peak = std::max(state.peak, largest_of(shown));
  const float shrink = state.peak == NO_SCORE ? 0.0f : std::exp(state.peak - peak);
  const __m256 top = _mm256_set1_ps(peak);
  const __m256 one = _mm256_and_ps(low_mask, exp_below_zero(_mm256_sub_ps(low, top)));
  const __m256 other = _mm256_and_ps(high_mask, exp_below_zero(_mm256_sub_ps(high, top)));
  _mm256_storeu_ps(scores, one);
  _mm256_storeu_ps(scores + 8, other);
  state = {peak, state.sum * shrink + sum_of(_mm256_add_ps(one, other))};
  for (int t = 0; t < PAGE; ++t) scores[t] = widen(narrow<bf16>(scores[t]));
  return shrink;
}

// 16 numbers of a head at a time for N rows, over the `visible` tokens in pairs: as many as the last row sees. If that
// is an odd number, the second token of the last pair is left out.
template <int N>
inline void accumulate_block(const float* weights, int visible, const bf16* values, int64_t dim, const float* shrink,
                             float* out) {
  for (int64_t d = 0; d < dim; d += 16) {
    __m256 low[N], high[N];
    for (int n = 0; n < N; ++n) {
      low[n] = _mm256_mul_ps(_mm256_loadu_ps(out + n * dim + d), _mm256_set1_ps(shrink[n]));
      high[n] = _mm256_mul_ps(_mm256_loadu_ps(out + n * dim + d + 8), _mm256_set1_ps(shrink[n]));
    }
    for (int t = 0; t < visible; t += 2) {
      const Halves left = load_pairs(values + t * dim + 2 * d), right = load_pairs(values + t * dim + 2 * d + 16);
      for (int n = 0; n < N; ++n) {
        const __m256 weight = _mm256_set1_ps(weights[n * PAGE + t]);
        low[n] = _mm256_fmadd_ps(left.first, weight, low[n]);
        high[n] = _mm256_fmadd_ps(right.first, weight, high[n]);
      }
      if (t + 1 == visible) break;
      for (int n = 0; n < N; ++n) {
        const __m256 weight = _mm256_set1_ps(weights[n * PAGE + t + 1]);
        low[n] = _mm256_fmadd_ps(left.second, weight, low[n]);
        high[n] = _mm256_fmadd_ps(right.second, weight, high[n]);
      }
    }
    for (int n = 0; n < N; ++n) {
      _mm256_storeu_ps(out + n * dim + d, low[n]);
      _mm256_storeu_ps(out + n * dim + d + 8, high[n]);
    }
  }
}

template <>
inline void accumulate_page<bf16>(float* scores, const VisibleTokens* seen, SoftmaxState* states, int rows,
                                  const bf16* values, const bf16*, int64_t dim, float* out) {
  float shrink[MAX_QUERY_ROWS];
  for (int row = 0; row < rows; ++row) shrink[row] = softmax_page_fast(scores + row * PAGE, seen[row], states[row]);
  if (dim % 16) {
    for (int row = 0; row < rows; ++row)
      accumulate<bf16>(scores + row * PAGE, seen[row], values, dim, shrink[row], out + row * dim);
    return;
  }
  int row = 0;
  for (; row + 4 <= rows; row += 4)
    accumulate_block<4>(scores + row * PAGE, seen[row + 3].to, values, dim, shrink + row, out + row * dim);
  for (; row < rows; ++row)
    accumulate_block<1>(scores + row * PAGE, seen[row].to, values, dim, shrink + row, out + row * dim);
}
