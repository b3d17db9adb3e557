// The arguments of a grouped product, and the blocks into which it is cut.
#pragma once
#include "adapter_run.h"
#include "aligned.h"
#include "panel.h"
#include "lora_epilogue.h"

// x [rows, in] times one weight per expert, `apart` from the next -> y [rows, out], plus what `count` adapters add.
// Going backward, `in` is the weight's outputs, and A and B swap roles. Rows of a weight, one per output of the
// forward, are `pitch` apart.
template <typename T>
struct GroupedProduct {
  const T *x, *weight;
  int64_t apart, pitch;
  const T* bias;  // null: none
  int64_t in, out;
  const AdapterRun<T>* runs;
  int64_t count;
  Middle<T>* middles;
  T* y;
};

// Rows `first` to `last` of an expert, cut into pieces, times some panels.
struct Block {
  int64_t expert, first, last, first_piece, last_piece, panel, panels;
};

// Rows of memory whose lines are prefetched, row by row, while sums are computed.
struct RowPrefetch {
  const char* row = nullptr;
  int64_t apart = 0, bytes = 0, rows = 0, at = 0;

  inline void prefetch() {
    if (rows == 0) return;
    __builtin_prefetch(row + at, 0, 2);
    at += LINE;
    if (at >= bytes) at = 0, row += apart, --rows;
  }
};

template <typename T>
RowPrefetch prefetch_rows(const T* from, int64_t ld, int64_t count, int64_t rows) {
  const char* first = (const char*)(uintptr_t(from) / LINE * LINE);
  return {first, ld * int64_t(sizeof(T)), (const char*)(from + count) - first, rows};
}

// The epilogue of an adapter for its rows from `row` on.
template <Direction DIRECTION, typename T>
LoraEpilogue<T> epilogue_of(const GroupedProduct<T>& call, const AdapterRun<T>& own, int64_t row) {
  const bool forward = DIRECTION == Direction::FORWARD;
  return {forward ? own.b : own.a,
          call.middles + own.middle + (row - own.first) * own.pitch(),
          own.pitch(),
          own.rank,
          forward ? own.column : 0,
          forward ? own.width : call.out};
}

// The part of a block's weight for inputs from `i` on.
template <Direction DIRECTION, typename T>
const T* weight_of(const GroupedProduct<T>& call, const Block& block, int64_t i) {
  const int64_t first = block.panel * WIDTH;
  return call.weight + block.expert * call.apart +
         (DIRECTION == Direction::FORWARD ? first * call.pitch + i : i * call.pitch + first);
}

// Numbers of a packed panel.
template <typename T>
constexpr int64_t panel_size(int64_t depth) {
  return (depth + GROUP<T> - 1) / GROUP<T> * GROUP<T> * WIDTH;
}

// Packs the part of a block's weight for `depth` inputs from `i` on; panels follow one another.
template <Direction DIRECTION, typename T>
void pack_block(const GroupedProduct<T>& call, const Block& block, int64_t i, int64_t depth, T* panels) {
  for (int64_t p = 0; p < block.panels; ++p)
    pack_panel<DIRECTION>(
        weight_of<DIRECTION>(call, block, i) + p * WIDTH * (DIRECTION == Direction::FORWARD ? call.pitch : 1),
        call.pitch, depth, call.out - (block.panel + p) * WIDTH, panels + p * panel_size<T>(depth));
}
