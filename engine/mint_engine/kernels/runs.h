// A training product as it is called, and the blocks into which it is cut.
#pragma once
#include "added.h"
#include "aligned.h"
#include "panel.h"
#include "strip.h"

// x [rows, in] times one weight per expert, `apart` from the next -> y [rows, out], plus what `count` adapters add. For
// the way back, `in` is the weight's outputs, and A and B swap roles. Rows of a weight, one per output of the forward,
// are `pitch` apart.
template <typename T>
struct Call {
  const T *x, *weight;
  int64_t apart, pitch;
  const T* bias;  // null: none
  int64_t in, out;
  const Added<T>* added;
  int64_t count;
  Middle<T>* middles;
  T* y;
};

// Rows `first` to `last` of an expert, cut into pieces, times some panels.
struct Block {
  int64_t expert, first, last, first_piece, last_piece, panel, panels;
};

// Memory that is needed soon, row by row: its lines are prefetched while sums are computed.
struct Soon {
  const char* row = nullptr;
  int64_t apart = 0, bytes = 0, rows = 0, at = 0;

  inline void bring() {
    if (rows == 0) return;
    __builtin_prefetch(row + at, 0, 2);
    at += LINE;
    if (at >= bytes) at = 0, row += apart, --rows;
  }
};

template <typename T>
Soon soon(const T* from, int64_t ld, int64_t count, int64_t rows) {
  const char* first = (const char*)(uintptr_t(from) / LINE * LINE);
  return {first, ld * int64_t(sizeof(T)), (const char*)(from + count) - first, rows};
}

// What an adapter adds to its rows from `row` on.
template <Way WAY, typename T>
Strip<T> strip_of(const Call<T>& call, const Added<T>& own, int64_t row) {
  const bool there = WAY == Way::THERE;
  return {there ? own.b : own.a, call.middles + own.middle + (row - own.first) * own.pitch(), own.pitch(), own.rank,
          there ? own.column : 0, there ? own.width : call.out};
}

// The part of a block's weight that inputs from `i` on meet.
template <Way WAY, typename T>
const T* weight_of(const Call<T>& call, const Block& block, int64_t i) {
  const int64_t first = block.panel * WIDTH;
  return call.weight + block.expert * call.apart + (WAY == Way::THERE ? first * call.pitch + i : i * call.pitch + first);
}

// Numbers of a packed panel.
template <typename T>
constexpr int64_t panel_size(int64_t depth) {
  return (depth + GROUP<T> - 1) / GROUP<T> * GROUP<T> * WIDTH;
}

// Packs the part of a block's weight that `depth` inputs from `i` on meet; panels follow one another.
template <Way WAY, typename T>
void pack_block(const Call<T>& call, const Block& block, int64_t i, int64_t depth, T* panels) {
  for (int64_t p = 0; p < block.panels; ++p)
    pack_panel<WAY>(weight_of<WAY>(call, block, i) + p * WIDTH * (WAY == Way::THERE ? call.pitch : 1), call.pitch, depth,
                    call.out - (block.panel + p) * WIDTH, panels + p * panel_size<T>(depth));
}
