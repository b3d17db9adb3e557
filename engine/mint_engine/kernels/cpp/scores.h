// The largest score of a row, and keys that sort scores.
#pragma once
#include <cstring>
#include "bf16.h"

// NaN if the first number is NaN; other NaNs are ignored.
template <typename T>
float row_max(const T* row, int64_t size) {
  float peak = widen(row[0]);
  int64_t i = 0;
#ifdef MINT_AVX512_BF16
  constexpr int64_t SUMS = 4;
  __m512 peaks[SUMS];
  for (__m512& each : peaks) each = _mm512_set1_ps(peak);
  for (; i + 16 * SUMS <= size; i += 16 * SUMS)
    for (int64_t s = 0; s < SUMS; ++s) peaks[s] = _mm512_max_ps(load_wide(row + i + 16 * s, 0xffff), peaks[s]);
  for (const __m512 each : peaks) {
    const float found = _mm512_reduce_max_ps(each);
    peak = found > peak ? found : peak;
  }
#endif
#pragma omp simd reduction(max : peak)
  for (int64_t at = i; at < size; ++at) peak = widen(row[at]) > peak ? widen(row[at]) : peak;
  return peak;
}

// Integers that sort by descending score, and by ascending token among equal scores.
inline uint64_t sort_key(float score, int64_t token) {
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000;
  return uint64_t(~rising) << 32 | uint64_t(token);
}
