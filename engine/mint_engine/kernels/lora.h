// The multi-LoRA product over packed slots: y[t] += (x[t] A^T * scaling) B, each row with its own slot's A and B.
// Punica's SGMV (Chen et al., MLSys 2024) for a CPU: both products in one pass while rows stay in the nearest cache.
#pragma once
#include <algorithm>
#include <utility>
#include "number.h"

constexpr int ITEM_ROWS = 8;    // rows of a work item at most
constexpr int MAX_RANK = 1024;  // the caller refuses more

struct Part {
  int64_t rank, in, out;
  float scaling;
};

// middle[row][r] = scaling * dot(x[row], a[r]); a is [rank, in].
template <typename T>
void shrink(const T* x, int64_t ldx, int rows, const T* a, const Part& part, float* middle) {
  for (int row = 0; row < rows; ++row)
    for (int64_t r = 0; r < part.rank; ++r) {
      const T *xs = x + row * ldx, *as = a + r * part.in;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < part.in; ++i) sum += wide(xs[i]) * wide(as[i]);
      middle[row * MAX_RANK + r] = sum * part.scaling;
    }
}

// y[row] += middle[row] b; b is [rank, out]; `next` bytes from `after` on are read after it.
template <typename T>
void expand(T* y, int64_t ldy, int rows, const T* b, const Part& part, const float* middle, const T*, int64_t) {
  constexpr int64_t CHUNK = 64;
  float sum[CHUNK];
  for (int row = 0; row < rows; ++row)
    for (int64_t at = 0; at < part.out; at += CHUNK) {
      int64_t width = std::min(CHUNK, part.out - at);
      T* ys = y + row * ldy + at;
      for (int64_t o = 0; o < width; ++o) sum[o] = wide(ys[o]);
      for (int64_t r = 0; r < part.rank; ++r) {
        const T* bs = b + r * part.out + at;
        float weight = middle[row * MAX_RANK + r];
#pragma omp simd
        for (int64_t o = 0; o < width; ++o) sum[o] += weight * wide(bs[o]);
      }
      for (int64_t o = 0; o < width; ++o) ys[o] = narrow<T>(sum[o]);
    }
}

#ifdef MINT_AVX512_BF16
// Brings what is read next into the cache, a line for each line that is read now: single rows wait for memory alone.
struct Ahead {
  const char *at, *end;
  inline void step(int lines) {
    for (int line = 0; line < lines && at < end; ++line, at += 64) _mm_prefetch(at, _MM_HINT_T1);
  }
};

// R rows of A against N rows of x, so that each load of either serves several dot products.
template <int N, int R>
inline void shrink_block(const bf16* x, int64_t ldx, const bf16* a, const Part& part, float* middle, Ahead& ahead) {
  __m512 sums[N][R];
  for (int n = 0; n < N; ++n)
    for (int r = 0; r < R; ++r) sums[n][r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < part.in; i += 32) {
    __mmask32 mask = first(part.in - i);
    __m512bh as[R];
    if (N == 1) ahead.step(R);
    for (int r = 0; r < R; ++r) as[r] = load_bf16(a + r * part.in + i, mask);
    for (int n = 0; n < N; ++n) {
      __m512bh xs = load_bf16(x + n * ldx + i, mask);
      for (int r = 0; r < R; ++r) sums[n][r] = _mm512_dpbf16_ps(sums[n][r], xs, as[r]);
    }
  }
  for (int n = 0; n < N; ++n)
    for (int r = 0; r < R; ++r) middle[n * MAX_RANK + r] = _mm512_reduce_add_ps(sums[n][r]) * part.scaling;
}

template <int N, int R>
inline void shrink_rows(const bf16* x, int64_t ldx, const bf16* a, const Part& part, float* middle) {
  const bf16* b = a + part.rank * part.in;
  Ahead ahead{(const char*)b, (const char*)(b + part.rank * part.out)};
  int64_t r = 0;
  for (; r + R <= part.rank; r += R) shrink_block<N, R>(x, ldx, a + r * part.in, part, middle + r, ahead);
  for (; r < part.rank; ++r) shrink_block<N, 1>(x, ldx, a + r * part.in, part, middle + r, ahead);
}

template <>
inline void shrink<bf16>(const bf16* x, int64_t ldx, int rows, const bf16* a, const Part& part, float* middle) {
  int row = 0;
  for (; row + 4 <= rows; row += 4) shrink_rows<4, 4>(x + row * ldx, ldx, a, part, middle + row * MAX_RANK);
  for (; row + 2 <= rows; row += 2) shrink_rows<2, 8>(x + row * ldx, ldx, a, part, middle + row * MAX_RANK);
  for (; row < rows; ++row) shrink_rows<1, 8>(x + row * ldx, ldx, a, part, middle + row * MAX_RANK);
}

