// Token rows of a cache that keeps one for all heads: how they are rotated and packed for products (attend.h).
#pragma once
#include <type_traits>
#include "attend.h"
#include "step.h"
#include "transpose.h"

// The rows of 16 tokens, `ld` apart.
template <typename T>
struct TokenRows {
  const T* from;
  int64_t ld;
};

// Rotates a part of a query or key by its position -> to [E], as halves; `pairs`: the input is interleaved neighbours.
template <typename T>
void rotate_into(const T* from, const Latent<T>& by, int64_t position, bool pairs, T* to) {
  const int64_t half = by.rotated / 2;
  const float *c = by.cos + position * half, *s = by.sin + position * half;
  if (!pairs) {
    std::copy_n(from, by.rotated, to);
    return rotate(to, c, s, half, false);
  }
  for (int64_t i = 0; i < half; ++i) {
    const float one = widen(from[2 * i]), two = widen(from[2 * i + 1]);
    to[i] = narrow<T>(one * c[i] - two * s[i]);
    to[i + half] = narrow<T>(two * c[i] + one * s[i]);
  }
}

// Packs their first `width` numbers as keys [width / 2][places][2], in the first 16 of the places.
template <typename T>
void pack_keys(const TokenRows<T>& rows, int64_t width, T* to, int64_t places = PAGE) {
  int64_t done = 0;
#ifdef MINT_AVX512_BF16
  if constexpr (std::is_same_v<T, bf16>)
    if (rows.ld % 2 == 0)
      for (; done + 32 <= width; done += 32)
        transpose((const float*)(rows.from + done), rows.ld / 2, (float*)(to + done * places), places);
#endif
  for (int64_t d = done; d < width; ++d)
    for (int t = 0; t < PAGE; ++t) to[(d / 2) * 2 * places + t * 2 + d % 2] = rows.from[t * rows.ld + d];
}

// Packs their first `width` numbers as values [8][width][2].
template <typename T>
void pack_values(const TokenRows<T>& rows, int64_t width, T* to) {
  const T* from = rows.from;
  for (int t = 0; t < PAGE; t += 2, from += 2 * rows.ld, to += 2 * width) {
    int64_t done = 0;
#ifdef MINT_AVX512_BF16
    if constexpr (std::is_same_v<T, bf16>)
      for (; done + 16 <= width; done += 16)
        _mm512_storeu_si512(to + 2 * done, interleave(from + done, 0xffff, from + rows.ld + done, 0xffff));
#endif
    for (int64_t d = done; d < width; ++d) to[2 * d] = from[d], to[2 * d + 1] = from[rows.ld + d];
  }
}
