// Transposes square blocks of numbers.
#pragma once
#include <cstdint>
#if defined(__AVX512F__)
#include <immintrin.h>

// 16 rows of 16 numbers of 32 bits, `ld` apart, become 16 columns.
inline void transpose(const float* from, int64_t ld, float* to, int64_t ldt) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * ld);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b[i + j]), _mm512_castps_pd(b[i + j + 2])));
      a[i + 2 * j + 1] =
          _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b[i + j]), _mm512_castps_pd(b[i + j + 2])));
    }
  for (int j = 0; j < 4; ++j) {  // a[4 q + j]: in 128 bits p, column 4 p + j of rows 4 q to 4 q + 3
    const __m512 low = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88), high = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
    const __m512 low2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
    const __m512 high2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
    _mm512_storeu_ps(to + j * ldt, _mm512_shuffle_f32x4(low, low2, 0x88));
    _mm512_storeu_ps(to + (4 + j) * ldt, _mm512_shuffle_f32x4(high, high2, 0x88));
    _mm512_storeu_ps(to + (8 + j) * ldt, _mm512_shuffle_f32x4(low, low2, 0xdd));
    _mm512_storeu_ps(to + (12 + j) * ldt, _mm512_shuffle_f32x4(high, high2, 0xdd));
  }
}
#endif
