// Products with frozen weights: y = x W^T + b. A weight is packed once into panels of WIDTH outputs; a tile of TILE
// rows reads a panel from front to back while its sums stay in registers (Goto and van de Geijn 2008). Each sum is
// computed in the order of its inputs, so a row's result does not depend on the number of rows.
#pragma once
#include <algorithm>
#include <vector>
#include "aligned.h"
#include "inputs.h"
#include "lanes.h"
#include "streaming_stores.h"
#include "amx.h"
#include "prefetch.h"
#include "lora_epilogue.h"

#if defined(__AVX512F__)
constexpr int TILE = 8, VECTORS = 3;  // 24 sums, 3 weights and a row's number: 28 of 32 registers
#elif defined(__ARM_NEON)
constexpr int TILE = 6, VECTORS = 1;  // 24 sums of 4 lanes, 4 weights, a number: 29 of 32
#else
constexpr int TILE = 6, VECTORS = 1;  // 12 sums of 8 lanes, 2 weights, a number: 15 of 16
#endif
constexpr int WIDTH = LANES * VECTORS;

// Inputs that are multiplied at once: one, or a pair if the instruction set has a dot product of pairs.
template <typename T>
constexpr int GROUP = 1;
template <typename T>
struct Of {
  using Weights = Lanes;
};
inline Lanes load_weights(const float* from) { return load(from); }
inline Lanes spread_input(const float* from) { return spread(*from); }
inline Lanes multiply_add_inputs(Lanes weights, Lanes inputs, Lanes sum) { return multiply_add(weights, inputs, sum); }
#ifdef MINT_AVX512_BF16
template <>
constexpr int GROUP<bf16> = 2;
template <>
struct Of<bf16> {
  using Weights = __m512bh;
};
inline __m512bh load_weights(const bf16* from) { return load_bf16(from); }
inline __m512bh spread_input(const bf16* from) {
  uint32_t pair;
  std::memcpy(&pair, from, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}
inline Lanes multiply_add_inputs(__m512bh weights, __m512bh inputs, Lanes sum) {
  return {_mm512_dpbf16_ps(sum.all, weights, inputs)};
}
#else
inline Lanes load_weights(const bf16* from) { return load(from); }
#endif
template <typename T>
using Weights = typename Of<T>::Weights;

template <typename T>
struct Linear {
  const T* weight;  // packed
  const T* bias;    // [out], null: none
  int64_t in, out;
  const Target* targets;  // modules whose adapters add to it
  int64_t target_count;
  int64_t panels() const { return (out + WIDTH - 1) / WIDTH; }
};

// weight [out, in] -> panels [in / GROUP, WIDTH, GROUP], one after another; missing outputs of the last one are zero.
template <typename T>
void pack(const T* weight, int64_t out, int64_t in, T* packed) {
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < out; first += WIDTH)
    for (int64_t o = 0; o < WIDTH; ++o) {
      T* to = packed + first * in + o * GROUP<T>;
      for (int64_t i = 0; i < in; ++i)
        to[i / GROUP<T> * WIDTH * GROUP<T> + i % GROUP<T>] =
            first + o < out ? weight[(first + o) * in + i] : narrow<T>(0.0f);
    }
}

// Computes the sums of N rows and one panel. They stay in registers, so nothing in here may be an actual call. Each
// step prefetches LINES cache lines.
template <int LINES, int N, typename T>
inline void sum_tile(const Input<T>* x, int64_t ldx, const T* panel, int64_t in, Lanes (&sums)[N][VECTORS],
                     PrefetchSchedule& ahead) {
  Lanes own[N][VECTORS];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) own[n][v] = zero();
  PrefetchSchedule local = ahead;
  for (int64_t i = 0; i < in; i += GROUP<T>, panel += WIDTH * GROUP<T>) {
    Weights<T> weights[VECTORS];
    for (int v = 0; v < VECTORS; ++v) weights[v] = load_weights(panel + v * LANES * GROUP<T>);
    if constexpr (LINES > 0) local.step<LINES>();
    for (int n = 0; n < N; ++n) {
      const Weights<T> one = spread_input(x + n * ldx + i);
      for (int v = 0; v < VECTORS; ++v) own[n][v] = multiply_add_inputs(weights[v], one, own[n][v]);
    }
  }
  ahead = local;
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) sums[n][v] = own[n][v];
}

