// What an adapter adds to many training rows, with matrix registers: both of its products, for one run's rows.
#pragma once
#include "added.h"
#include "aligned.h"
#include "strip.h"
#include "turned.h"
#ifdef MINT_AMX

// Multiplies up to G registers of rows by 16 ranks from `first` on, whose weights are `standing`, and writes the
// middles. G sums are computed at once: in one, a product waits three times its own duration for the one before.
template <int G>
inline void shrink_groups(const bf16* const* rows, int64_t ldx, const bf16* standing, int64_t in, const Part& part,
                          int64_t first, bf16* const* to, const int64_t* counts, int64_t pitch) {
  alignas(64) float sums[4][HEIGHT * HEIGHT];
  const int64_t apart = ldx * int64_t(sizeof(bf16));
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (int64_t i = 0; i < in; i += DEEP) {
    _tile_loadd(7, standing + i * HEIGHT, DEEP * sizeof(bf16));
    _tile_loadd(4, rows[0] + i, apart); _tile_dpbf16ps(0, 4, 7);
    if constexpr (G > 1) {
      _tile_loadd(5, rows[1] + i, apart); _tile_dpbf16ps(1, 5, 7);
      _tile_loadd(6, rows[2] + i, apart); _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(4, rows[3] + i, apart); _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, sums[0], HEIGHT * sizeof(float)); _tile_stored(1, sums[1], HEIGHT * sizeof(float));
  _tile_stored(2, sums[2], HEIGHT * sizeof(float)); _tile_stored(3, sums[3], HEIGHT * sizeof(float));
  const __m512 scaling = _mm512_set1_ps(part.scaling);
  for (int g = 0; g < G; ++g)
    for (int64_t n = 0; n < counts[g]; ++n)
      store_narrow(to[g] + n * pitch + first, _mm512_mul_ps(_mm512_loadu_ps(sums[g] + n * HEIGHT), scaling),
                   first16(part.rank - first));
}

// As `shrink`, for any number of rows; `part.in` must fill registers.
inline void shrink_run(const bf16* x, int64_t ldx, int64_t rows, const bf16* a, const Part& part, bf16* middle,
                       int64_t pitch) {
  const Matrices registers;
  const Heights from = heights(x, ldx, rows, part.in);
  const bf16* standing = stand(a, part.rank, part.in);
  const auto group = [&](int64_t row) { return row + HEIGHT <= rows ? from.rows + row * ldx : from.rest; };
  for (int64_t first = 0; first < part.rank; first += HEIGHT) {
    const bf16* weights = standing + first * part.in;
    int64_t row = 0;
    for (; row + 3 * HEIGHT < rows; row += 4 * HEIGHT) {
      const bf16* each[4];
      bf16* to[4];
      int64_t counts[4];
      for (int g = 0; g < 4; ++g) {
        const int64_t at = row + g * HEIGHT;
        each[g] = group(at), to[g] = middle + at * pitch, counts[g] = std::min(HEIGHT, rows - at);
      }
      shrink_groups<4>(each, ldx, weights, part.in, part, first, to, counts, pitch);
    }
    for (; row < rows; row += HEIGHT) {
      const bf16* one = group(row);
      bf16* to = middle + row * pitch;
      const int64_t count = std::min(HEIGHT, rows - row);
      shrink_groups<1>(&one, ldx, weights, part.in, part, first, &to, &count, pitch);
    }
  }
  if (part.rank % 2)
    for (int64_t row = 0; row < rows; ++row) middle[row * pitch + part.rank] = {0};
}

// Middles of `rows` rows -> [rows, depth], both rounded up to full registers; missing numbers are zero.
inline void lay_middles(const Strip<bf16>& strip, int64_t rows, bf16* to) {
  const int64_t depth = deep(strip.rank), high = (rows + HEIGHT - 1) / HEIGHT * HEIGHT;
  for (int64_t row = 0; row < high; ++row)
    for (int64_t r = 0; r < depth; r += DEEP) {
      const __mmask32 there = row < rows ? first(strip.rank - r) : __mmask32(0);
      const bf16* from = strip.middle + row * strip.pitch + r;
      _mm512_storeu_si512(to + row * depth + r, _mm512_maskz_loadu_epi16(there, from));
    }
}

// Whether an adapter adds to any output of the panel whose first is `first`.
inline bool meets(const Strip<bf16>& strip, int64_t first) {
  return first < strip.column + strip.out && first + 16 * BESIDE > strip.column;
}

// The adapter's weights as a panel of those outputs, [depth / 2, 48, 2].
inline void lay_weights(const Strip<bf16>& strip, int64_t first, bf16* to) {
  constexpr int64_t WIDTH = 16 * BESIDE;
  for (int64_t r = 0; r < deep(strip.rank); r += 2)
    for (int64_t v = 0; v < BESIDE; ++v) {
      const int64_t from = first + 16 * v - strip.column;
      const __mmask16 mask = within16(from, strip.out);
      const __mmask16 one = r < strip.rank ? mask : __mmask16(0), other = r + 1 < strip.rank ? mask : __mmask16(0);
      const bf16* b = strip.b + r * strip.out + from;
      _mm512_storeu_si512(to + r * WIDTH + 32 * v, pair_up(b, one, b + strip.out, other));
    }
}

// sums [rows, 48], for outputs from `first` on, += what an adapter adds. The last rows use their own buffer:
// rows after them, which are not the run's, stay as they are, whatever the adapter's numbers. Needs `Matrices`.
inline void add_run(const Strip<bf16>& strip, int64_t rows, int64_t first, float* sums) {
  constexpr int64_t WIDTH = 16 * BESIDE;
  static thread_local Aligned<bf16> middles, weights;
  alignas(64) float last[HEIGHT * WIDTH];
  const int64_t depth = deep(strip.rank), whole = rows / HEIGHT * HEIGHT;
  middles.resize((whole + HEIGHT) * depth), weights.resize(depth * WIDTH);
  lay_middles(strip, rows, middles.data());
  lay_weights(strip, first, weights.data());
  const auto nothing = [](int) {};
  sum_parts<false>({middles.data(), depth, whole, nullptr}, weights.data(), depth, 1, sums, nothing);
  if (whole == rows) return;
  std::copy_n(sums + whole * WIDTH, (rows - whole) * WIDTH, last);
  sum_one<false>(middles.data() + whole * depth, depth, weights.data(), depth, last, nothing);
  std::copy_n(last, (rows - whole) * WIDTH, sums + whole * WIDTH);
}
#endif
