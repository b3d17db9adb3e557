// Small matrix products in float for one thread: C [m, n] (+)= A [m, k] B [k, n], n a multiple of 16, C in registers.
// Every element's sum runs over k in order, with fused multiply-adds: it does not depend on m, n or its position.
#pragma once
#include "bf16.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {
constexpr int64_t LANES = 16;
#if defined(__AVX512F__)
constexpr int VECTORS = 4;  // of a tile: 24 sums, 4 numbers and a weight in 32 registers
#else
constexpr int VECTORS = 1;
#endif
typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

inline void multiply_add(float a, const Vector& b, Vector& sum) {
#if defined(__AVX512F__)
  sum = (Vector)_mm512_fmadd_ps(_mm512_set1_ps(a), (__m512)b, (__m512)sum);
#else
  for (int64_t i = 0; i < LANES; ++i) sum[i] = __builtin_fmaf(a, b[i], sum[i]);
#endif
}

inline void load_lanes(const float* from, Vector& to) { to = *(const Vector*)from; }
inline void load_lanes(const bf16* from, Vector& to) {
#ifdef MINT_AVX512_BF16
  to = (Vector)widen(_mm256_loadu_si256((const __m256i*)from));
#else
  for (int64_t i = 0; i < LANES; ++i) to[i] = widen(from[i]);
#endif
}

// A's element (i, k) is a[i * row + k * step].
struct StridedMatrix {
  const float* a;
  int64_t row, step;
};

template <int M, int V, typename T>
inline void micro_tile(int64_t k, StridedMatrix left, const T* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  Vector sum[M][V];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) {
      sum[i][v] = Vector{};
      if (add) load_lanes(c + i * ldc + v * LANES, sum[i][v]);
    }
  for (int64_t at = 0; at < k; ++at) {
    Vector right[V];
    for (int v = 0; v < V; ++v) load_lanes(b + at * ldb + v * LANES, right[v]);
    for (int i = 0; i < M; ++i) {
      const float weight = left.a[i * left.row + at * left.step];
      for (int v = 0; v < V; ++v) multiply_add(weight, right[v], sum[i][v]);
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) *(Vector*)(c + i * ldc + v * LANES) = sum[i][v];
}

template <int V, typename T>
inline void micro_panel(int64_t m, int64_t k, StridedMatrix left, const T* b, int64_t ldb, float* c, int64_t ldc,
                        bool add) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6)
    micro_tile<6, V>(k, {left.a + i * left.row, left.row, left.step}, b, ldb, c + i * ldc, ldc, add);
  for (; i + 2 <= m; i += 2)
    micro_tile<2, V>(k, {left.a + i * left.row, left.row, left.step}, b, ldb, c + i * ldc, ldc, add);
  for (; i < m; ++i) micro_tile<1, V>(k, {left.a + i * left.row, left.row, left.step}, b, ldb, c + i * ldc, ldc, add);
}

template <typename T>
inline void gemm(int64_t m, int64_t n, int64_t k, StridedMatrix left, const T* b, int64_t ldb, float* c, int64_t ldc,
                 bool add) {
  int64_t j = 0;
  for (; j + VECTORS * LANES <= n; j += VECTORS * LANES) micro_panel<VECTORS>(m, k, left, b + j, ldb, c + j, ldc, add);
  for (; j < n; j += LANES) micro_panel<1>(m, k, left, b + j, ldb, c + j, ldc, add);
}
}  // namespace
