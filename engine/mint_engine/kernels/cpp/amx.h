// Products of bfloat16 with the tile registers of Intel AMX: one instruction multiplies 16 rows by 16 outputs over 32
// inputs, eight times as much as a vector dot product. Panels are stored in the registers' layout (VNNI: pairs of
// inputs). A sum is computed in the order of its inputs, 32 at a time, whatever other rows there are.
#pragma once
#include <algorithm>
#include <vector>
#include "aligned.h"
#include "lanes.h"

// Whether products of a number type use AMX.
template <typename T>
constexpr bool USES_AMX = false;

#if defined(__AMX_BF16__) && defined(MINT_AVX512_BF16)
#define MINT_AMX 1
template <>
constexpr bool USES_AMX<bf16> = true;

constexpr int64_t AMX_ROWS = 16;   // rows of a register
constexpr int64_t AMX_DEPTH = 32;  // inputs that are multiplied together
// Rounds up to a multiple of AMX_DEPTH.
inline int64_t padded_depth(int64_t count) { return (count + AMX_DEPTH - 1) / AMX_DEPTH * AMX_DEPTH; }
constexpr int64_t PANEL_TILES = 3;  // registers beside each other that hold a panel's outputs
constexpr int64_t UNITS = 6;        // into which prefetching divides AMX_DEPTH inputs of a panel: two per register

// Configures this thread's registers as 16 rows of 64 bytes until it is destroyed; other libraries use other shapes.
class TileConfig {
 public:
  TileConfig() {
    struct alignas(64) Shapes {  // see LDTILECFG in Intel's manual
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    std::fill_n(shapes.bytes, 8, uint16_t(AMX_DEPTH * sizeof(bf16)));
    std::fill_n(shapes.rows, 8, uint8_t(AMX_ROWS));
    asm volatile("" : : "r"(&shapes) : "memory");  // GCC 12 believes that the next call reads only eight bytes of them
    _tile_loadconfig(&shapes);
  }
  ~TileConfig() { _tile_release(); }
  TileConfig(const TileConfig&) = delete;
  TileConfig& operator=(const TileConfig&) = delete;
};

// Rows of inputs as full registers: the last rows are copied to a buffer that is padded to a full register.
struct PaddedRows {
  const bf16* rows;
  int64_t ld, count;
  const bf16* tail;  // the rows after the last full register, also `ld` apart
};

// Rows x [count, depth], `ld` apart. This thread's next call overwrites the copied rows.
inline PaddedRows pad_rows(const bf16* x, int64_t ld, int64_t count, int64_t depth) {
  static thread_local Aligned<bf16> buffer;
  const int64_t whole = count / AMX_ROWS * AMX_ROWS;
  if (whole == count) return {x, ld, count, nullptr};
  if (int64_t(buffer.size()) < AMX_ROWS * ld) buffer.resize(AMX_ROWS * ld);
  for (int64_t row = whole; row < count; ++row) std::copy_n(x + row * ld, depth, buffer.data() + (row - whole) * ld);
  return {x, ld, count, buffer.data()};
}

// Additional inputs of the same rows, `ld` apart, and their panel of weights.
struct ExtraInputs {
  const bf16* rows;
  int64_t ld;
  const bf16* panel;
  int64_t depth;
};

// Adds the products of twice 16 rows and a panel to six registers. Between products, calls `prefetch` with
// the number of units of the panel (see UNITS) that were multiplied.
template <typename F>
inline void add_two_tiles(const bf16* x, const bf16* next, int64_t ld, const bf16* panel, int64_t depth, F& prefetch) {
  constexpr int64_t WIDTH = 16 * PANEL_TILES, PANEL_STRIDE = WIDTH * 2 * sizeof(bf16);
  const int64_t apart = ld * int64_t(sizeof(bf16));
  for (int64_t i = 0; i < depth; i += AMX_DEPTH, panel += AMX_DEPTH * WIDTH) {
    _tile_loadd(6, x + i, apart);
    _tile_loadd(7, panel, PANEL_STRIDE); _tile_dpbf16ps(0, 6, 7); prefetch(1);
    _tile_loadd(7, panel + 32, PANEL_STRIDE); _tile_dpbf16ps(1, 6, 7); prefetch(1);
    _tile_loadd(7, panel + 64, PANEL_STRIDE); _tile_dpbf16ps(2, 6, 7); prefetch(1);
    _tile_loadd(6, next + i, apart);
    _tile_dpbf16ps(5, 6, 7); prefetch(1);
    _tile_loadd(7, panel + 32, PANEL_STRIDE); _tile_dpbf16ps(4, 6, 7); prefetch(1);
    _tile_loadd(7, panel, PANEL_STRIDE); _tile_dpbf16ps(3, 6, 7); prefetch(1);
  }
}

// sums [32, 48] of twice 16 rows, in six registers, including `count` sets of additional inputs. Unless `FRESH`, they
// are added to `sums`.
template <bool FRESH, typename F>
inline void sum_two_tiles(const bf16* x, const bf16* next, int64_t ld, const bf16* panel, int64_t depth, float* sums,
                          F& prefetch, const ExtraInputs* extra = nullptr, int64_t count = 0, int64_t row = 0) {
  constexpr int64_t WIDTH = 16 * PANEL_TILES, STRIDE = WIDTH * sizeof(float);
  float* below = sums + AMX_ROWS * WIDTH;
  if constexpr (FRESH) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4); _tile_zero(5);
  } else {
    _tile_loadd(0, sums, STRIDE); _tile_loadd(1, sums + 16, STRIDE); _tile_loadd(2, sums + 32, STRIDE);
    _tile_loadd(3, below, STRIDE); _tile_loadd(4, below + 16, STRIDE); _tile_loadd(5, below + 32, STRIDE);
  }
  add_two_tiles(x, next, ld, panel, depth, prefetch);
  const auto nothing = [](int) {};
  for (const ExtraInputs* of = extra; of != extra + count; ++of) {
    const bf16* own = of->rows + row * of->ld;
    add_two_tiles(own, own + AMX_ROWS * of->ld, of->ld, of->panel, of->depth, nothing);
  }
  _tile_stored(0, sums, STRIDE); _tile_stored(1, sums + 16, STRIDE); _tile_stored(2, sums + 32, STRIDE);
  _tile_stored(3, below, STRIDE); _tile_stored(4, below + 16, STRIDE); _tile_stored(5, below + 32, STRIDE);
}

