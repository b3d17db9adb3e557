// Blocks of grouped products with AMX. A block's panels are packed in full and stay in the second-level
// cache. Reading sums back from there would take as long as computing them, so those of a few rows stay in registers or
// in the first-level cache until everything is added, adapters included, and are then rounded and stored.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>
#include "streaming_stores.h"
#include "amx_lora.h"
#include "grouped_product.h"
#ifdef MINT_AMX

// The adapters of one run, as additional inputs of rows that all belong to it.
template <Direction DIRECTION>
class RunAdapters {
 public:
  RunAdapters(const GroupedProduct<bf16>& call, const Block& block) : call_(call), block_(block) {}

  // Packs adapters `from` to `to` for some rows, and for all panels of the block unless they were packed already.
  void pack(int64_t from, int64_t to, int64_t row, int64_t rows) {
    int64_t depth = 0;  // of all adapters
    for (int64_t at = from; at < to; ++at) depth += padded_depth(call_.runs[at].rank);
    middles_.resize(rows * depth);
    bf16* middles = middles_.data();
    for (int64_t at = from; at < to; ++at) {
      const LoraEpilogue<bf16> epilogue = epilogue_of<DIRECTION>(call_, call_.runs[at], row);
      pack_middles(epilogue, rows, middles);
      middles += rows * padded_depth(epilogue.rank);
    }
    rows_ = rows;
    if (from == from_) return;
    from_ = from, to_ = to;
    weights_.resize(block_.panels * depth * WIDTH);
    bf16* weights = weights_.data();
    for (int64_t p = 0; p < block_.panels; ++p)
      for (int64_t at = from; at < to; ++at) {
        const LoraEpilogue<bf16> epilogue = epilogue_of<DIRECTION>(call_, call_.runs[at], row);
        pack_weights(epilogue, (block_.panel + p) * WIDTH, weights);
        weights += padded_depth(epilogue.rank) * WIDTH;
      }
  }

  // What the adapters add to panel `p` of the block.
  const std::vector<ExtraInputs>& of(int64_t p) {
    extra_.clear();
    const bf16 *middles = middles_.data(), *weights = weights_.data() + p * int64_t(weights_.size()) / block_.panels;
    for (int64_t at = from_; at < to_; ++at) {
      const LoraEpilogue<bf16> epilogue = epilogue_of<DIRECTION>(call_, call_.runs[at], call_.runs[at].first);
      const int64_t depth = padded_depth(epilogue.rank);
      if (overlaps(epilogue, (block_.panel + p) * WIDTH)) extra_.push_back({middles, depth, weights, depth});
      middles += rows_ * depth, weights += depth * WIDTH;
    }
    return extra_;
  }

 private:
  const GroupedProduct<bf16>& call_;
  const Block& block_;
  int64_t from_ = -1, to_ = -1, rows_ = 0;
  Aligned<bf16> middles_, weights_;
  std::vector<ExtraInputs> extra_;
};

// With few inputs, a panel is processed in parts, so that a part and the sums stay in the first-level cache; with many,
// at once, while the panel's next lines are prefetched.
constexpr int64_t FEW_INPUTS = 768, NEAREST_INPUTS = 192;

// sums [rows, 48] = x panel + what `extra` adds. Meanwhile prefetches the next rows.
inline void sum_step(const PaddedRows& x, const bf16* panel, int64_t depth, const std::vector<ExtraInputs>& extra,
                     float* sums, RowPrefetch& rows) {
  constexpr int LINES = 2;
  constexpr int64_t UNIT_BYTES = AMX_DEPTH * WIDTH * sizeof(bf16) / UNITS;
  const auto prefetch = [&](int) {
    for (int line = 0; line < LINES; ++line) rows.prefetch();
  };
  if (depth <= FEW_INPUTS) {
    const int64_t parts = std::max<int64_t>(1, (depth / AMX_DEPTH * AMX_DEPTH + NEAREST_INPUTS - 1) / NEAREST_INPUTS);
    return sum_parts<true>(x, panel, depth, parts, sums, prefetch, extra.data(), int64_t(extra.size()));
  }
  const char* next_line = (const char*)(panel + AMX_DEPTH * WIDTH);
  const auto prefetch_both = [&](int units) {
    for (int64_t at = 0; at < units * UNIT_BYTES; at += LINE, next_line += LINE) __builtin_prefetch(next_line, 0, 3);
    prefetch(units);
  };
  sum_parts<true>(x, panel, depth, 1, sums, prefetch_both, extra.data(), int64_t(extra.size()));
}

// y [rows, width] = sums [rows, 48] + bias, rounded.
inline void store_panel(const float* sums, int64_t rows, const bf16* bias, int64_t width, bf16* y, int64_t ldy) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t o = 0; o < WIDTH; o += LANES) {
      const __mmask16 mask = o < width ? mask16(width - o) : __mmask16(0);
      __m512 sum = _mm512_loadu_ps(sums + row * WIDTH + o);
      if (bias) sum = _mm512_add_ps(sum, load_wide(bias + o, mask));
      store_narrow(y + row * ldy + o, sum, mask);
    }
}

