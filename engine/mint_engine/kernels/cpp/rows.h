// A decoder layer's row-wise operations between products: norms, rotary positions, the gated activation. Rounding
// follows transformers' modules step by step, so that results agree.
#pragma once
#include <algorithm>
#include "bf16.h"
#include "attention_variant.h"

template <typename T>
float sum_squares(const T* row, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += widen(row[i]) * widen(row[i]);
  return sum;
}

// The inverse RMS of `size` numbers, from the sum of their squares.
inline float inverse_rms(float squares, int64_t size, float epsilon) {
  return 1.0f / std::sqrt(squares / size + epsilon);
}

template <typename T>
float inverse_rms(const T* row, int64_t size, float epsilon) {
  return inverse_rms(sum_squares(row, size), size, epsilon);
}

template <typename T>
void apply_weight(T* out, const T* row, const T* weight, int64_t size, float scale) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = narrow<T>(widen(weight[i]) * widen(narrow<T>(widen(row[i]) * scale)));
}

// The weight of an RMSNorm: `weight` multiplies the rounded row, as in Llama; `exact` multiplies before rounding, as in
// Gemma and gpt-oss. Both null: there is no norm.
template <typename T>
struct Norm {
  const T* weight;
  const float* exact;
  explicit operator bool() const { return weight || exact; }
};

template <typename T>
void apply_weight(T* out, const T* row, const Norm<T>& by, int64_t size, float scale) {
  if (by.weight) return apply_weight(out, row, by.weight, size, scale);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = narrow<T>(widen(row[i]) * scale * by.exact[i]);
}

// RMSNorm by a Norm or a weight [size]; `out` may be `row`.
template <typename T, typename W>
void normalize(T* out, const T* row, const W& by, int64_t size, float epsilon) {
  apply_weight(out, row, by, size, inverse_rms(row, size, epsilon));
}

// Rotates pairs (x1, x2) of a head to (x1 cos - x2 sin, x2 cos + x1 sin). They lie in the head's halves, or are
// neighbours if `pairs`. Numbers beyond the first `half` pairs stay. A `sign` of -1 rotates back.
template <typename T>
void rotate(T* head, const float* cos, const float* sin, int64_t half, bool pairs, float sign = 1.0f) {
  const auto rotate_pair = [&](int64_t i, T& first, T& second) {
    const float one = widen(first), two = widen(second), s = sin[i] * sign;
    first = narrow<T>(one * cos[i] - two * s);
    second = narrow<T>(two * cos[i] + one * s);
  };
  if (pairs) {
    for (int64_t i = 0; i < half; ++i) rotate_pair(i, head[2 * i], head[2 * i + 1]);
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) rotate_pair(i, head[i], head[i + half]);
}

// hidden [size] += delta
template <typename T>
void add(T* hidden, const T* delta, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) hidden[i] = narrow<T>(widen(hidden[i]) + widen(delta[i]));
}

// row [size] *= factor
template <typename T>
void scale(T* row, float factor, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) row[i] = narrow<T>(widen(row[i]) * factor);
}

// hidden [size] += delta (null: nothing); out = rms_norm(hidden) * weight, or hidden if there is no norm.
template <typename T>
void add_norm(T* hidden, const T* delta, const Norm<T>& norm, T* out, int64_t size, float epsilon) {
  if (delta) add(hidden, delta, size);
  if (norm)
    normalize(out, hidden, norm, size, epsilon);
  else
    std::copy_n(hidden, size, out);
}

// The layout of a layer's heads, their rotary angles and norms, and what they see.
template <typename T>
struct Heads {
  int64_t heads, kv_heads, dim;
  const float *cos, *sin;  // [positions, half]
  int64_t half;
  int64_t pairs;           // whether interleaved neighbours rotate together, not halves
  Norm<T> q_norm, k_norm;  // [dim], or joint over all heads of a row; `late`: after the rotation
  int64_t joint_queries, joint_keys;  // numbers under a joint norm, on all ranks; 0: each head has its own norm
  int64_t counted;                    // whether this rank's keys count in the sum of squares of all ranks
  int64_t late;
  float epsilon;
  AttentionVariant variant;
  bool joint() const { return joint_queries != 0; }
  int64_t width() const { return (heads + 2 * kv_heads) * dim; }
};

// The sums of squares of a row's queries and keys, for joint norms.
struct SquareSums {
  float queries, keys;
};

// Those of a row's heads on this rank.
template <typename T>
SquareSums squares_of(const T* q, const Heads<T>& of) {
  const float keys = of.counted ? sum_squares(q + of.heads * of.dim, of.kv_heads * of.dim) : 0.0f;
  return {sum_squares(q, of.heads * of.dim), keys};
}