// The same for 16 rows.
template <bool FRESH, typename F>
inline void sum_one_tile(const bf16* x, int64_t ld, const bf16* panel, int64_t depth, float* sums, F& prefetch) {
  constexpr int64_t WIDTH = 16 * PANEL_TILES, STRIDE = WIDTH * sizeof(float), PANEL_STRIDE = WIDTH * 2 * sizeof(bf16);
  if constexpr (FRESH) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2);
  } else {
    _tile_loadd(0, sums, STRIDE); _tile_loadd(1, sums + 16, STRIDE); _tile_loadd(2, sums + 32, STRIDE);
  }
  for (int64_t i = 0; i < depth; i += AMX_DEPTH, panel += AMX_DEPTH * WIDTH) {
    _tile_loadd(3, x + i, ld * int64_t(sizeof(bf16)));
    _tile_loadd(4, panel, PANEL_STRIDE); _tile_dpbf16ps(0, 3, 4); prefetch(2);
    _tile_loadd(5, panel + 32, PANEL_STRIDE); _tile_dpbf16ps(1, 3, 5); prefetch(2);
    _tile_loadd(6, panel + 64, PANEL_STRIDE); _tile_dpbf16ps(2, 3, 6); prefetch(2);
  }
  _tile_stored(0, sums, STRIDE); _tile_stored(1, sums + 16, STRIDE); _tile_stored(2, sums + 32, STRIDE);
}