// Writes rows of at most two adjacent panels, from column `first` on; the panels' sums are `apart` numbers apart.
inline void store_step(const GroupedProduct<bf16>& call, const float* sums, int64_t apart, int64_t row, int64_t rows,
                       int64_t first, int64_t panels, int64_t rows_of_all) {
  bf16* y = call.y + row * call.out + first;
  const bf16* bias = call.bias ? call.bias + first : nullptr;
  const int64_t last = first + 2 * WIDTH;
  if (panels == 2 && last <= call.out && should_stream(call.y, rows_of_all, call.out, first, last))
    return stream_panels(sums, apart, rows, 2 * WIDTH, bias, y, call.out);
  for (int64_t p = 0; p < panels; ++p)
    store_panel(sums + p * apart, rows, bias ? bias + p * WIDTH : nullptr, call.out - first - p * WIDTH, y + p * WIDTH,
                call.out);
}

// The adapters, sorted by row, of any of the rows `row` to `end`.
inline std::pair<const AdapterRun<bf16>*, const AdapterRun<bf16>*> adapters_of(const GroupedProduct<bf16>& call,
                                                                               int64_t row, int64_t end) {
  const AdapterRun<bf16>* last = call.runs + call.count;
  const auto before = [row](const AdapterRun<bf16>& own) { return own.first + own.rows <= row; };
  const AdapterRun<bf16>* from = std::partition_point(call.runs, last, before);
  return {from, std::find_if(from, last, [end](const AdapterRun<bf16>& own) { return own.first >= end; })};
}

// sums [rows, 48], for outputs from `first` on, += what adapters of several runs add, each to its own rows.
template <Direction DIRECTION>
void add_runs(const GroupedProduct<bf16>& call, const AdapterRun<bf16>* from, const AdapterRun<bf16>* to, int64_t row,
              int64_t end, int64_t first, float* sums) {
  for (const AdapterRun<bf16>* own = from; own != to; ++own) {
    const int64_t begin = std::max(row, own->first), rows = std::min(end, own->first + own->rows) - begin;
    const LoraEpilogue<bf16> epilogue = epilogue_of<DIRECTION>(call, *own, begin);
    if (overlaps(epilogue, first)) add_run(epilogue, rows, first, sums + (begin - row) * WIDTH);
  }
}

// Computes a block. A row's sums are computed in the same order whether or not the rows around it are of the same run.
template <Direction DIRECTION>
void multiply_block(const GroupedProduct<bf16>& call, const Block& block, int64_t rows_of_all) {
  static thread_local Aligned<bf16> panels;
  static thread_local Aligned<float> sums;
  const int64_t step = (call.in <= FEW_INPUTS ? 4 : 2) * AMX_ROWS, apart = step * WIDTH,
                size = panel_size<bf16>(call.in);
  if (int64_t(panels.size()) < block.panels * size) panels.resize(block.panels * size);
  sums.resize(2 * apart);
  pack_block<DIRECTION>(call, block, 0, call.in, panels.data());
  const TileConfig registers;
  const PaddedRows x = pad_rows(call.x + block.first * call.in, call.in, block.last - block.first, call.in);
  RunAdapters<DIRECTION> run(call, block);
  for (int64_t row = block.first; row < block.last; row += step) {
    const int64_t rows = std::min(step, block.last - row), end = row + rows;
    const PaddedRows some = {x.rows + (row - block.first) * x.ld, x.ld, rows, x.tail};
    RowPrefetch next = prefetch_rows(call.x + end * call.in, call.in, call.in, std::min(step, block.last - end));
    const auto [from, to] = adapters_of(call, row, end);
    const bool one = from != to && from->first <= row && from->first + from->rows >= end;
    const bool whole =
        one && rows == step && call.in % AMX_DEPTH == 0;  // adapters can be additional inputs of these rows
    if (whole) run.pack(from - call.runs, to - call.runs, row, rows);
    for (int64_t p = 0; p < block.panels; p += 2) {
      const int64_t beside = std::min<int64_t>(2, block.panels - p), first = (block.panel + p) * WIDTH;
      for (int64_t q = 0; q < beside; ++q) {
        const bf16* panel = panels.data() + (p + q) * size;
        float* sum = sums.data() + q * apart;
        sum_step(some, panel, call.in, whole ? run.of(p + q) : std::vector<ExtraInputs>(), sum, next);
        if (!whole) add_runs<DIRECTION>(call, from, to, row, end, first + q * WIDTH, sum);
      }
      store_step(call, sums.data(), apart, row, rows, first, beside, rows_of_all);
    }
  }
}
#endif