// C chunks of 32 outputs of N rows. Two ranks at a time: their weights lie side by side, as the dot product wants them.
// `pairs` holds middle as bf16, two ranks in 32 bits. Lanes of 128 bits come apart in unpacking and are put right at
// the end.
template <int N, int C>
inline void expand_block(bf16* y, int64_t ldy, const bf16* b, const Part& part, const uint32_t* pairs, int64_t left,
                         Ahead& ahead) {
  __m512 low[N][C], high[N][C];
  for (int n = 0; n < N; ++n)
    for (int c = 0; c < C; ++c) low[n][c] = high[n][c] = _mm512_setzero_ps();
  for (int64_t r = 0; r < part.rank; r += 2) {
    const bf16* b0 = b + r * part.out;
    bool odd = r + 1 == part.rank;
    for (int c = 0; c < C; ++c) {
      if (N == 1) ahead.step(2);
      __mmask32 mask = first(left - 32 * c);
      __m512i w0 = _mm512_maskz_loadu_epi16(mask, b0 + 32 * c);
      __m512i w1 = odd ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, b0 + part.out + 32 * c);
      __m512bh lows = (__m512bh)_mm512_unpacklo_epi16(w0, w1), highs = (__m512bh)_mm512_unpackhi_epi16(w0, w1);
      for (int n = 0; n < N; ++n) {
        __m512bh weight = (__m512bh)_mm512_set1_epi32(pairs[n * (MAX_RANK / 2) + r / 2]);
        low[n][c] = _mm512_dpbf16_ps(low[n][c], lows, weight);
        high[n][c] = _mm512_dpbf16_ps(high[n][c], highs, weight);
      }
    }
  }
  const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i back = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int n = 0; n < N; ++n)
    for (int c = 0; c < C; ++c) {
      bf16* to = y + n * ldy + 32 * c;
      __mmask16 m0 = first16(left - 32 * c), m1 = left - 32 * c > 16 ? first16(left - 32 * c - 16) : __mmask16(0);
      __m512 one = _mm512_permutex2var_ps(low[n][c], front, high[n][c]);
      __m512 two = _mm512_permutex2var_ps(low[n][c], back, high[n][c]);
      store_narrow(to, _mm512_add_ps(load_wide(to, m0), one), m0);
      if (m1) store_narrow(to + 16, _mm512_add_ps(load_wide(to + 16, m1), two), m1);
    }
}

template <int N, int C>
inline void expand_rows(bf16* y, int64_t ldy, const bf16* b, const Part& part, const uint32_t* pairs, Ahead ahead) {
  int64_t at = 0;
  for (; at + 32 * C <= part.out; at += 32 * C) expand_block<N, C>(y + at, ldy, b + at, part, pairs, 32 * C, ahead);
  for (; at < part.out; at += 32)
    expand_block<N, 1>(y + at, ldy, b + at, part, pairs, std::min<int64_t>(32, part.out - at), ahead);
}

template <>
inline void expand<bf16>(bf16* y, int64_t ldy, int rows, const bf16* b, const Part& part, const float* middle,
                  const bf16* after, int64_t next) {
  const Ahead ahead{(const char*)after, (const char*)after + next};
  uint32_t pairs[ITEM_ROWS * (MAX_RANK / 2)];
  for (int row = 0; row < rows; ++row)
    for (int64_t r = 0; r < part.rank; r += 2) {
      uint32_t one = narrow<bf16>(middle[row * MAX_RANK + r]).bits;
      uint32_t two = r + 1 < part.rank ? narrow<bf16>(middle[row * MAX_RANK + r + 1]).bits : 0;
      pairs[row * (MAX_RANK / 2) + r / 2] = one | two << 16;
    }
  int row = 0;
  for (; row + 4 <= rows; row += 4)
    expand_rows<4, 2>(y + row * ldy, ldy, b, part, pairs + row * (MAX_RANK / 2), ahead);
  for (; row + 2 <= rows; row += 2)
    expand_rows<2, 4>(y + row * ldy, ldy, b, part, pairs + row * (MAX_RANK / 2), ahead);
  for (; row < rows; ++row)
    expand_rows<1, 6>(y + row * ldy, ldy, b, part, pairs + row * (MAX_RANK / 2), ahead);
}
#endif

// The slots' memory and tables, see `mint_engine.residency.slots`: memory [S, width]; places, ranks, scalings [M, S].
template <typename T>
struct Slots {
  const T* memory;
  int64_t width;
  const int64_t* places;
  const int32_t* ranks;
  const float* scalings;
  int64_t count;
};

// A module whose adapters add to a product's columns from `column` on.
struct Target {
  int64_t module, column, in, out;
};

// Rows of one slot, ITEM_ROWS at most.
struct Item {
  int32_t start, rows, slot;
};

// Where the weights of a slot for neighbouring targets lie: one run, as `packed` lays modules out.
template <typename T>
std::pair<const T*, const T*> run_of(const Slots<T>& slots, int32_t slot, const Target* targets, int64_t count) {
  const T *begin = nullptr, *end = nullptr;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t at = targets[t].module * slots.count + slot;
    if (slots.places[at] < 0) continue;
    const T* part = slots.memory + slot * slots.width + slots.places[at];
    if (!begin) begin = part;
    end = part + slots.ranks[at] * (targets[t].in + targets[t].out);
  }
  return {begin, end};
}

// Adds one item's adapter; `next` bytes from `after` on are read by whoever comes next.
template <typename T>
void add_lora(T* y, int64_t ldy, const T* x, int64_t ldx, const Item& item, const Slots<T>& slots,
              const Target* targets, int64_t count, const T* after, int64_t next) {
  float middle[ITEM_ROWS * MAX_RANK];
  for (int64_t t = 0; t < count; ++t) {
    const Target& target = targets[t];
    const int64_t at = target.module * slots.count + item.slot;
    if (slots.places[at] < 0) continue;
    const Part part{slots.ranks[at], target.in, target.out, slots.scalings[at]};
    const T* a = slots.memory + item.slot * slots.width + slots.places[at];
    const T* b = a + part.rank * part.in;
    // The next part of this slot lies behind this one.
    const bool last = t + 1 == count;
    shrink<T>(x + item.start * ldx, ldx, item.rows, a, part, middle);
    expand<T>(y + item.start * ldy + target.column, ldy, item.rows, b, part, middle,
              last ? after : b + part.rank * part.out,
              last ? next : part.rank * targets[t + 1].in * int64_t(sizeof(T)));
  }
}
