// Activations of gated networks.
#pragma once
#include "rows.h"

// SiLU; GELU by tanh (Hendrycks and Gimpel 2016), as in Gemma; or gpt-oss's, where a gate is at most `limit`, what it
// gates is within +-`limit`, and the gate is multiplied by the sigmoid of `alpha` times itself.
struct Activation {
  enum Kind : int64_t { SILU, GELU, CLAMPED } kind;
  float alpha, limit;
};

// 1 / (1 + e^-x), computed from e^-|x| so that nothing overflows.
inline float sigmoid(float x) {
  const float e = exp_below_zero(-std::fabs(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

// GELU's (1 + tanh u) / 2 is the sigmoid of 2 u. These are 2 u and its slope.
inline float gelu_twice(float x) { return 1.5957691216057308f * (x + 0.044715f * x * x * x); }
inline float gelu_twice_slope(float x) { return 1.5957691216057308f * (1.0f + 0.134145f * x * x); }

template <typename T>
void gelu_mul(const T* gate, const T* up, T* out, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = widen(gate[i]);
    out[i] = narrow<T>(widen(narrow<T>(g * sigmoid(gelu_twice(g)))) * widen(up[i]));
  }
}

template <typename T>
void clamped_mul(const T* gate, const T* up, T* out, int64_t size, float alpha, float limit) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    float g = widen(gate[i]), u = widen(up[i]);
    g = g > limit ? limit : g;  // in this order NaN stays NaN
    u = u > limit ? limit : u < -limit ? -limit : u;
    out[i] = narrow<T>((u + 1.0f) * widen(narrow<T>(g * sigmoid(g * alpha))));
  }
}

// gate_up [2 size] -> out [size]
template <typename T>
void gate_mul(const Activation& by, const T* gate_up, T* out, int64_t size) {
  if (by.kind == Activation::SILU) return silu_mul<T>(gate_up, out, size);
  if (by.kind == Activation::GELU) return gelu_mul<T>(gate_up, gate_up + size, out, size);
  clamped_mul<T>(gate_up, gate_up + size, out, size, by.alpha, by.limit);
}
