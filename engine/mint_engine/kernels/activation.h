// What the gates of a network do to what they gate.
#pragma once
#include "rows.h"

// By an activation: SiLU; GELU by tanh (Hendrycks and Gimpel 2016), as in Gemma; or gpt-oss's, where a gate is at most
// `limit`, what it gates within it, and a gate's sigmoid of `alpha` times itself.
struct Activation {
  enum Kind : int64_t { SILU, GELU, CLAMPED } kind;
  float alpha, limit;
};

// 1 / (1 + e^-x), from e^-|x| so that nothing overflows.
inline float sigmoid(float x) {
  const float e = exp_below_zero(-std::fabs(x));
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

template <typename T>
void gelu_mul(const T* gate, const T* up, T* out, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    // (1 + tanh u) / 2 is the sigmoid of 2 u.
    const float g = wide(gate[i]), twice = 1.5957691216057308f * (g + 0.044715f * g * g * g);
    out[i] = narrow<T>(wide(narrow<T>(g * sigmoid(twice))) * wide(up[i]));
  }
}

template <typename T>
void clamped_mul(const T* gate, const T* up, T* out, int64_t size, float alpha, float limit) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    float g = wide(gate[i]), u = wide(up[i]);
    g = g > limit ? limit : g;  // in this order NaN stays NaN
    u = u > limit ? limit : u < -limit ? -limit : u;
    out[i] = narrow<T>((u + 1.0f) * wide(narrow<T>(g * sigmoid(g * alpha))));
  }
}

// gate_up [2 size] -> out [size]
template <typename T>
void gate_mul(const Activation& by, const T* gate_up, T* out, int64_t size) {
  if (by.kind == Activation::SILU) return silu_mul<T>(gate_up, out, size);
  if (by.kind == Activation::GELU) return gelu_mul<T>(gate_up, gate_up + size, out, size);
  clamped_mul<T>(gate_up, gate_up + size, out, size, by.alpha, by.limit);
}
