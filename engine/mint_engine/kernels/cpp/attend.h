// Causal attention of a packed batch over the paged cache, with online softmax (Milakov and Gimelshein 2018;
// FlashAttention, Dao et al. 2022). A page holds 16 tokens of one key/value head: keys as [D/2][16][2], values as
// [8][D][2], so that each load feeds the dot-product instruction. Tokens of a page that a row does not see are left out
// of every sum, not multiplied by zero: an earlier request may have left infinities there.
#pragma once
#include <algorithm>
#include <vector>
#include "aligned.h"
#include "bf16.h"
#include "amx_attention.h"
#include "attention_variant.h"
#include "softmax_state.h"

constexpr int MAX_QUERY_ROWS = 1024;  // of one key/value head in a work item; the caller refuses more

// scores [rows][16] of one page; `q` points to the query rows, each of dim numbers.
template <typename T>
void score(const T* const* q, int rows, const T* keys, const T*, int64_t dim, float scale, float* scores) {
  for (int row = 0; row < rows; ++row)
    for (int t = 0; t < PAGE; ++t) {
      float sum = 0;
      for (int64_t d = 0; d < dim; ++d) sum += widen(q[row][d]) * widen(keys[(d / 2) * 32 + t * 2 + d % 2]);
      scores[row * PAGE + t] = sum * scale;
    }
}

// Turns the scores of the page's seen tokens into weights; returns the factor by which earlier sums shrink.
inline float softmax_page(float* scores, VisibleTokens seen, SoftmaxState& state) {
  float peak = state.peak;
  for (int t = seen.from; t < seen.to; ++t) peak = std::max(peak, scores[t]);
  const float shrink = state.peak == NO_SCORE ? 0.0f : std::exp(state.peak - peak);
  float sum = 0;
  for (int t = 0; t < PAGE; ++t) {
    scores[t] = seen.from <= t && t < seen.to ? std::exp(scores[t] - peak) : 0.0f;
    sum += scores[t];
  }
  state = {peak, state.sum * shrink + sum};
  return shrink;
}

template <typename T>
void accumulate(const float* weights, VisibleTokens seen, const T* values, int64_t dim, float shrink, float* out) {
  for (int64_t d = 0; d < dim; ++d) {
    float sum = out[d] * shrink;
    for (int t = seen.from; t < seen.to; ++t)
      sum += widen(narrow<T>(weights[t])) * widen(values[(t / 2) * 2 * dim + d * 2 + t % 2]);
    out[d] = sum;
  }
}

#ifdef MINT_AVX512_BF16
// Two sums per row, so that no product waits for the one before. `next`: the next page's keys, which are prefetched.
template <int N>
inline void score_block(const bf16* const* q, const bf16* keys, const bf16* next, int64_t dim, float scale,
                        float* scores) {
  __m512 even[N], odd[N];
  for (int n = 0; n < N; ++n) even[n] = odd[n] = _mm512_setzero_ps();
  for (int64_t d = 0; d < dim; d += 4) {
    const __m512bh one = load_bf16(keys + d * 16), two = load_bf16(keys + d * 16 + 32);
    _mm_prefetch((const char*)(next + d * 16), _MM_HINT_T0);
    _mm_prefetch((const char*)(next + d * 16 + 32), _MM_HINT_T0);
    for (int n = 0; n < N; ++n) {
      uint32_t pair[2];
      std::memcpy(pair, q[n] + d, 8);
      even[n] = _mm512_dpbf16_ps(even[n], one, (__m512bh)_mm512_set1_epi32(pair[0]));
      odd[n] = _mm512_dpbf16_ps(odd[n], two, (__m512bh)_mm512_set1_epi32(pair[1]));
    }
  }
  for (int n = 0; n < N; ++n)
    _mm512_storeu_ps(scores + n * PAGE, _mm512_mul_ps(_mm512_add_ps(even[n], odd[n]), _mm512_set1_ps(scale)));
}

template <>
inline void score<bf16>(const bf16* const* q, int rows, const bf16* keys, const bf16* next, int64_t dim, float scale,
                        float* scores) {
  int row = 0;
  for (; row + 6 <= rows; row += 6) score_block<6>(q + row, keys, next, dim, scale, scores + row * PAGE);
  for (; row + 3 <= rows; row += 3) score_block<3>(q + row, keys, next, dim, scale, scores + row * PAGE);
  for (; row < rows; ++row) score_block<1>(q + row, keys, next, dim, scale, scores + row * PAGE);
}

