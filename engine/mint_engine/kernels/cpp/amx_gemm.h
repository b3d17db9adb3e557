// Products of small matrices with AMX; the right-hand side is packed for each product (VNNI layout: pairs of rows).
#pragma once
#include "amx.h"
#include "transpose.h"

#ifdef MINT_AMX
// c [16 M, 16 N] (+)= a [16 M, k] b, where b is [k / 2, ldb, 2]. Needs `TileConfig`.
template <int M, int N>
inline void gemm_block(int64_t k, const bf16* a, int64_t lda, const bf16* b, int64_t ldb, float* c, int64_t ldc,
                       bool add) {
  const int64_t c_stride = ldc * int64_t(sizeof(float)), a_stride = lda * int64_t(sizeof(bf16)), b_stride = ldb * 4;
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  if (add) {
    _tile_loadd(0, c, c_stride);
    if (N > 1) _tile_loadd(1, c + 16, c_stride);
    if (M > 1) _tile_loadd(2, c + 16 * ldc, c_stride);
    if (M > 1 && N > 1) _tile_loadd(3, c + 16 * ldc + 16, c_stride);
  }
  for (int64_t i = 0; i < k; i += AMX_DEPTH) {
    _tile_loadd(4, a + i, a_stride);
    _tile_loadd(6, b + i * ldb, b_stride);
    _tile_dpbf16ps(0, 4, 6);
    if (N > 1) { _tile_loadd(7, b + i * ldb + 32, b_stride); _tile_dpbf16ps(1, 4, 7); }
    if (M > 1) { _tile_loadd(5, a + 16 * lda + i, a_stride); _tile_dpbf16ps(2, 5, 6); }
    if (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_stride);
  if (N > 1) _tile_stored(1, c + 16, c_stride);
  if (M > 1) _tile_stored(2, c + 16 * ldc, c_stride);
  if (M > 1 && N > 1) _tile_stored(3, c + 16 * ldc + 16, c_stride);
}

// The same for any m and n that are multiples of 16; k is a multiple of 32. A sum is computed in the order of k.
inline void amx_gemm(int64_t m, int64_t n, int64_t k, const bf16* a, int64_t lda, const bf16* b, int64_t ldb, float* c,
                     int64_t ldc, bool add) {
  for (int64_t i = 0; i < m; i += 2 * AMX_ROWS)
    for (int64_t j = 0; j < n; j += 2 * AMX_ROWS) {
      const bf16 *left = a + i * lda, *right = b + 2 * j;
      float* to = c + i * ldc + j;
      const bool tall = i + 2 * AMX_ROWS <= m, wide = j + 2 * AMX_ROWS <= n;
      if (tall && wide) gemm_block<2, 2>(k, left, lda, right, ldb, to, ldc, add);
      if (tall && !wide) gemm_block<2, 1>(k, left, lda, right, ldb, to, ldc, add);
      if (!tall && wide) gemm_block<1, 2>(k, left, lda, right, ldb, to, ldc, add);
      if (!tall && !wide) gemm_block<1, 1>(k, left, lda, right, ldb, to, ldc, add);
    }
}

// Rows [rows, count], `ld` apart -> pairs of adjacent rows [padded_depth(rows) / 2, ldt, 2], padded with zeros up to a
// multiple of 16 numbers.
inline void pack_vnni(const bf16* from, int64_t ld, int64_t rows, int64_t count, bf16* to, int64_t ldt) {
  for (int64_t row = 0; row < padded_depth(rows); row += 2, from += 2 * ld, to += 2 * ldt)
    for (int64_t i = 0; i < count; i += 16) {
      const __mmask16 there = mask16(count - i), one = row < rows ? there : __mmask16(0);
      const __mmask16 other = row + 1 < rows ? there : __mmask16(0);
      _mm512_storeu_si512(to + 2 * i, interleave(from + i, one, from + ld + i, other));
    }
}

// Rows [rows, count], one after another -> [count / 2, ldt, 2], whose second index is the row.
inline void pack_vnni_transposed(const bf16* from, int64_t rows, int64_t count, bf16* to, int64_t ldt) {
  for (int64_t row = 0; row < rows; row += 16)
    for (int64_t i = 0; i < count; i += 32)
      transpose((const float*)(from + row * count + i), count / 2, (float*)(to + i * ldt) + row, ldt);
}
#endif
