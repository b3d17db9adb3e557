// The multi-LoRA product with AVX-512's dot products of bfloat16 pairs. Part of lora.h.
#pragma once

template <>
struct MiddleOf<bf16> {
  using Number = bf16;
};

// Loads 32 numbers, or those of the mask. Only the end of a row uses a mask: a loop of masked loads takes more than
// twice as long (EPYC of Zen 5, measured).
template <bool WHOLE>
inline __m512bh load_some(const bf16* from, __mmask32 mask) {
  return WHOLE ? load_bf16(from) : load_bf16(from, mask);
}

// Sums over vectors' lanes, of several vectors at once. Each is computed in the same order (halves, quarters, pairs),
// so that it does not depend on how many are computed together.
inline __m512 join_halves(__m512 a, __m512 b) {  // [a's 8 sums, b's 8 sums]
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
inline __m512 join_quarters(__m512 a, __m512 b) {  // [a's first vector, its second, b's first, its second], 4 sums each
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
inline __m512 join_pairs(__m512 a, __m512 b) {  // in each 128 bits: a's two, b's two
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
inline __m512 join_lanes(__m512 a, __m512 b) {  // in each 128 bits: the sums of a's two vectors, and of b's
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

// Lane i of the result is the sum of vector i.
inline __m512 sum_vectors(const __m512 (&sums)[16]) {
  __m512 four[4];
  for (int k = 0; k < 4; ++k)  // 128 bits j hold four parts of the sum of vector 4 j + k
    four[k] = join_quarters(join_halves(sums[k], sums[4 + k]), join_halves(sums[8 + k], sums[12 + k]));
  return join_lanes(join_pairs(four[0], four[1]), join_pairs(four[2], four[3]));
}
inline __m512 sum_vectors(const __m512 (&sums)[8]) {
  __m512 two[2];
  for (int k = 0; k < 2; ++k)
    two[k] = join_quarters(join_halves(sums[k], sums[2 + k]), join_halves(sums[4 + k], sums[6 + k]));
  const __m512 both = join_pairs(two[0], two[1]);
  return _mm512_maskz_compress_ps(0x3333, join_lanes(both, both));
}
inline __m512 sum_vectors(const __m512 (&sums)[1]) {
  const __m512 one = join_quarters(join_halves(sums[0], sums[0]), join_halves(sums[0], sums[0]));
  return join_lanes(join_pairs(one, one), join_pairs(one, one));
}

template <bool WHOLE, int N, int R>
inline void shrink_inputs(const bf16* x, int64_t ldx, const bf16* a, int64_t in, __mmask32 mask,
                          __m512 (&sums)[N * R]) {
  __m512bh xs[N];
  for (int n = 0; n < N; ++n) xs[n] = load_some<WHOLE>(x + n * ldx, mask);
  for (int r = 0; r < R; ++r) {
    if (N > 1) __builtin_prefetch(a + (R + r) * in, 0, 3);  // the next block's
    const __m512bh as = load_some<WHOLE>(a + r * in, mask);
    for (int n = 0; n < N; ++n) sums[n * R + r] = _mm512_dpbf16_ps(sums[n * R + r], xs[n], as);
  }
}

// R rows of A against N rows of x, so that each load of either serves several dot products.
template <int N, int R>
inline void shrink_block(const bf16* x, int64_t ldx, const bf16* a, const LoraShape& shape, bf16* middle, int64_t pitch,
                         PrefetchRange& ahead) {
  __m512 sums[N * R];
  for (int n = 0; n < N * R; ++n) sums[n] = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 32 <= shape.in; i += 32) {
    ahead.prefetch(N == 1 ? R : ahead.each);
    shrink_inputs<true, N, R>(x + i, ldx, a + i, shape.in, 0, sums);
  }
  if (i < shape.in) shrink_inputs<false, N, R>(x + i, ldx, a + i, shape.in, mask32(shape.in - i), sums);
  alignas(32) bf16 found[16];
  const __m512 scaled = _mm512_mul_ps(sum_vectors(sums), _mm512_set1_ps(shape.scaling));
  _mm256_store_si256((__m256i*)found, (__m256i)_mm512_cvtneps_pbh(scaled));
  for (int n = 0; n < N; ++n) std::memcpy(middle + n * pitch, found + n * R, R * sizeof(bf16));
}

template <int N>
inline void shrink_rows(const bf16* x, int64_t ldx, const bf16* a, const LoraShape& shape, bf16* middle, int64_t pitch,
                        PrefetchRange& ahead) {
  constexpr int R = 16 / N;
  int64_t r = 0;
  for (; r + R <= shape.rank; r += R) shrink_block<N, R>(x, ldx, a + r * shape.in, shape, middle + r, pitch, ahead);
  for (; r + 8 / N <= shape.rank; r += 8 / N)
    shrink_block<N, 8 / N>(x, ldx, a + r * shape.in, shape, middle + r, pitch, ahead);
  for (; r < shape.rank; ++r)
    for (int n = 0; n < N; ++n)
      shrink_block<1, 1>(x + n * ldx, ldx, a + r * shape.in, shape, middle + n * pitch + r, pitch, ahead);
  if (shape.rank % 2)
    for (int n = 0; n < N; ++n) middle[n * pitch + shape.rank] = {0};
}

inline void shrink(const bf16* x, int64_t ldx, int rows, const bf16* a, const LoraShape& shape, bf16* middle,
                   int64_t pitch, PrefetchRange& ahead) {
  int row = 0;
  for (; row + 4 <= rows; row += 4) shrink_rows<4>(x + row * ldx, ldx, a, shape, middle + row * pitch, pitch, ahead);
  for (; row + 2 <= rows; row += 2) shrink_rows<2>(x + row * ldx, ldx, a, shape, middle + row * pitch, pitch, ahead);
  for (; row < rows; ++row) shrink_rows<1>(x + row * ldx, ldx, a, shape, middle + row * pitch, pitch, ahead);
}

inline __m512bh spread_pair(const bf16* from) {
  uint32_t pair;
  std::memcpy(&pair, from, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// Writes 32 outputs' sums as `expand_ranks` leaves them: of each eight, the first four in `low` and the others in
// `high`. Stored sums stay in that order until they are settled.
inline void store_sums(bf16* to, __m512 low, __m512 high) {
  const __m512i all = _mm512_loadu_si512(to), nothing = _mm512_setzero_si512();
  low = _mm512_add_ps((__m512)_mm512_unpacklo_epi16(nothing, all), low);
  high = _mm512_add_ps((__m512)_mm512_unpackhi_epi16(nothing, all), high);
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi64(order, (__m512i)_mm512_cvtne2ps_pbh(high, low)));
}
inline void store_sums(float* to, __m512 low, __m512 high) {
  _mm512_storeu_ps(to, low);
  _mm512_storeu_ps(to + 16, high);
}

// Writes some of 16 outputs' sums, which are in their own order.
inline void store_partial(bf16* to, __m512 sums, __mmask16 mask) {
  store_narrow(to, _mm512_add_ps(load_wide(to, mask), sums), mask);
}
inline void store_partial(float* to, __m512 sums, __mmask16 mask) { _mm512_mask_storeu_ps(to, mask, sums); }

// Adds what two ranks (one unless `two`) add to C chunks of 32 outputs of N rows. Their weights are interleaved for the
// dot product; this splits each lane of 128 bits between `low` and `high`.
template <bool WHOLE, int N, int C>
inline void expand_ranks(const bf16* b, int64_t out, bool two, const bf16* middle, int64_t pitch, __mmask32 mask,
                         __m512 (&low)[N][C], __m512 (&high)[N][C]) {
  for (int c = 0; c < C; ++c) {
    const __m512i one = (__m512i)load_some<WHOLE>(b + 32 * c, mask);
    const __m512i other = two ? (__m512i)load_some<WHOLE>(b + out + 32 * c, mask) : _mm512_setzero_si512();
    const __m512bh lows = (__m512bh)_mm512_unpacklo_epi16(one, other);
    const __m512bh highs = (__m512bh)_mm512_unpackhi_epi16(one, other);
    for (int n = 0; n < N; ++n) {
      const __m512bh weight = spread_pair(middle + n * pitch);
      low[n][c] = _mm512_dpbf16_ps(low[n][c], lows, weight);
      high[n][c] = _mm512_dpbf16_ps(high[n][c], highs, weight);
    }
  }
}

// C chunks of 32 outputs of N rows; unless `WHOLE`, the first `left` outputs of one chunk.
template <bool WHOLE, int N, int C, typename Out>
inline void expand_block(Out* y, int64_t ldy, const bf16* b, const LoraShape& shape, const bf16* middle, int64_t pitch,
                         int64_t left, PrefetchRange& ahead) {
  static_assert(WHOLE || C == 1);
  __m512 low[N][C], high[N][C];
  for (int n = 0; n < N; ++n)
    for (int c = 0; c < C; ++c) low[n][c] = high[n][c] = _mm512_setzero_ps();
  const __mmask32 mask = mask32(left);
  int64_t r = 0;
  for (; r + 2 <= shape.rank; r += 2) {
    if (N == 1) ahead.prefetch(2 * C);
    expand_ranks<WHOLE>(b + r * shape.out, shape.out, true, middle + r, pitch, mask, low, high);
  }
  if (r < shape.rank) expand_ranks<WHOLE>(b + r * shape.out, shape.out, false, middle + r, pitch, mask, low, high);
  for (int n = 0; n < N; ++n)
    for (int c = 0; c < C; ++c) {
      Out* to = y + n * ldy + 32 * c;
      if constexpr (WHOLE) {
        store_sums(to, low[n][c], high[n][c]);
      } else {
        const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        store_partial(to, _mm512_permutex2var_ps(low[n][c], front, high[n][c]), __mmask16(mask));
        store_partial(to + 16, _mm512_permutex2var_ps(low[n][c], back, high[n][c]), __mmask16(mask >> 16));
      }
    }
}

template <int N, int C, typename Out>
inline void expand_rows(Out* y, int64_t ldy, const bf16* b, const LoraShape& shape, const bf16* middle, int64_t pitch,
                        PrefetchRange& ahead) {
  int64_t at = 0;
  for (; at + 32 * C <= shape.out; at += 32 * C)
    expand_block<true, N, C>(y + at, ldy, b + at, shape, middle, pitch, 32, ahead);
  for (; at + 32 <= shape.out; at += 32) expand_block<true, N, 1>(y + at, ldy, b + at, shape, middle, pitch, 32, ahead);
  if (at < shape.out) expand_block<false, N, 1>(y + at, ldy, b + at, shape, middle, pitch, shape.out - at, ahead);
}

template <bool ADD>
inline void expand(Sums<ADD, bf16>* y, int64_t ldy, int rows, const bf16* b, const LoraShape& shape, const bf16* middle,
                   int64_t pitch, PrefetchRange& ahead) {
  int row = 0;
  for (; row + 4 <= rows; row += 4) expand_rows<4, 2>(y + row * ldy, ldy, b, shape, middle + row * pitch, pitch, ahead);
  for (; row + 2 <= rows; row += 2) expand_rows<2, 4>(y + row * ldy, ldy, b, shape, middle + row * pitch, pitch, ahead);
  for (; row < rows; ++row) expand_rows<1, 6>(y + row * ldy, ldy, b, shape, middle + row * pitch, pitch, ahead);
}

inline void add_sums(bf16* y, const float* sums, int64_t count) {
  int64_t o = 0;
  for (; o + 32 <= count; o += 32) store_sums(y + o, _mm512_loadu_ps(sums + o), _mm512_loadu_ps(sums + o + 16));
  for (; o < count; o += 16) {
    const __mmask16 mask = mask16(count - o);
    store_partial(y + o, _mm512_maskz_loadu_ps(mask, sums + o), mask);
  }
}
