// Products of bfloat16 with matrix registers (Intel AMX): one instruction multiplies 16 rows by 16 outputs over 32
// inputs, eight times as much as a vector dot product. Panels are stored as the registers take them. A sum is computed
// in the order of its inputs, 32 at a time, whatever rows there are beside it.
#pragma once
#include <algorithm>
#include <vector>
#include "aligned.h"
#include "lanes.h"

// Whether products of a number type use matrix registers.
template <typename T>
constexpr bool BY_MATRICES = false;

#if defined(__AMX_BF16__) && defined(MINT_AVX512_BF16)
#define MINT_AMX 1
template <>
constexpr bool BY_MATRICES<bf16> = true;

constexpr int64_t HEIGHT = 16;  // rows of a register
constexpr int64_t DEEP = 32;    // inputs that are multiplied together
// Rounds up to a multiple of DEEP.
inline int64_t deep(int64_t count) { return (count + DEEP - 1) / DEEP * DEEP; }
constexpr int64_t BESIDE = 3;   // registers whose outputs are adjacent: a panel's

// Shapes this thread's registers as 16 rows of 64 bytes, until it is destroyed; other libraries use other shapes.
class Matrices {
 public:
  Matrices() {
    struct alignas(64) Shapes {  // see LDTILECFG in Intel's manual
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    std::fill_n(shapes.bytes, 8, uint16_t(DEEP * sizeof(bf16)));
    std::fill_n(shapes.rows, 8, uint8_t(HEIGHT));
    asm volatile("" : : "r"(&shapes) : "memory");  // GCC 12 believes that the next call reads only eight bytes of them
    _tile_loadconfig(&shapes);
  }
  ~Matrices() { _tile_release(); }
  Matrices(const Matrices&) = delete;
  Matrices& operator=(const Matrices&) = delete;
};

// Rows of inputs as full registers: the last rows are copied to a buffer that also has room for the missing ones.
struct Heights {
  const bf16* rows;
  int64_t ld, count;
  const bf16* rest;  // the rows after the last full register, also `ld` apart
};

// Rows x [count, depth], `ld` apart. This thread's next call overwrites the copied rows.
inline Heights heights(const bf16* x, int64_t ld, int64_t count, int64_t depth) {
  static thread_local Aligned<bf16> room;
  const int64_t whole = count / HEIGHT * HEIGHT;
  if (whole == count) return {x, ld, count, nullptr};
  if (int64_t(room.size()) < HEIGHT * ld) room.resize(HEIGHT * ld);
  for (int64_t row = whole; row < count; ++row) std::copy_n(x + row * ld, depth, room.data() + (row - whole) * ld);
  return {x, ld, count, room.data()};
}

// Additional inputs of the same rows, `ld` apart, and the panel of weights that they meet.
struct More {
  const bf16* rows;
  int64_t ld;
  const bf16* panel;
  int64_t depth;
};

// Adds the products of twice 16 rows and a panel to six registers. Between products, calls `bring` with the number of
// sixths of a panel's DEEP inputs that were multiplied.
template <typename F>
inline void add_two(const bf16* x, const bf16* next, int64_t ld, const bf16* panel, int64_t depth, F& bring) {
  constexpr int64_t WIDTH = 16 * BESIDE, PAIRS = WIDTH * 2 * sizeof(bf16);
  const int64_t apart = ld * int64_t(sizeof(bf16));
  for (int64_t i = 0; i < depth; i += DEEP, panel += DEEP * WIDTH) {
    _tile_loadd(6, x + i, apart);
    _tile_loadd(7, panel, PAIRS); _tile_dpbf16ps(0, 6, 7); bring(1);
    _tile_loadd(7, panel + 32, PAIRS); _tile_dpbf16ps(1, 6, 7); bring(1);
    _tile_loadd(7, panel + 64, PAIRS); _tile_dpbf16ps(2, 6, 7); bring(1);
    _tile_loadd(6, next + i, apart);
    _tile_dpbf16ps(5, 6, 7); bring(1);
    _tile_loadd(7, panel + 32, PAIRS); _tile_dpbf16ps(4, 6, 7); bring(1);
    _tile_loadd(7, panel, PAIRS); _tile_dpbf16ps(3, 6, 7); bring(1);
  }
}

// sums [32, 48] of twice 16 rows, in six registers, including `count` sets of additional inputs. Unless `FRESH`, they
// are added to `sums`.
template <bool FRESH, typename F>
inline void sum_two(const bf16* x, const bf16* next, int64_t ld, const bf16* panel, int64_t depth, float* sums, F& bring,
                    const More* more = nullptr, int64_t count = 0, int64_t row = 0) {
  constexpr int64_t WIDTH = 16 * BESIDE, FAR = WIDTH * sizeof(float);
  float* below = sums + HEIGHT * WIDTH;
  if constexpr (FRESH) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4); _tile_zero(5);
  } else {
    _tile_loadd(0, sums, FAR); _tile_loadd(1, sums + 16, FAR); _tile_loadd(2, sums + 32, FAR);
    _tile_loadd(3, below, FAR); _tile_loadd(4, below + 16, FAR); _tile_loadd(5, below + 32, FAR);
  }
  add_two(x, next, ld, panel, depth, bring);
  const auto nothing = [](int) {};
  for (const More* of = more; of != more + count; ++of) {
    const bf16* own = of->rows + row * of->ld;
    add_two(own, own + HEIGHT * of->ld, of->ld, of->panel, of->depth, nothing);
  }
  _tile_stored(0, sums, FAR); _tile_stored(1, sums + 16, FAR); _tile_stored(2, sums + 32, FAR);
  _tile_stored(3, below, FAR); _tile_stored(4, below + 16, FAR); _tile_stored(5, below + 32, FAR);
}

