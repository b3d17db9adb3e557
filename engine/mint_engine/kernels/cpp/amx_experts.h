// The products of routed experts with AMX. A weight [out, in] is the left-hand side as it is stored, 16
// outputs per register, so that nothing is packed; rows become columns of the right-hand side, and the result is
// transposed.
#pragma once
#include <vector>
#include "aligned.h"
#include "inputs.h"
#include "amx.h"
#include "prefetch.h"
#include "transpose.h"
#ifdef MINT_AMX

// Whether a weight's inputs and outputs fill registers completely.
inline bool fills_tiles(int64_t in, int64_t out) { return in % AMX_DEPTH == 0 && out % AMX_ROWS == 0; }

// Packs rows x [rows, in] as columns [rows / 16, in / 2, 16, 2], padded with zeros. This thread's next call overwrites
// it.
inline const bf16* pack_columns(const bf16* x, int64_t rows, int64_t in) {
  static thread_local Aligned<bf16> buffer;
  const int64_t groups = (rows + AMX_ROWS - 1) / AMX_ROWS;
  if (int64_t(buffer.size()) < groups * AMX_ROWS * in) buffer.resize(groups * AMX_ROWS * in);
  for (int64_t first = 0; first < rows; first += AMX_ROWS) {
    const int64_t some = std::min(AMX_ROWS, rows - first);
    for (int64_t i = 0; i < in; i += AMX_DEPTH) {
      bf16 row_major[AMX_ROWS * AMX_DEPTH] = {};
      for (int64_t row = 0; row < some; ++row)
        std::copy_n(x + (first + row) * in + i, AMX_DEPTH, row_major + row * AMX_DEPTH);
      transpose((const float*)row_major, AMX_DEPTH / 2, (float*)(buffer.data() + first * in + i * AMX_ROWS), AMX_ROWS);
    }
  }
  return buffer.data();
}

// 16 columns of y [some, ldy] = sums [16 outputs, 16 rows], transposed and rounded.
inline void store_transposed(const float* sums, int64_t some, bf16* y, int64_t ldy) {
  float transposed[AMX_ROWS * AMX_ROWS];
  transpose(sums, AMX_ROWS, transposed, AMX_ROWS);
  for (int64_t row = 0; row < some; ++row)
    store_narrow(y + row * ldy, _mm512_loadu_ps(transposed + row * AMX_ROWS), __mmask16(0xffff));
}

// Up to 32 outputs (16 unless `TWO`) of one group of rows. Needs `TileConfig`.
template <bool TWO>
inline void multiply_transposed(const bf16* weight, int64_t in, const bf16* packed, int64_t some, bf16* y, int64_t ldy,
                                PrefetchRange& ahead) {
  const int64_t apart = in * int64_t(sizeof(bf16));
  alignas(64) float sums[2 * AMX_ROWS * AMX_ROWS];
  _tile_zero(0);
  if (TWO) _tile_zero(1);
  for (int64_t i = 0; i < in; i += AMX_DEPTH) {
    ahead.prefetch(ahead.each);
    _tile_loadd(2, packed + i * AMX_ROWS, AMX_DEPTH * sizeof(bf16));
    _tile_loadd(3, weight + i, apart); _tile_dpbf16ps(0, 3, 2);
    if constexpr (TWO) {
      _tile_loadd(4, weight + AMX_ROWS * in + i, apart); _tile_dpbf16ps(1, 4, 2);
    }
  }
  _tile_stored(0, sums, AMX_ROWS * sizeof(float));
  store_transposed(sums, some, y, ldy);
  if constexpr (TWO) {
    _tile_stored(1, sums + AMX_ROWS * AMX_ROWS, AMX_ROWS * sizeof(float));
    store_transposed(sums + AMX_ROWS * AMX_ROWS, some, y + AMX_ROWS, ldy);
  }
}

// One expert's rows, packed by `pack_columns`, times `outs` of its outputs -> y [rows, ldy].
inline void multiply_packed(const bf16* packed, int64_t rows, const bf16* weight, int64_t in, int64_t outs, bf16* y,
                            int64_t ldy, PrefetchRange& ahead) {
  for (int64_t o = 0; o < outs; o += 2 * AMX_ROWS)
    for (int64_t row = 0; row < rows; row += AMX_ROWS) {
      const int64_t some = std::min(AMX_ROWS, rows - row);
      bf16* to = y + row * ldy + o;
      if (o + 2 * AMX_ROWS <= outs)
        multiply_transposed<true>(weight + o * in, in, packed + row * in, some, to, ldy, ahead);
      else
        multiply_transposed<false>(weight + o * in, in, packed + row * in, some, to, ldy, ahead);
    }
}
#endif