// Rows that are multiplied together, at most TILE; `epilogues`: the index of their epilogues, or -1.
struct Tile {
  int64_t row, rows, epilogues;
};

// A product's tiles, and the epilogues of those that have them, `targets` for each.
template <typename T>
struct Tiles {
  const std::vector<Tile>& all;
  const LoraEpilogue<T>* epilogues;
  int64_t targets;
};

// Cuts rows `first` to `last` into tiles.
inline void cut_tiles(int64_t first, int64_t last, std::vector<Tile>& into) {
  for (; first < last; first += TILE) into.push_back({first, std::min<int64_t>(TILE, last - first), -1});
}

// Rounds a tile's sums and writes those of the first `width` outputs; `extra` is added to the rounded sums.
template <int N, typename T>
inline void store_tile(Lanes (&sums)[N][VECTORS], const T* bias, int64_t width, T* y, int64_t ldy,
                       const Lanes (*extra)[VECTORS]) {
  for (int n = 0; n < N; ++n) {
#ifdef MINT_AVX512_BF16
    if constexpr (GROUP<T> == 2) {
      for (int v = 0; v < VECTORS; ++v) {
        const __mmask16 mask = width > LANES * v ? mask16(width - LANES * v) : __mmask16(0);
        __m512 sum = sums[n][v].all;
        if (bias) sum = _mm512_add_ps(sum, load_wide(bias + LANES * v, mask));
        if (extra) sum = _mm512_add_ps(widen((__m256i)_mm512_cvtneps_pbh(sum)), extra[n][v].all);
        store_narrow(y + n * ldy + LANES * v, sum, mask);
      }
      continue;
    }
#endif
    float row[WIDTH];
    for (int v = 0; v < VECTORS; ++v) store(row + LANES * v, sums[n][v]);
    for (int64_t o = 0; o < std::min<int64_t>(width, WIDTH); ++o)
      y[n * ldy + o] = narrow<T>(bias ? row[o] + widen(bias[o]) : row[o]);
  }
}

// Writes a tile's sums for outputs from `first` on, plus what the epilogues add to them.
template <int N, typename T>
inline void finish_tile(Lanes (&sums)[N][VECTORS], const Linear<T>& by, int64_t first, T* y, int64_t ldy,
                        const LoraEpilogue<T>* epilogues, int64_t targets) {
  Lanes extra[N][VECTORS];
  if constexpr (FUSES_LORA<T>)
    if (epilogues) {
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECTORS; ++v) extra[n][v] = zero();
      for (int64_t t = 0; t < targets; ++t) add_epilogue(epilogues[t], first, extra);
    }
  store_tile<N, T>(sums, by.bias ? by.bias + first : nullptr, by.out - first, y + first, ldy,
                   epilogues ? extra : nullptr);
}

template <int N, typename T>
inline void multiply_tile(const Input<T>* x, int64_t ldx, const Linear<T>& by, int64_t panel, T* y, int64_t ldy,
                          const LoraEpilogue<T>* epilogues, int64_t targets, PrefetchSchedule& ahead) {
  Lanes sums[N][VECTORS];
  const int lines = ahead.advance(by.in / GROUP<T>);
  const int64_t first = panel * WIDTH;
  const T* weight = by.weight + first * by.in;
  static_assert(PrefetchSchedule::MAX_LINES == 3);
  if (lines == 0) sum_tile<0, N, T>(x, ldx, weight, by.in, sums, ahead);
  if (lines == 1) sum_tile<1, N, T>(x, ldx, weight, by.in, sums, ahead);
  if (lines == 2) sum_tile<2, N, T>(x, ldx, weight, by.in, sums, ahead);
  if (lines == 3) sum_tile<3, N, T>(x, ldx, weight, by.in, sums, ahead);
  finish_tile(sums, by, first, y, ldy, epilogues, targets);
}

