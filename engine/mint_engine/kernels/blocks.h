// Blocks of training products with matrix registers. A block's panels are packed in full and stay in the second-level
// cache. Reading sums back from there would take as long as computing them, so those of a few rows stay in registers or
// in the nearest cache until everything is added, adapters included, and are then rounded and stored.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>
#include "lines.h"
#include "ranks.h"
#include "runs.h"
#ifdef MINT_AMX

// What the adapters of one run add to rows that all belong to it, as additional inputs of these rows.
template <Way WAY>
class OneRun {
 public:
  OneRun(const Call<bf16>& call, const Block& block) : call_(call), block_(block) {}

  // Lays out adapters `from` to `to` for some rows, and for all panels of the block unless they were laid out already.
  void lay(int64_t from, int64_t to, int64_t row, int64_t rows) {
    int64_t depth = 0;  // of all adapters
    for (int64_t at = from; at < to; ++at) depth += deep(call_.added[at].rank);
    middles_.resize(rows * depth);
    bf16* middles = middles_.data();
    for (int64_t at = from; at < to; ++at) {
      const Strip<bf16> strip = strip_of<WAY>(call_, call_.added[at], row);
      lay_middles(strip, rows, middles);
      middles += rows * deep(strip.rank);
    }
    rows_ = rows;
    if (from == from_) return;
    from_ = from, to_ = to;
    weights_.resize(block_.panels * depth * WIDTH);
    bf16* weights = weights_.data();
    for (int64_t p = 0; p < block_.panels; ++p)
      for (int64_t at = from; at < to; ++at) {
        const Strip<bf16> strip = strip_of<WAY>(call_, call_.added[at], row);
        lay_weights(strip, (block_.panel + p) * WIDTH, weights);
        weights += deep(strip.rank) * WIDTH;
      }
  }

  // What the adapters add to panel `p` of the block.
  const std::vector<More>& of(int64_t p) {
    more_.clear();
    const bf16 *middles = middles_.data(), *weights = weights_.data() + p * int64_t(weights_.size()) / block_.panels;
    for (int64_t at = from_; at < to_; ++at) {
      const Strip<bf16> strip = strip_of<WAY>(call_, call_.added[at], call_.added[at].first);
      const int64_t depth = deep(strip.rank);
      if (meets(strip, (block_.panel + p) * WIDTH)) more_.push_back({middles, depth, weights, depth});
      middles += rows_ * depth, weights += depth * WIDTH;
    }
    return more_;
  }

 private:
  const Call<bf16>& call_;
  const Block& block_;
  int64_t from_ = -1, to_ = -1, rows_ = 0;
  Aligned<bf16> middles_, weights_;
  std::vector<More> more_;
};

// With few inputs, a panel is processed in parts, so that a part and the sums stay in the nearest cache; with many, at
// once, while the panel's next lines are prefetched.
constexpr int64_t FEW_INPUTS = 768, NEAREST_INPUTS = 192;

// sums [rows, 48] = x panel + what `more` adds. Meanwhile prefetches rows that are needed soon.
inline void sum_step(const Heights& x, const bf16* panel, int64_t depth, const std::vector<More>& more, float* sums,
                     Soon& rows) {
  constexpr int LINES = 2;
  constexpr int64_t SIXTH = DEEP * WIDTH * sizeof(bf16) / 6;
  const auto bring = [&](int) {
    for (int line = 0; line < LINES; ++line) rows.bring();
  };
  if (depth <= FEW_INPUTS) {
    const int64_t parts = std::max<int64_t>(1, (depth / DEEP * DEEP + NEAREST_INPUTS - 1) / NEAREST_INPUTS);
    return sum_parts<true>(x, panel, depth, parts, sums, bring, more.data(), int64_t(more.size()));
  }
  const char* near = (const char*)(panel + DEEP * WIDTH);
  const auto bring_both = [&](int sixths) {
    for (int64_t at = 0; at < sixths * SIXTH; at += LINE, near += LINE) __builtin_prefetch(near, 0, 3);
    bring(sixths);
  };
  sum_parts<true>(x, panel, depth, 1, sums, bring_both, more.data(), int64_t(more.size()));
}

// y [rows, width] = sums [rows, 48] + bias, rounded.
inline void put_panel(const float* sums, int64_t rows, const bf16* bias, int64_t width, bf16* y, int64_t ldy) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t o = 0; o < WIDTH; o += LANES) {
      const __mmask16 mask = o < width ? first16(width - o) : __mmask16(0);
      __m512 sum = _mm512_loadu_ps(sums + row * WIDTH + o);
      if (bias) sum = _mm512_add_ps(sum, load_wide(bias + o, mask));
      store_narrow(y + row * ldy + o, sum, mask);
    }
}

