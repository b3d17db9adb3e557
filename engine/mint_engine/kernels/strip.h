// What one adapter adds to a tile of a product whose rows are all its own: taken in registers, while they are at hand.
#pragma once
#include "lanes.h"
#include "lora.h"

// A target of the adapter: b [rank, out] goes to columns from `column` on. `middle` is the tile's first row's, see
// `lora.h`; null b: the adapter leaves the target alone.
template <typename T>
struct Strip {
  const T* b;
  const Middle<T>* middle;
  int64_t pitch, rank, column, out;
};

// Whether tiles can take strips: where there is a dot product of pairs.
template <typename T>
constexpr bool TAKES_STRIPS = false;

#ifdef MINT_AVX512_BF16
template <>
constexpr bool TAKES_STRIPS<bf16> = true;

// Columns `from` to `from + 16` that lie within 0 to `count`.
inline __mmask16 within16(int64_t from, int64_t count) {
  const __mmask16 behind = from < 0 ? first16(std::min<int64_t>(-from, 16)) : __mmask16(0);
  return from >= count || from <= -16 ? __mmask16(0) : __mmask16(first16(count - from) & ~behind);
}

// sums[n][v] += middle[n] b, of columns `first` on; the order of ranks is that of `expand`.
template <int N, int V>
inline void add_strip(const Strip<bf16>& strip, int64_t first, Lanes (&sums)[N][V]) {
  const int64_t from = first - strip.column;
  if (!strip.b || from >= strip.out || from + 16 * V <= 0) return;
  __mmask16 masks[V];
  for (int v = 0; v < V; ++v) masks[v] = within16(from + 16 * v, strip.out);
  __m512 own[N][V];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) own[n][v] = sums[n][v].all;
  const bf16* b = strip.b + from;
  const bf16* middle = strip.middle;
  for (int64_t r = 0; r < strip.rank; r += 2, b += 2 * strip.out) {
    const bool odd = r + 1 == strip.rank;
    // The next panel's columns of the same ranks: far from these, so no hardware foresees them.
    for (int line = 0; line < V; line += 2) {
      __builtin_prefetch(b + 16 * V + 16 * line, 0, 3);
      __builtin_prefetch(b + strip.out + 16 * V + 16 * line, 0, 3);
    }
    __m512bh pairs[V];
    for (int v = 0; v < V; ++v) {
      const __m512i one = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(masks[v], b + 16 * v));
      const __m256i other = _mm256_maskz_loadu_epi16(odd ? __mmask16(0) : masks[v], b + strip.out + 16 * v);
      pairs[v] = (__m512bh)_mm512_or_si512(one, _mm512_slli_epi32(_mm512_cvtepu16_epi32(other), 16));
    }
    for (int n = 0; n < N; ++n) {
      uint32_t pair;
      std::memcpy(&pair, middle + n * strip.pitch + r, 4);
      const __m512bh weight = (__m512bh)_mm512_set1_epi32(pair);
      for (int v = 0; v < V; ++v) own[n][v] = _mm512_dpbf16_ps(own[n][v], pairs[v], weight);
    }
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) sums[n][v].all = own[n][v];
}
#endif