// A tile of any number of rows up to N.
template <int N, typename T>
inline void multiply_rows(int64_t rows, const Input<T>* x, int64_t ldx, const Linear<T>& by, int64_t panel, T* y,
                          int64_t ldy, const LoraEpilogue<T>* epilogues, int64_t targets, PrefetchSchedule& ahead) {
  if constexpr (N > 0) {
    if (rows == N)
      multiply_tile<N, T>(x, ldx, by, panel, y, ldy, epilogues, targets, ahead);
    else
      multiply_rows<N - 1, T>(rows, x, ldx, by, panel, y, ldy, epilogues, targets, ahead);
  }
}

// The panels that one thread computes. They are adjacent: if threads alternated, two threads would write to each of a
// row's cache lines.
struct Panels {
  int64_t first, end;
  Panels(int64_t all, int thread, int threads) : first(all * thread / threads), end(all * (thread + 1) / threads) {}
  int64_t count() const { return end - first; }
};

// y [rows, out] = x [rows, in] W^T + b + epilogues, for some panels; rows are `ldx` and `ldy` numbers apart. The rows
// of successive tiles are adjacent. Meanwhile prefetches `ahead`.
template <typename T>
void multiply(const T* x, int64_t ldx, const Tiles<T>& tiles, const Linear<T>& by, T* y, int64_t ldy,
              const Panels& panels, PrefetchSchedule& ahead) {
  constexpr size_t MOST_WIDENED = 16;  // tiles: 96 rows of 2,000 inputs fit the second-level cache
  const size_t all = tiles.all.size(), most = WIDENS<T> ? MOST_WIDENED : all;
  for (size_t first = 0; first < all; first += most) {
    const size_t last = std::min(first + most, all);
    const int64_t row = tiles.all[first].row, end = tiles.all[last - 1].row + tiles.all[last - 1].rows;
    const Inputs<T> from = inputs(x + row * ldx, ldx, end - row, by.in);
    for (int64_t panel = panels.first; panel < panels.end; ++panel)
      for (size_t at = first; at < last; ++at) {
        const Tile& tile = tiles.all[at];
        multiply_rows<TILE, T>(
            tile.rows, from.rows + (tile.row - row) * from.ld, from.ld, by, panel, y + tile.row * ldy, ldy,
            tile.epilogues < 0 ? nullptr : tiles.epilogues + tile.epilogues * tiles.targets, tiles.targets, ahead);
      }
  }
}

#ifdef MINT_AMX
// Finishes a tile of any number of rows up to N whose sums [rows, WIDTH] have been computed.
template <int N>
inline void finish_rows(int64_t rows, const float* from, const Linear<bf16>& by, int64_t first, bf16* y, int64_t ldy,
                        const LoraEpilogue<bf16>* epilogues, int64_t targets) {
  if constexpr (N > 0) {
    if (rows != N) return finish_rows<N - 1>(rows, from, by, first, y, ldy, epilogues, targets);
    Lanes sums[N][VECTORS];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) sums[n][v] = load(from + n * WIDTH + v * LANES);
    finish_tile(sums, by, first, y, ldy, epilogues, targets);
  }
}

// Rounds sums [rows, WIDTH] of adjacent panels, `apart` numbers apart, and writes full lines: `count` numbers per row.
inline void stream_panels(const float* sums, int64_t apart, int64_t rows, int64_t count, const bf16* bias, bf16* y,
                          int64_t ldy) {
  for (int64_t row = 0; row < rows; ++row) {
    const auto lanes = [&](int64_t o) {
      const __m512 sum = _mm512_load_ps(sums + o / WIDTH * apart + row * WIDTH + o % WIDTH);
      return bias ? _mm512_add_ps(sum, load_wide(bias + o, mask16(LANES))) : sum;
    };
    for (int64_t o = 0; o < count; o += 2 * LANES) stream_line(y + row * ldy + o, lanes(o), lanes(o + LANES));
  }
  _mm_sfence();
}

