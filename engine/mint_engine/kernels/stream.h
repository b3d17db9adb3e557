// What a product leaves time for: while its sums are taken, memory is brought nearer, and between two of its tiles what
// has come near is used.
#pragma once
#include <utility>

struct Stream {
  static constexpr int LINES = 3;  // a step: what a tile's steps have time for
  const char *at = nullptr, *end = nullptr;
  // Uses the run that has been read and gives the next one; a null first: no more.
  std::pair<const void*, const void*> (*next)(void*) = nullptr;
  void* from = nullptr;

  inline void step() {
    for (int line = 0; line < LINES; ++line) {
      if (at >= end) return;
      __builtin_prefetch(at, 0, 2);
      at += 64;
    }
  }
  // Goes on to the next run when one has been read.
  void renew() {
    while (at >= end && next) {
      const auto run = next(from);
      at = (const char*)run.first, end = (const char*)run.second;
      if (!run.first) next = nullptr;
    }
  }
};
