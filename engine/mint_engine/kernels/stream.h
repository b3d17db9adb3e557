// Memory that is read soon, brought nearer while the arithmetic units are busy with something else.
#pragma once
#include <utility>

struct Stream {
  static constexpr int LINES = 2;  // a step: what a tile's steps have time for
  const char *at = nullptr, *end = nullptr;
  // Gives the next run, of which the second may be null: nothing to read; a null first: no more.
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
