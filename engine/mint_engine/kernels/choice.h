// Which places of a tree its rows attend to, where sparse attention's indexer chose some of them.
#pragma once
#include <cstdint>
#include <cstring>

// A bit for each place and row: of a place `stride` bytes, of which one has eight of the tree's rows.
struct Choice {
  const uint8_t* bits;  // null: rows attend to all that they see
  int64_t stride, row;  // row: the tree's first
  // A place's bits of the 32 rows from one on. What is read may lie as far as 16 bytes behind those of the last row.
  uint32_t at(int64_t place, int64_t from) const {
    uint64_t found;
    std::memcpy(&found, bits + place * stride + (from - row) / 8, 8);
    return uint32_t(found >> (from - row) % 8);
  }
};

// Trees' choices: [count, 2], where its bits begin, or -1, and its stride.
struct Choices {
  const uint8_t* bits;
  const int64_t* of;  // null: none
  Choice at(int64_t tree, int64_t row) const {
    if (!of || of[2 * tree] < 0) return {nullptr, 0, row};
    return {bits + of[2 * tree], of[2 * tree + 1], row};
  }
};