// The same for 16 rows.
template <bool FRESH, typename F>
inline void sum_one(const bf16* x, int64_t ld, const bf16* panel, int64_t depth, float* sums, F& bring) {
  constexpr int64_t WIDTH = 16 * BESIDE, FAR = WIDTH * sizeof(float), PAIRS = WIDTH * 2 * sizeof(bf16);
  if constexpr (FRESH) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2);
  } else {
    _tile_loadd(0, sums, FAR); _tile_loadd(1, sums + 16, FAR); _tile_loadd(2, sums + 32, FAR);
  }
  for (int64_t i = 0; i < depth; i += DEEP, panel += DEEP * WIDTH) {
    _tile_loadd(3, x + i, ld * int64_t(sizeof(bf16)));
    _tile_loadd(4, panel, PAIRS); _tile_dpbf16ps(0, 3, 4); bring(2);
    _tile_loadd(5, panel + 32, PAIRS); _tile_dpbf16ps(1, 3, 5); bring(2);
    _tile_loadd(6, panel + 64, PAIRS); _tile_dpbf16ps(2, 3, 6); bring(2);
  }
  _tile_stored(0, sums, FAR); _tile_stored(1, sums + 16, FAR); _tile_stored(2, sums + 32, FAR);
}

// sums [rows, 48] += x panel, for the inputs from `from` to `depth`, which are too few for a register.
inline void sum_last(const bf16* x, int64_t ld, int64_t rows, const bf16* panel, int64_t from, int64_t depth, float* sums) {
  constexpr int64_t WIDTH = 16 * BESIDE;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t v = 0; v < BESIDE; ++v) {
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

// The same for all rows; those after the last full register must have room for the missing ones. Additional inputs are
// only for rows that fill registers in pairs.
template <bool FRESH, typename F>
inline void sum_rows(const Heights& x, int64_t from, const bf16* panel, int64_t depth, float* sums, F& bring,
                     const More* more = nullptr, int64_t count = 0) {
  constexpr int64_t WIDTH = 16 * BESIDE;
  const int64_t whole = x.count / HEIGHT * HEIGHT;
  const auto at = [&](int64_t row) { return (row < whole ? x.rows + row * x.ld : x.rest) + from; };
  for (int64_t row = 0; row < x.count; row += 2 * HEIGHT) {
    if (row + HEIGHT < x.count)
      sum_two<FRESH>(at(row), at(row + HEIGHT), x.ld, panel, depth, sums + row * WIDTH, bring, more, count, row);
    else
      sum_one<FRESH>(at(row), x.ld, panel, depth, sums + row * WIDTH, bring);
  }
}

// The same for all inputs of a panel, in `parts` parts.
template <bool FRESH, typename F>
inline void sum_parts(const Heights& x, const bf16* panel, int64_t depth, int64_t parts, float* sums, F& bring,
                      const More* more = nullptr, int64_t count = 0) {
  constexpr int64_t WIDTH = 16 * BESIDE;
  const int64_t steps = depth / DEEP;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = steps * part / parts * DEEP, to = steps * (part + 1) / parts * DEEP;
    const int64_t last = part + 1 == parts ? count : 0;
    if (FRESH && part == 0)
      sum_rows<true>(x, from, panel, to - from, sums, bring, more, last);
    else
      sum_rows<false>(x, from, panel + from * WIDTH, to - from, sums, bring, more, last);
  }
  if (steps * DEEP < depth) sum_last(x.rows, x.ld, x.count, panel, steps * DEEP, depth, sums);
}

// sums [rows, 48] = x panel (unless `FRESH`, +=), with rows rounded up to full registers. Needs `Matrices`. With many
// rows, a deep panel is split into parts that fit the nearest cache; few rows wait for memory either way.
template <bool FRESH, typename F>
inline void sum_panel(const Heights& x, const bf16* panel, int64_t depth, float* sums, F bring) {
  constexpr int64_t NEAREST = 256, MANY = 8 * HEIGHT;
  const int64_t parts = x.count < MANY ? 1 : std::max<int64_t>(1, (depth / DEEP * DEEP + NEAREST - 1) / NEAREST);
  sum_parts<FRESH>(x, panel, depth, parts, sums, bring);
}
#endif
