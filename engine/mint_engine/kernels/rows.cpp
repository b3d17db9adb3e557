// What a decoder layer does row by row between its products: norms, rotary positions, the gated activation; and the
// likeliest token of a row of logits. Rounding follows transformers' modules, step by step, so that results agree.
#include <algorithm>
#include <limits>
#include "number.h"

namespace {
template <typename T>
float inverse_rms(const T* row, int64_t size, float epsilon) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += wide(row[i]) * wide(row[i]);
  return 1.0f / std::sqrt(sum / size + epsilon);
}

template <typename T>
void normalize(T* out, const T* row, const T* weight, int64_t size, float epsilon) {
  const float scale = inverse_rms(row, size, epsilon);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) out[i] = narrow<T>(wide(weight[i]) * wide(narrow<T>(wide(row[i]) * scale)));
}

// Halves (x1, x2) of a head -> (x1 cos - x2 sin, x2 cos + x1 sin); what lies beyond `half` pairs stays.
template <typename T>
void rotate(T* head, const float* cos, const float* sin, int64_t half) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float one = wide(head[i]), two = wide(head[i + half]);
    head[i] = narrow<T>(one * cos[i] - two * sin[i]);
    head[i + half] = narrow<T>(two * cos[i] + one * sin[i]);
  }
}

template <typename T>
void add_norm(T* hidden, const T* delta, const T* weight, T* out, int64_t rows, int64_t size, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    T* h = hidden + row * size;
    if (delta) {
      const T* d = delta + row * size;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) h[i] = narrow<T>(wide(h[i]) + wide(d[i]));
    }
    normalize(out + row * size, h, weight, size, epsilon);
  }
}

template <typename T>
void rope(T* qkv, int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, const int64_t* positions,
          const float* cos, const float* sin, int64_t half, const T* q_norm, const T* k_norm, float epsilon,
          const int64_t* at, T* pool) {
  const int64_t width = (heads + 2 * kv_heads) * dim;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    T* q = qkv + row * width;
    const float *c = cos + positions[row] * half, *s = sin + positions[row] * half;
    for (int64_t head = 0; head < heads + kv_heads; ++head) {
      const T* norm = head < heads ? q_norm : k_norm;
      if (norm) normalize(q + head * dim, q + head * dim, norm, dim, epsilon);
      rotate(q + head * dim, c, s, half);
    }
    const int64_t page = at[row] / 16, token = at[row] % 16;
    for (int64_t head = 0; head < kv_heads; ++head) {
      const T *k = q + (heads + head) * dim, *v = q + (heads + kv_heads + head) * dim;
      T *to_k = pool + (page * 2 * kv_heads + head) * 16 * dim, *to_v = to_k + kv_heads * 16 * dim;
      for (int64_t d = 0; d < dim; ++d) to_k[(d / 2) * 32 + token * 2 + d % 2] = k[d];
      for (int64_t d = 0; d < dim; ++d) to_v[(token / 2) * 2 * dim + d * 2 + token % 2] = v[d];
    }
  }
}

template <typename T>
void silu_mul(const T* gate_up, T* out, int64_t rows, int64_t size) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T *gate = gate_up + row * 2 * size, *up = gate + size;
    T* to = out + row * size;
    for (int64_t i = 0; i < size; ++i) {
      const float g = wide(gate[i]);
      to[i] = narrow<T>(wide(narrow<T>(g / (1.0f + std::exp(-g)))) * wide(up[i]));
    }
  }
}

#ifdef MINT_AVX512_BF16
template <>
void silu_mul<bf16>(const bf16* gate_up, bf16* out, int64_t rows, int64_t size) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const bf16 *gate = gate_up + row * 2 * size, *up = gate + size;
    for (int64_t i = 0; i < size; i += 16) {
      const __mmask16 mask = first16(size - i);
      const __m512 g = load_wide(gate + i, mask), one = _mm512_set1_ps(1.0f);
      // 1 / (1 + e^-g), from e^-|g| so that nothing overflows; NaN and infinity go through as they are.
      const __m512 e = exp_below_zero(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(g)));
      const __mmask16 below = _mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_LT_OQ);
      const __m512 top = _mm512_mask_mov_ps(one, below, e);
      const __m512 silu = _mm512_div_ps(_mm512_mul_ps(g, top), _mm512_add_ps(one, e));
      const __m512 rounded = widen((__m256i)_mm512_cvtneps_pbh(silu));
      store_narrow(out + row * size + i, _mm512_mul_ps(rounded, load_wide(up + i, mask)), mask);
    }
  }
}
#endif

template <typename T>
void argmax(const T* logits, int64_t rows, int64_t size, int64_t* tokens, float* peaks) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = logits + row * size;
    constexpr int64_t BLOCK = 256;
    float best = -std::numeric_limits<float>::infinity();
    int64_t found = 0;
    bool broken = false;
    for (int64_t at = 0; at < size; at += BLOCK) {
      const int64_t stop = std::min(at + BLOCK, size);
      float peak = -std::numeric_limits<float>::infinity();
      int bad = 0;
#pragma omp simd reduction(max : peak) reduction(| : bad)
      for (int64_t i = at; i < stop; ++i) {
        const float value = wide(from[i]);
        peak = value > peak ? value : peak;
        bad |= value != value;
      }
      broken |= bad != 0;
      if (peak > best) {
        best = peak;
        for (int64_t i = at; i < stop; ++i)
          if (wide(from[i]) == peak) {
            found = i;
            break;
          }
      }
    }
    tokens[row] = found;
    peaks[row] = broken ? std::numeric_limits<float>::quiet_NaN() : best;
  }
}
}  // namespace

#define MINT_ROWS(T, NAME)                                                                                             \
  /* hidden [rows, size] += delta (null: nothing); out = rms_norm(hidden) * weight */                                  \
  extern "C" void mint_add_norm_##NAME(T* hidden, const T* delta, const T* weight, T* out, int64_t rows, int64_t size, \
                                       float epsilon) {                                                                \
    add_norm<T>(hidden, delta, weight, out, rows, size, epsilon);                                                      \
  }                                                                                                                    \
  /* qkv [rows, (heads + 2 kv_heads) dim]: norm (null: none) and rotate q and k in place; k and v go to `pool` */      \
  extern "C" void mint_rope_##NAME(T* qkv, int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim,                 \
                                   const int64_t* positions, const float* cos, const float* sin, int64_t half,         \
                                   const T* q_norm, const T* k_norm, float epsilon, const int64_t* at, T* pool) {      \
    rope<T>(qkv, rows, heads, kv_heads, dim, positions, cos, sin, half, q_norm, k_norm, epsilon, at, pool);            \
  }                                                                                                                    \
  /* gate_up [rows, 2 size] -> out [rows, size] = silu(gate) * up */                                                   \
  extern "C" void mint_silu_mul_##NAME(const T* gate_up, T* out, int64_t rows, int64_t size) {                         \
    silu_mul<T>(gate_up, out, rows, size);                                                                             \
  }                                                                                                                    \
  /* logits [rows, size] -> the first largest of each row and its value, NaN where the row holds one */                \
  extern "C" void mint_argmax_##NAME(const T* logits, int64_t rows, int64_t size, int64_t* tokens, float* peaks) {     \
    argmax<T>(logits, rows, size, tokens, peaks);                                                                      \
  }
MINT_ROWS(bf16, bfloat16)
MINT_ROWS(float, float32)
