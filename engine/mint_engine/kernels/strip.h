// What one adapter adds to a product's tile whose rows are all its own, computed in registers while the sums are there.
#pragma once
#include "lanes.h"
#include "lora.h"

// One target of the adapter: b [rank, out] goes to columns from `column` on. `middle` is that of the tile's first row,
// see `lora.h`; null b: the adapter does not have this target.
template <typename T>
struct Strip {
  const T* b;
  const Middle<T>* middle;
  int64_t pitch, rank, column, out;
};

// Whether tiles can take strips: only with a dot product of pairs.
template <typename T>
constexpr bool TAKES_STRIPS = false;

#ifdef MINT_AVX512_BF16
template <>
constexpr bool TAKES_STRIPS<bf16> = true;

// Mask of the columns `from` to `from + 16` that lie within 0 to `count`.
inline __mmask16 within16(int64_t from, int64_t count) {
  const __mmask16 behind = from < 0 ? first16(std::min<int64_t>(-from, 16)) : __mmask16(0);
  return from >= count || from <= -16 ? __mmask16(0) : __mmask16(first16(count - from) & ~behind);
}

// Adds what two ranks (one unless `two`) add to N rows and a panel's columns; unless `WHOLE`, to those of the masks.
template <bool WHOLE, int N, int V>
inline void add_ranks(const bf16* b, int64_t out, bool two, const bf16* middle, int64_t pitch,
                      const __mmask16 (&masks)[V], __m512 (&sums)[N][V]) {
  const auto take = [&](const bf16* from, int v) {
    const __m256i half = WHOLE ? _mm256_loadu_si256((const __m256i*)from) : _mm256_maskz_loadu_epi16(masks[v], from);
    return _mm512_cvtepu16_epi32(half);
  };
  // The next panel's columns of the same ranks: they are far from these, so no hardware prefetcher foresees them.
  for (int line = 0; line < V; line += 2) {
    __builtin_prefetch(b + 16 * V + 16 * line, 0, 3);
    __builtin_prefetch(b + out + 16 * V + 16 * line, 0, 3);
  }
  __m512bh pairs[V];
  for (int v = 0; v < V; ++v) {
    const __m512i one = take(b + 16 * v, v);
    const __m512i other = two ? take(b + out + 16 * v, v) : _mm512_setzero_si512();
    pairs[v] = (__m512bh)_mm512_or_si512(one, _mm512_slli_epi32(other, 16));
  }
  for (int n = 0; n < N; ++n) {
    const __m512bh weight = spread_pair(middle + n * pitch);
    for (int v = 0; v < V; ++v) sums[n][v] = _mm512_dpbf16_ps(sums[n][v], pairs[v], weight);
  }
}

template <bool WHOLE, int N, int V>
inline void add_columns(const Strip<bf16>& strip, int64_t from, Lanes (&sums)[N][V]) {
  __mmask16 masks[V];
  for (int v = 0; v < V; ++v) masks[v] = within16(from + 16 * v, strip.out);
  __m512 own[N][V];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) own[n][v] = sums[n][v].all;
  const bf16* b = strip.b + from;
  int64_t r = 0;
  for (; r + 2 <= strip.rank; r += 2, b += 2 * strip.out)
    add_ranks<WHOLE>(b, strip.out, true, strip.middle + r, strip.pitch, masks, own);
  if (r < strip.rank) add_ranks<WHOLE>(b, strip.out, false, strip.middle + r, strip.pitch, masks, own);
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) sums[n][v].all = own[n][v];
}

// sums[n][v] += middle[n] b, for columns from `first` on, in the same order of ranks as `expand`.
template <int N, int V>
inline void add_strip(const Strip<bf16>& strip, int64_t first, Lanes (&sums)[N][V]) {
  const int64_t from = first - strip.column;
  if (!strip.b || from >= strip.out || from + 16 * V <= 0) return;
  if (from >= 0 && from + 16 * V <= strip.out)
    add_columns<true>(strip, from, sums);
  else
    add_columns<false>(strip, from, sums);
}
#endif