inline float softmax_page_fast(float* scores, VisibleTokens seen, SoftmaxState& state) {
  const __mmask16 mask = mask16(seen.to) & ~mask16(seen.from);
  const __m512 raw = _mm512_loadu_ps(scores);
  const float peak = std::max(state.peak, _mm512_mask_reduce_max_ps(mask, raw));
  const __m512 both = exp_below_zero(_mm512_sub_ps(raw, _mm512_set1_ps(peak)));
  const __m512 weights = _mm512_maskz_mov_ps(mask, both);
  const float shrink = state.peak == NO_SCORE ? 0.0f : std::exp(state.peak - peak);
  _mm512_storeu_ps(scores, weights);
  state = {peak, state.sum * shrink + _mm512_reduce_add_ps(weights)};
  return shrink;
}

// 16 numbers of a pair of tokens; unless `both` are visible, the second token's are zero.
inline __m512bh load_tokens(const bf16* from, bool both) {
  const __m512i pairs = _mm512_loadu_si512(from);
  return (__m512bh)(both ? pairs : _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff)));
}

// 32 numbers of a head at a time for N rows, over the `visible` tokens in pairs: as many as the last row sees.
template <int N>
inline void accumulate_block(const uint32_t* pairs, int visible, const bf16* values, const bf16* next, int64_t dim,
                             const float* shrink, float* out) {
  for (int64_t d = 0; d < dim; d += 32) {
    __m512 one[N], two[N];
    for (int n = 0; n < N; ++n) {
      const __m512 s = _mm512_set1_ps(shrink[n]);
      one[n] = _mm512_mul_ps(_mm512_loadu_ps(out + n * dim + d), s);
      two[n] = _mm512_mul_ps(_mm512_loadu_ps(out + n * dim + d + 16), s);
    }
    for (int t = 0; 2 * t < visible; ++t) {
      const bf16* v = values + t * 2 * dim + 2 * d;
      const bool both = 2 * t + 1 < visible;
      const __m512bh left = load_tokens(v, both), right = load_tokens(v + 32, both);
      _mm_prefetch((const char*)(next + (v - values)), _MM_HINT_T0);
      _mm_prefetch((const char*)(next + (v - values) + 32), _MM_HINT_T0);
      for (int n = 0; n < N; ++n) {
        const __m512bh weight = (__m512bh)_mm512_set1_epi32(pairs[n * (PAGE / 2) + t]);
        one[n] = _mm512_dpbf16_ps(one[n], left, weight);
        two[n] = _mm512_dpbf16_ps(two[n], right, weight);
      }
    }
    for (int n = 0; n < N; ++n) {
      _mm512_storeu_ps(out + n * dim + d, one[n]);
      _mm512_storeu_ps(out + n * dim + d + 16, two[n]);
    }
  }
}
#endif

// Turns the scores of `rows` rows of one page into weights and accumulates its values. Each row sees a range of its
// tokens; the range's end never decreases.
template <typename T>
void accumulate_page(float* scores, const VisibleTokens* seen, SoftmaxState* states, int rows, const T* values,
                     const T*, int64_t dim, float* out) {
  for (int row = 0; row < rows; ++row) {
    const float shrink = softmax_page(scores + row * PAGE, seen[row], states[row]);
    accumulate<T>(scores + row * PAGE, seen[row], values, dim, shrink, out + row * dim);
  }
}
#ifdef MINT_AVX512_BF16
template <>
inline void accumulate_page<bf16>(float* scores, const VisibleTokens* seen, SoftmaxState* states, int rows,
                                  const bf16* values, const bf16* next, int64_t dim, float* out) {
  if (dim % 32) {
    for (int row = 0; row < rows; ++row) {
      const float shrink = softmax_page_fast(scores + row * PAGE, seen[row], states[row]);
      accumulate<bf16>(scores + row * PAGE, seen[row], values, dim, shrink, out + row * dim);
    }
    return;
  }
  uint32_t pairs[MAX_QUERY_ROWS * PAGE / 2];
  float shrink[MAX_QUERY_ROWS];
  for (int row = 0; row < rows; ++row) {
    shrink[row] = softmax_page_fast(scores + row * PAGE, seen[row], states[row]);
    _mm256_storeu_si256((__m256i*)(pairs + row * (PAGE / 2)),
                        (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(scores + row * PAGE)));
  }
  int row = 0;
  for (; row + 3 <= rows; row += 3)
    accumulate_block<3>(pairs + row * (PAGE / 2), seen[row + 2].to, values, next, dim, shrink + row, out + row * dim);
  for (; row < rows; ++row)
    accumulate_block<1>(pairs + row * (PAGE / 2), seen[row].to, values, next, dim, shrink + row, out + row * dim);
}
#endif