// One row of qkv [(heads + 2 kv_heads) dim]: normalises and rotates q and k in place; writes k and v to token `place`
// of `pool`. Joint norms use `squares` of all heads.
template <typename T>
void rope(T* q, const Heads<T>& of, int64_t position, int64_t place, T* pool, const SquareSums& squares) {
  const int64_t dim = of.dim;
  const float *c = of.cos + position * of.half, *s = of.sin + position * of.half;
  if (of.joint()) {
    T* k = q + of.heads * dim;
    apply_weight(q, q, of.q_norm, of.heads * dim, inverse_rms(squares.queries, of.joint_queries, of.epsilon));
    apply_weight(k, k, of.k_norm, of.kv_heads * dim, inverse_rms(squares.keys, of.joint_keys, of.epsilon));
  }
  for (int64_t head = 0; head < of.heads + of.kv_heads; ++head) {
    const Norm<T>& norm = head < of.heads ? of.q_norm : of.k_norm;
    T* own = q + head * dim;
    if (norm && !of.joint() && !of.late) normalize(own, own, norm, dim, of.epsilon);
    rotate(own, c, s, of.half, of.pairs);
    if (norm && of.late) normalize(own, own, norm, dim, of.epsilon);
  }
  const int64_t page = place / 16, token = place % 16;
  for (int64_t head = 0; head < of.kv_heads; ++head) {
    const T *k = q + (of.heads + head) * dim, *v = q + (of.heads + of.kv_heads + head) * dim;
    T *to_k = pool + (page * 2 * of.kv_heads + head) * 16 * dim, *to_v = to_k + of.kv_heads * 16 * dim;
    for (int64_t d = 0; d < dim; ++d) to_k[(d / 2) * 32 + token * 2 + d % 2] = k[d];
    for (int64_t d = 0; d < dim; ++d) to_v[(token / 2) * 2 * dim + d * 2 + token % 2] = v[d];
  }
}

// gate_up [2 size] -> out [size] = silu(gate) * up
template <typename T>
void silu_mul(const T* gate, T* out, int64_t size) {
  const T* up = gate + size;
  for (int64_t i = 0; i < size; ++i) {
    const float g = widen(gate[i]);
    out[i] = narrow<T>(widen(narrow<T>(g / (1.0f + std::exp(-g)))) * widen(up[i]));
  }
}

#ifdef MINT_AVX512_BF16
// 1 / (1 + e^-g) is top / bottom, computed from e^-|g| so that nothing overflows; NaN and infinity are kept.
struct Silu {
  __m512 top, bottom;
  explicit Silu(__m512 g) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 e = exp_below_zero(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(g)));
    top = _mm512_mask_mov_ps(one, _mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_LT_OQ), e);
    bottom = _mm512_add_ps(one, e);
  }
  __m512 rounded(__m512 g) const {
    return widen((__m256i)_mm512_cvtneps_pbh(_mm512_div_ps(_mm512_mul_ps(g, top), bottom)));
  }
};
template <>
inline void silu_mul<bf16>(const bf16* gate, bf16* out, int64_t size) {
  const bf16* up = gate + size;
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 mask = mask16(size - i);
    const __m512 g = load_wide(gate + i, mask);
    store_narrow(out + i, _mm512_mul_ps(Silu(g).rounded(g), load_wide(up + i, mask)), mask);
  }
}
#endif
#ifdef MINT_AVX2
template <>
inline void silu_mul<bf16>(const bf16* gate, bf16* out, int64_t size) {
  const bf16* up = gate + size;
  const __m256 one = _mm256_set1_ps(1.0f), none = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m256 g = load_wide(gate + i), below = _mm256_or_ps(g, _mm256_set1_ps(-0.0f));  // -|g|
    const __m256 e = exp_below_zero(below), top = _mm256_blendv_ps(one, e, _mm256_cmp_ps(g, none, _CMP_LT_OQ));
    alignas(16) bf16 gated[8];
    store_narrow(gated, _mm256_div_ps(_mm256_mul_ps(g, top), _mm256_add_ps(one, e)));
    store_narrow(out + i, _mm256_mul_ps(load_wide(gated), load_wide(up + i)));
  }
  for (; i < size; ++i) {
    const float g = widen(gate[i]);
    out[i] = narrow<bf16>(widen(narrow<bf16>(g / (1.0f + std::exp(-g)))) * widen(up[i]));
  }
}
#endif
