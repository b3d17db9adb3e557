// Which places of a tree its rows attend to, if sparse attention's indexer selected some of them.
#pragma once
#include <cstdint>
#include <cstring>

// One bit for each place and row: a place has `stride` bytes, each with the bits of eight of the tree's rows.
struct TopKMask {
  const uint8_t* bits;  // null: rows attend to all that they see
  int64_t stride, row;  // row: the tree's first
  // A place's bits for 32 rows from `from` on. Reads up to 16 bytes beyond those of the last row.
  uint32_t at(int64_t place, int64_t from) const {
    uint64_t found;
    std::memcpy(&found, bits + place * stride + (from - row) / 8, 8);
    return uint32_t(found >> (from - row) % 8);
  }
};

// The masks of trees, `of` [count, 2]: where a tree's bits begin, or -1, and its stride.
struct TopKMasks {
  const uint8_t* bits;
  const int64_t* of;  // null: none
  TopKMask at(int64_t tree, int64_t row) const {
    if (!of || of[2 * tree] < 0) return {nullptr, 0, row};
    return {bits + of[2 * tree], of[2 * tree + 1], row};
  }
};