#ifdef MINT_AVX2
#include "attend_avx2.h"
#endif

// Attention of key/value heads `first` to `last`: `tokens` of a sequence from `position` on, `group` query heads each.
template <typename T>
void attend_block(const T* q, int64_t width, int64_t group, int tokens, int64_t position, const int32_t* table,
                  const T* pool, int64_t kv_heads, int64_t first, int64_t last, int64_t dim, float scale,
                  const AttentionVariant& variant, T* out, int64_t out_width) {
#ifdef MINT_AMX
  if constexpr (USES_AMX<T>)
    if (AmxAttention::takes(dim)) {
      const TileConfig registers;
      const AmxAttention attention(dim, int(group), tokens, position, scale, variant);
      for (int64_t head = first; head < last; ++head)
        attention.attend(q + head * group * dim, width, pool + head * PAGE * dim, 2 * kv_heads * PAGE * dim, kv_heads,
                         table, head * group, out + head * group * dim, out_width);
      return;
    }
#endif
  const int rows = tokens * int(group), heads = int(last - first);
  // Kept from call to call: there is a call for each sequence and layer, and most have a single token.
  static thread_local Aligned<float> sums, scores;
  static thread_local std::vector<VisibleTokens> seen;
  static thread_local std::vector<SoftmaxState> states;
  static thread_local std::vector<const T*> queries;
  sums.assign(heads * rows * dim, 0.0f), scores.resize(rows * PAGE), seen.resize(rows);
  states.assign(heads * rows, SoftmaxState{NO_SCORE, 0.0f}), queries.resize(heads * rows);
  for (int head = 0; head < heads; ++head)
    for (int row = 0; row < rows; ++row) {
      const int64_t own = (first + head) * group + row % group;
      queries[head * rows + row] = q + (row / group) * width + own * dim;
      if (variant.sinks) states[head * rows + row] = {variant.sinks[own], 1.0f};
    }
  const int64_t pages = (position + tokens + PAGE - 1) / PAGE, size = PAGE * dim;
  const int64_t window = variant.window ? variant.window : position + tokens;
  for (int64_t page = variant.first(position) / PAGE; page < pages; ++page) {
    const T* keys = pool + int64_t(table[page]) * 2 * kv_heads * size;
    const int64_t begin = page * PAGE;
    // Tokens before the page do not see it, nor do those whose window begins after it.
    const int skip = int(std::max<int64_t>(0, begin - position)) * int(group);
    const int stop = int(std::min<int64_t>(tokens, begin + PAGE - 1 + window - position)) * int(group);
    for (int row = skip; row < stop; ++row) {
      const int64_t end = position + row / group + 1 - begin;
      seen[row] = {int(std::max<int64_t>(0, end - window)), int(std::min<int64_t>(PAGE, end))};
    }
    const int64_t after = page + 1 < pages ? (int64_t(table[page + 1]) - table[page]) * 2 * kv_heads * size : 0;
    for (int head = 0; head < heads; ++head) {
      const T *k = keys + (first + head) * size, *v = k + kv_heads * size;
      const int at = head * rows + skip, some = stop - skip;
      score<T>(queries.data() + at, some, k, k + after, dim, scale, scores.data());
      if (variant.cap) soft_cap(scores.data(), some * PAGE, variant.cap);
      accumulate_page<T>(scores.data(), seen.data() + skip, states.data() + at, some, v, v + after, dim,
                         sums.data() + at * dim);
    }
  }
  for (int head = 0; head < heads; ++head)
    for (int row = 0; row < rows; ++row) {
      T* to = out + (row / group) * out_width + ((first + head) * group + row % group) * dim;
      const float inverse = 1.0f / states[head * rows + row].sum;
      for (int64_t d = 0; d < dim; ++d) to[d] = narrow<T>(sums[(head * rows + row) * dim + d] * inverse);
    }
}

// Tokens of one sequence in a step: first row, number of tokens, position of the first, start of its page table.
struct Chunk {
  int64_t row, tokens, position, table;
};