// sums [rows, 48] += x panel, for the inputs from `from` to `depth`, which are too few for a register.
inline void sum_depth_tail(const bf16* x, int64_t ld, int64_t rows, const bf16* panel, int64_t from, int64_t depth,
                           float* sums) {
  constexpr int64_t WIDTH = 16 * PANEL_TILES;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t v = 0; v < PANEL_TILES; ++v) {
      float* to = sums + row * WIDTH + 16 * v;
      __m512 sum = _mm512_loadu_ps(to);
      for (int64_t i = from; i < depth; i += 2) {
        const uint32_t one = x[row * ld + i].bits, other = i + 1 < depth ? x[row * ld + i + 1].bits : 0;
        const __m512bh inputs = (__m512bh)_mm512_set1_epi32(int(one | other << 16));
        sum = _mm512_dpbf16_ps(sum, load_bf16(panel + i * WIDTH + 32 * v), inputs);
      }
      _mm512_storeu_ps(to, sum);
    }
}

// The same for all rows; those after the last full register must be padded. Additional inputs are only for rows
// that fill registers in pairs.
template <bool FRESH, typename F>
inline void sum_rows(const PaddedRows& x, int64_t from, const bf16* panel, int64_t depth, float* sums, F& prefetch,
                     const ExtraInputs* extra = nullptr, int64_t count = 0) {
  constexpr int64_t WIDTH = 16 * PANEL_TILES;
  const int64_t whole = x.count / AMX_ROWS * AMX_ROWS;
  const auto at = [&](int64_t row) { return (row < whole ? x.rows + row * x.ld : x.tail) + from; };
  for (int64_t row = 0; row < x.count; row += 2 * AMX_ROWS) {
    if (row + AMX_ROWS < x.count)
      sum_two_tiles<FRESH>(at(row), at(row + AMX_ROWS), x.ld, panel, depth, sums + row * WIDTH, prefetch, extra, count,
                           row);
    else
      sum_one_tile<FRESH>(at(row), x.ld, panel, depth, sums + row * WIDTH, prefetch);
  }
}

// The same for all inputs of a panel, in `parts` parts.
template <bool FRESH, typename F>
inline void sum_parts(const PaddedRows& x, const bf16* panel, int64_t depth, int64_t parts, float* sums, F& prefetch,
                      const ExtraInputs* extra = nullptr, int64_t count = 0) {
  constexpr int64_t WIDTH = 16 * PANEL_TILES;
  const int64_t steps = depth / AMX_DEPTH;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = steps * part / parts * AMX_DEPTH, to = steps * (part + 1) / parts * AMX_DEPTH;
    const int64_t last = part + 1 == parts ? count : 0;
    if (FRESH && part == 0)
      sum_rows<true>(x, from, panel, to - from, sums, prefetch, extra, last);
    else
      sum_rows<false>(x, from, panel + from * WIDTH, to - from, sums, prefetch, extra, last);
  }
  if (steps * AMX_DEPTH < depth) sum_depth_tail(x.rows, x.ld, x.count, panel, steps * AMX_DEPTH, depth, sums);
}

// sums [rows, 48] = x panel (unless `FRESH`, +=), with rows rounded up to full registers. Needs `TileConfig`. With many
// rows, a deep panel is split into parts that fit the first-level cache; few rows wait for memory either way.
template <bool FRESH, typename F>
inline void sum_panel(const PaddedRows& x, const bf16* panel, int64_t depth, float* sums, F prefetch) {
  constexpr int64_t NEAREST = 256, MANY = 8 * AMX_ROWS;
  const int64_t parts =
      x.count < MANY ? 1 : std::max<int64_t>(1, (depth / AMX_DEPTH * AMX_DEPTH + NEAREST - 1) / NEAREST);
  sum_parts<FRESH>(x, panel, depth, parts, sums, prefetch);
}
#endif
