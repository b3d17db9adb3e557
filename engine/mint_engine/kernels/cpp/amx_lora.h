// An adapter's two products with AMX, for the many rows of one run in training.
#pragma once
#include "adapter_run.h"
#include "aligned.h"
#include "lora_epilogue.h"
#include "amx_experts.h"
#ifdef MINT_AMX

// Multiplies up to G registers of rows by 16 ranks from `first` on, whose weights are `packed`, and writes the
// middles. G sums are computed at once: in one, a product waits three times its own duration for the one before.
template <int G>
inline void shrink_groups(const bf16* const* rows, int64_t ldx, const bf16* packed, int64_t in, const LoraShape& shape,
                          int64_t first, bf16* const* to, const int64_t* counts, int64_t pitch) {
  alignas(64) float sums[4][AMX_ROWS * AMX_ROWS];
  const int64_t apart = ldx * int64_t(sizeof(bf16));
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (int64_t i = 0; i < in; i += AMX_DEPTH) {
    _tile_loadd(7, packed + i * AMX_ROWS, AMX_DEPTH * sizeof(bf16));
    _tile_loadd(4, rows[0] + i, apart); _tile_dpbf16ps(0, 4, 7);
    if constexpr (G > 1) {
      _tile_loadd(5, rows[1] + i, apart); _tile_dpbf16ps(1, 5, 7);
      _tile_loadd(6, rows[2] + i, apart); _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(4, rows[3] + i, apart); _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, sums[0], AMX_ROWS * sizeof(float)); _tile_stored(1, sums[1], AMX_ROWS * sizeof(float));
  _tile_stored(2, sums[2], AMX_ROWS * sizeof(float)); _tile_stored(3, sums[3], AMX_ROWS * sizeof(float));
  const __m512 scaling = _mm512_set1_ps(shape.scaling);
  for (int g = 0; g < G; ++g)
    for (int64_t n = 0; n < counts[g]; ++n)
      store_narrow(to[g] + n * pitch + first, _mm512_mul_ps(_mm512_loadu_ps(sums[g] + n * AMX_ROWS), scaling),
                   mask16(shape.rank - first));
}

// As `shrink`, for any number of rows; `shape.in` must fill registers.
inline void shrink_run(const bf16* x, int64_t ldx, int64_t rows, const bf16* a, const LoraShape& shape, bf16* middle,
                       int64_t pitch) {
  const TileConfig registers;
  const PaddedRows from = pad_rows(x, ldx, rows, shape.in);
  const bf16* packed = pack_columns(a, shape.rank, shape.in);
  const auto group = [&](int64_t row) { return row + AMX_ROWS <= rows ? from.rows + row * ldx : from.tail; };
  for (int64_t first = 0; first < shape.rank; first += AMX_ROWS) {
    const bf16* weights = packed + first * shape.in;
    int64_t row = 0;
    for (; row + 3 * AMX_ROWS < rows; row += 4 * AMX_ROWS) {
      const bf16* each[4];
      bf16* to[4];
      int64_t counts[4];
      for (int g = 0; g < 4; ++g) {
        const int64_t at = row + g * AMX_ROWS;
        each[g] = group(at), to[g] = middle + at * pitch, counts[g] = std::min(AMX_ROWS, rows - at);
      }
      shrink_groups<4>(each, ldx, weights, shape.in, shape, first, to, counts, pitch);
    }
    for (; row < rows; row += AMX_ROWS) {
      const bf16* one = group(row);
      bf16* to = middle + row * pitch;
      const int64_t count = std::min(AMX_ROWS, rows - row);
      shrink_groups<1>(&one, ldx, weights, shape.in, shape, first, &to, &count, pitch);
    }
  }
  if (shape.rank % 2)
    for (int64_t row = 0; row < rows; ++row) middle[row * pitch + shape.rank] = {0};
}

// Middles of `rows` rows -> [rows, depth], both padded with zeros to full registers.
inline void pack_middles(const LoraEpilogue<bf16>& epilogue, int64_t rows, bf16* to) {
  const int64_t depth = padded_depth(epilogue.rank), high = (rows + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS;
  for (int64_t row = 0; row < high; ++row)
    for (int64_t r = 0; r < depth; r += AMX_DEPTH) {
      const __mmask32 there = row < rows ? mask32(epilogue.rank - r) : __mmask32(0);
      const bf16* from = epilogue.middle + row * epilogue.pitch + r;
      _mm512_storeu_si512(to + row * depth + r, _mm512_maskz_loadu_epi16(there, from));
    }
}

// Whether an adapter adds to any output of the panel whose first is `first`.
inline bool overlaps(const LoraEpilogue<bf16>& epilogue, int64_t first) {
  return first < epilogue.column + epilogue.out && first + 16 * PANEL_TILES > epilogue.column;
}

// The adapter's weights as a panel of those outputs, [depth / 2, 48, 2].
inline void pack_weights(const LoraEpilogue<bf16>& epilogue, int64_t first, bf16* to) {
  constexpr int64_t WIDTH = 16 * PANEL_TILES;
  for (int64_t r = 0; r < padded_depth(epilogue.rank); r += 2)
    for (int64_t v = 0; v < PANEL_TILES; ++v) {
      const int64_t from = first + 16 * v - epilogue.column;
      const __mmask16 mask = column_mask16(from, epilogue.out);
      const __mmask16 one = r < epilogue.rank ? mask : __mmask16(0),
                      other = r + 1 < epilogue.rank ? mask : __mmask16(0);
      const bf16* b = epilogue.b + r * epilogue.out + from;
      _mm512_storeu_si512(to + r * WIDTH + 32 * v, interleave(b, one, b + epilogue.out, other));
    }
}

// sums [rows, 48], for outputs from `first` on, += what an adapter adds. The last rows use their own buffer:
// rows after them, which are not the run's, stay as they are, whatever the adapter's numbers. Needs `TileConfig`.
inline void add_run(const LoraEpilogue<bf16>& epilogue, int64_t rows, int64_t first, float* sums) {
  constexpr int64_t WIDTH = 16 * PANEL_TILES;
  static thread_local Aligned<bf16> middles, weights;
  alignas(64) float last[AMX_ROWS * WIDTH];
  const int64_t depth = padded_depth(epilogue.rank), whole = rows / AMX_ROWS * AMX_ROWS;
  middles.resize((whole + AMX_ROWS) * depth), weights.resize(depth * WIDTH);
  pack_middles(epilogue, rows, middles.data());
  pack_weights(epilogue, first, weights.data());
  const auto nothing = [](int) {};
  sum_parts<false>({middles.data(), depth, whole, nullptr}, weights.data(), depth, 1, sums, nothing);
  if (whole == rows) return;
  std::copy_n(sums + whole * WIDTH, (rows - whole) * WIDTH, last);
  sum_one_tile<false>(middles.data() + whole * depth, depth, weights.data(), depth, last, nothing);
  std::copy_n(last, (rows - whole) * WIDTH, sums + whole * WIDTH);
}
#endif
