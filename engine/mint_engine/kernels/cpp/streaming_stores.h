// Outputs larger than the caches near a core are written past them: a cache would first read each line that is
// overwritten, and the next reader would find little of it there.
#pragma once
#include "aligned.h"
#include "bf16.h"

#ifdef MINT_AVX512_BF16
// Whether numbers `first` to `last` of each of `rows` rows [width] are full lines of such large outputs.
inline bool should_stream(const bf16* to, int64_t rows, int64_t width, int64_t first, int64_t last) {
  constexpr int64_t CACHED = 1 << 20, NUMBERS = LINE / sizeof(bf16);
  return rows * width * int64_t(sizeof(bf16)) > CACHED && uintptr_t(to) % LINE == 0 && width % NUMBERS == 0 &&
         first % NUMBERS == 0 && last % NUMBERS == 0;
}

// Writes a line of rounded numbers. Other threads see it after a store fence.
inline void stream_line(bf16* to, __m512 low, __m512 high) {
  _mm512_stream_si512((__m512i*)to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
#endif
