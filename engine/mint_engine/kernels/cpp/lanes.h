// Sixteen floats, in whatever registers this instruction set has.
#pragma once
#include "bf16.h"
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

constexpr int LANES = 16;

#if defined(__AVX512F__)
struct Lanes {
  __m512 all;
};
inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes spread(float value) { return {_mm512_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Lanes value) { _mm512_storeu_ps(to, value.all); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.all, b.all, c.all)}; }
#elif defined(__AVX2__)
struct Lanes {
  __m256 low, high;
};
inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes spread(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Lanes value) {
  _mm256_storeu_ps(to, value.low);
  _mm256_storeu_ps(to + 8, value.high);
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
#elif defined(__ARM_NEON)
struct Lanes {
  float32x4_t part[4];
};
inline Lanes spread(float value) {
  const float32x4_t one = vdupq_n_f32(value);
  return {{one, one, one, one}};
}
inline Lanes zero() { return spread(0.0f); }
inline Lanes load(const float* from) {
  return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}
inline void store(float* to, Lanes value) {
  for (int at = 0; at < 4; ++at) vst1q_f32(to + 4 * at, value.part[at]);
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
  for (int at = 0; at < 4; ++at) c.part[at] = vfmaq_f32(c.part[at], a.part[at], b.part[at]);
  return c;
}
#endif

// Loads bfloat16 numbers as floats.
inline Lanes load(const bf16* from) {
#if defined(__AVX512F__)
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16))};
#elif defined(__AVX2__)
  const auto half = [](const bf16* at) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)at)), 16));
  };
  return {half(from), half(from + 8)};
#else
  float wider[LANES];
  for (int lane = 0; lane < LANES; ++lane) wider[lane] = widen(from[lane]);
  return load(wider);
#endif
}
