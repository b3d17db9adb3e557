// The products of routed experts with matrix registers. A weight [out, in] is the left-hand side as it is stored, 16
// outputs per register, so that nothing is packed; rows become columns of the right-hand side, and the result is transposed.
#pragma once
#include <vector>
#include "aligned.h"
#include "inputs.h"
#include "matrices.h"
#include "stream.h"
#include "transpose.h"
#ifdef MINT_AMX

// Whether a weight's inputs and outputs fill registers completely.
inline bool fills(int64_t in, int64_t out) { return in % DEEP == 0 && out % HEIGHT == 0; }

// Lays out rows x [rows, in] as [rows / 16, in / 2, 16, 2], missing rows zero. This thread's next call overwrites it.
inline const bf16* stand(const bf16* x, int64_t rows, int64_t in) {
  static thread_local Aligned<bf16> room;
  const int64_t groups = (rows + HEIGHT - 1) / HEIGHT;
  if (int64_t(room.size()) < groups * HEIGHT * in) room.resize(groups * HEIGHT * in);
  for (int64_t first = 0; first < rows; first += HEIGHT) {
    const int64_t some = std::min(HEIGHT, rows - first);
    for (int64_t i = 0; i < in; i += DEEP) {
      bf16 lying[HEIGHT * DEEP] = {};
      for (int64_t row = 0; row < some; ++row) std::copy_n(x + (first + row) * in + i, DEEP, lying + row * DEEP);
      transpose((const float*)lying, DEEP / 2, (float*)(room.data() + first * in + i * HEIGHT), HEIGHT);
    }
  }
  return room.data();
}

// 16 columns of y [some, ldy] = sums [16 outputs, 16 rows], transposed and rounded.
inline void put_turned(const float* sums, int64_t some, bf16* y, int64_t ldy) {
  float turned[HEIGHT * HEIGHT];
  transpose(sums, HEIGHT, turned, HEIGHT);
  for (int64_t row = 0; row < some; ++row)
    store_narrow(y + row * ldy, _mm512_loadu_ps(turned + row * HEIGHT), __mmask16(0xffff));
}

// Up to 32 outputs (16 unless `TWO`) of one group of rows. Needs `Matrices`.
template <bool TWO>
inline void multiply_turned(const bf16* weight, int64_t in, const bf16* standing, int64_t some, bf16* y, int64_t ldy,
                            Ahead& ahead) {
  const int64_t apart = in * int64_t(sizeof(bf16));
  alignas(64) float sums[2 * HEIGHT * HEIGHT];
  _tile_zero(0);
  if (TWO) _tile_zero(1);
  for (int64_t i = 0; i < in; i += DEEP) {
    ahead.bring(ahead.each);
    _tile_loadd(2, standing + i * HEIGHT, DEEP * sizeof(bf16));
    _tile_loadd(3, weight + i, apart); _tile_dpbf16ps(0, 3, 2);
    if constexpr (TWO) {
      _tile_loadd(4, weight + HEIGHT * in + i, apart); _tile_dpbf16ps(1, 4, 2);
    }
  }
  _tile_stored(0, sums, HEIGHT * sizeof(float));
  put_turned(sums, some, y, ldy);
  if constexpr (TWO) {
    _tile_stored(1, sums + HEIGHT * HEIGHT, HEIGHT * sizeof(float));
    put_turned(sums + HEIGHT * HEIGHT, some, y + HEIGHT, ldy);
  }
}

// One expert's rows, laid out by `stand`, times `outs` of its outputs -> y [rows, ldy].
inline void multiply_standing(const bf16* standing, int64_t rows, const bf16* weight, int64_t in, int64_t outs, bf16* y,
                              int64_t ldy, Ahead& ahead) {
  for (int64_t o = 0; o < outs; o += 2 * HEIGHT)
    for (int64_t row = 0; row < rows; row += HEIGHT) {
      const int64_t some = std::min(HEIGHT, rows - row);
      bf16* to = y + row * ldy + o;
      if (o + 2 * HEIGHT <= outs)
        multiply_turned<true>(weight + o * in, in, standing + row * in, some, to, ldy, ahead);
      else
        multiply_turned<false>(weight + o * in, in, standing + row * in, some, to, ldy, ahead);
    }
}
#endif