// Writes rows of at most two adjacent panels, from column `first` on; the panels' sums are `apart` numbers apart.
inline void put_step(const Call<bf16>& call, const float* sums, int64_t apart, int64_t row, int64_t rows, int64_t first,
                     int64_t panels, int64_t rows_of_all) {
  bf16* y = call.y + row * call.out + first;
  const bf16* bias = call.bias ? call.bias + first : nullptr;
  const int64_t last = first + 2 * WIDTH;
  if (panels == 2 && last <= call.out && streams(call.y, rows_of_all, call.out, first, last))
    return stream_panels(sums, apart, rows, 2 * WIDTH, bias, y, call.out);
  for (int64_t p = 0; p < panels; ++p)
    put_panel(sums + p * apart, rows, bias ? bias + p * WIDTH : nullptr, call.out - first - p * WIDTH, y + p * WIDTH,
              call.out);
}

// The adapters, sorted by row, of any of the rows `row` to `end`.
inline std::pair<const Added<bf16>*, const Added<bf16>*> adapters_of(const Call<bf16>& call, int64_t row, int64_t end) {
  const Added<bf16>* last = call.added + call.count;
  const auto before = [row](const Added<bf16>& own) { return own.first + own.rows <= row; };
  const Added<bf16>* from = std::partition_point(call.added, last, before);
  return {from, std::find_if(from, last, [end](const Added<bf16>& own) { return own.first >= end; })};
}

// sums [rows, 48], for outputs from `first` on, += what adapters of several runs add, each to its own rows.
template <Way WAY>
void add_runs(const Call<bf16>& call, const Added<bf16>* from, const Added<bf16>* to, int64_t row, int64_t end,
              int64_t first, float* sums) {
  for (const Added<bf16>* own = from; own != to; ++own) {
    const int64_t begin = std::max(row, own->first), rows = std::min(end, own->first + own->rows) - begin;
    const Strip<bf16> strip = strip_of<WAY>(call, *own, begin);
    if (meets(strip, first)) add_run(strip, rows, first, sums + (begin - row) * WIDTH);
  }
}

// Computes a block. A row's sums are computed in the same order whether or not rows beside it are of the same run.
template <Way WAY>
void multiply_block(const Call<bf16>& call, const Block& block, int64_t rows_of_all) {
  static thread_local Aligned<bf16> panels;
  static thread_local Aligned<float> sums;
  const int64_t step = (call.in <= FEW_INPUTS ? 4 : 2) * HEIGHT, apart = step * WIDTH, size = panel_size<bf16>(call.in);
  if (int64_t(panels.size()) < block.panels * size) panels.resize(block.panels * size);
  sums.resize(2 * apart);
  pack_block<WAY>(call, block, 0, call.in, panels.data());
  const Matrices registers;
  const Heights x = heights(call.x + block.first * call.in, call.in, block.last - block.first, call.in);
  OneRun<WAY> run(call, block);
  for (int64_t row = block.first; row < block.last; row += step) {
    const int64_t rows = std::min(step, block.last - row), end = row + rows;
    const Heights some = {x.rows + (row - block.first) * x.ld, x.ld, rows, x.rest};
    Soon next = soon(call.x + end * call.in, call.in, call.in, std::min(step, block.last - end));
    const auto [from, to] = adapters_of(call, row, end);
    const bool one = from != to && from->first <= row && from->first + from->rows >= end;
    const bool whole = one && rows == step && call.in % DEEP == 0;  // adapters can be additional inputs of these rows
    if (whole) run.lay(from - call.added, to - call.added, row, rows);
    for (int64_t p = 0; p < block.panels; p += 2) {
      const int64_t beside = std::min<int64_t>(2, block.panels - p), first = (block.panel + p) * WIDTH;
      for (int64_t q = 0; q < beside; ++q) {
        const bf16* panel = panels.data() + (p + q) * size;
        float* sum = sums.data() + q * apart;
        sum_step(some, panel, call.in, whole ? run.of(p + q) : std::vector<More>(), sum, next);
        if (!whole) add_runs<WAY>(call, from, to, row, end, first + q * WIDTH, sum);
      }
      put_step(call, sums.data(), apart, row, rows, first, beside, rows_of_all);
    }
  }
}
#endif