// The same with AMX, which takes more rows than a tile has.
template <>
inline void multiply<bf16>(const bf16* x, int64_t ldx, const Tiles<bf16>& tiles, const Linear<bf16>& by, bf16* y,
                           int64_t ldy, const Panels& panels, PrefetchSchedule&) {
  static_assert(WIDTH == 16 * PANEL_TILES && GROUP<bf16> == 2);
  constexpr int64_t NEAR = 1 << 20;  // bytes of rows: about half of a second-level cache
  const size_t all = tiles.all.size(),
               most = size_t(std::max<int64_t>(64, NEAR / int64_t(sizeof(bf16)) / by.in) / TILE);
  static thread_local Aligned<float> sums;
  const TileConfig registers;
  for (size_t begin = 0; begin < all; begin += most) {
    const size_t end = std::min(begin + most, all);
    const int64_t row = tiles.all[begin].row, rows = tiles.all[end - 1].row + tiles.all[end - 1].rows - row;
    const PaddedRows from = pad_rows(x + row * ldx, ldx, rows, by.in);
    const int64_t apart = (rows + AMX_ROWS) * WIDTH;  // distance between two panels' sums
    if (int64_t(sums.size()) < 2 * apart) sums.resize(2 * apart);
    // Lines of the next panel to prefetch for each unit, spread evenly over all rows: bursts slow each other down.
    constexpr int64_t UNIT_LINES = AMX_DEPTH * WIDTH * sizeof(bf16) / LINE / UNITS;
    const int64_t twice = (rows + 2 * AMX_ROWS - 1) / (2 * AMX_ROWS), lines = (UNIT_LINES + twice - 1) / twice;
    const auto sum = [&](int64_t panel, float* to) {
      const bf16* weight = by.weight + panel * WIDTH * by.in;
      const char* next_line = (const char*)(weight + WIDTH * by.in);
      const char* last = panel + 1 < panels.end ? next_line + WIDTH * by.in * sizeof(bf16) : next_line;
      sum_panel<true>(from, weight, by.in, to, [&](int units) {
        if (next_line >= last) return;
        for (int64_t line = 0; line < units * lines; ++line, next_line += LINE) __builtin_prefetch(next_line, 0, 2);
      });
    };
    const bool past =
        !tiles.targets && should_stream(y, rows, ldy, 0, 2 * WIDTH);  // write pairs of panels past the caches
    for (int64_t panel = panels.first; panel < panels.end; ++panel) {
      const int64_t first = panel * WIDTH;
      if (past && panel % 2 == 0 && panel + 2 <= panels.end && first + 2 * WIDTH <= by.out) {
        sum(panel, sums.data());
        sum(++panel, sums.data() + apart);
        const bf16* bias = by.bias ? by.bias + first : nullptr;
        stream_panels(sums.data(), apart, rows, 2 * WIDTH, bias, y + row * ldy + first, ldy);
        continue;
      }
      sum(panel, sums.data());
      for (size_t at = begin; at < end; ++at) {
        const Tile& tile = tiles.all[at];
        finish_rows<TILE>(tile.rows, sums.data() + (tile.row - row) * WIDTH, by, first, y + tile.row * ldy, ldy,
                          tile.epilogues < 0 ? nullptr : tiles.epilogues + tile.epilogues * tiles.targets,
                          tiles.targets);
      }
    }
  }
}
#endif

// The same for rows without adapters.
template <typename T>
void multiply(const T* x, int64_t ldx, int64_t rows, const Linear<T>& by, T* y, int64_t ldy, int thread, int threads) {
  std::vector<Tile> tiles;
  cut_tiles(0, rows, tiles);
  PrefetchSchedule nothing;
  multiply<T>(x, ldx, {tiles, nullptr, 0}, by, y, ldy, {by.panels(), thread, threads}, nothing);
}
