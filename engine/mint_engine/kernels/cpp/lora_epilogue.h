// The epilogue of a product's tile whose rows all use one adapter: adds the adapter's product while the sums are in
// registers.
#pragma once
#include "lanes.h"
#include "lora.h"

// One target of the adapter: b [rank, out] goes to columns from `column` on. `middle` is that of the tile's first row,
// see `lora.h`; null b: the adapter does not have this target.
template <typename T>
struct LoraEpilogue {
  const T* b;
  const Middle<T>* middle;
  int64_t pitch, rank, column, out;
};

// Whether tiles have epilogues: only with a dot product of pairs.
template <typename T>
constexpr bool FUSES_LORA = false;

#ifdef MINT_AVX512_BF16
template <>
constexpr bool FUSES_LORA<bf16> = true;

// Mask of the columns `from` to `from + 16` that lie within 0 to `count`.
inline __mmask16 column_mask16(int64_t from, int64_t count) {
  const __mmask16 behind = from < 0 ? mask16(std::min<int64_t>(-from, 16)) : __mmask16(0);
  return from >= count || from <= -16 ? __mmask16(0) : __mmask16(mask16(count - from) & ~behind);
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
inline void add_columns(const LoraEpilogue<bf16>& epilogue, int64_t from, Lanes (&sums)[N][V]) {
  __mmask16 masks[V];
  for (int v = 0; v < V; ++v) masks[v] = column_mask16(from + 16 * v, epilogue.out);
  __m512 own[N][V];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) own[n][v] = sums[n][v].all;
  const bf16* b = epilogue.b + from;
  int64_t r = 0;
  for (; r + 2 <= epilogue.rank; r += 2, b += 2 * epilogue.out)
    add_ranks<WHOLE>(b, epilogue.out, true, epilogue.middle + r, epilogue.pitch, masks, own);
  if (r < epilogue.rank) add_ranks<WHOLE>(b, epilogue.out, false, epilogue.middle + r, epilogue.pitch, masks, own);
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) sums[n][v].all = own[n][v];
}

// sums[n][v] += middle[n] b, for columns from `first` on, in the same order of ranks as `expand`.
template <int N, int V>
inline void add_epilogue(const LoraEpilogue<bf16>& epilogue, int64_t first, Lanes (&sums)[N][V]) {
  const int64_t from = first - epilogue.column;
  if (!epilogue.b || from >= epilogue.out || from + 16 * V <= 0) return;
  if (from >= 0 && from + 16 * V <= epilogue.out)
    add_columns<true>(epilogue, from, sums);
  else
    add_columns<false>(epilogue, from, sums);
}
#endif
