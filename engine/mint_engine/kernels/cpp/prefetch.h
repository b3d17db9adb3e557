// Prefetching during a product: while sums are computed, memory is prefetched; between two tiles, what has arrived is
// used.
#pragma once
#include <algorithm>
#include <cstdint>
#include "aligned.h"

// Memory that will be read soon.
struct PrefetchRange {
  const char *at = nullptr, *end = nullptr;
  int each = 0;  // lines to prefetch at each step of a tile of several rows

  bool left() const { return at < end; }
  inline void prefetch(int lines) {
    for (int line = 0; line < lines && at < end; ++line, at += LINE) __builtin_prefetch(at, 0, 2);
  }
};

// Regions of memory that are prefetched one after another, evenly over a product's steps. Bursts would not be faster:
// they would delay the product's own weights, or be lost, since a busy processor drops requests.
struct PrefetchSchedule {
  static constexpr int MAX_LINES = 3;  // per step: with more, fewer arrive in time (EPYC of Zen 4, measured)
  PrefetchRange now, then;
  int64_t lines = 0, steps = 0;  // what remains of the product
  // Uses what has arrived and returns the next region; an empty one: no more.
  PrefetchRange (*next)(void*) = nullptr;
  void* from = nullptr;

  // Moves on to the next region when one has been prefetched; returns how many lines the `following` steps each
  // prefetch.
  int advance(int64_t following) {
    if (!now.left()) shift();
    while (next && !then.left()) {
      then = next(from);
      if (!then.left()) next = nullptr;
      if (!now.left()) shift();
    }
    const int64_t each = now.left() && steps > 0 ? std::clamp<int64_t>((lines + steps - 1) / steps, 1, MAX_LINES) : 0;
    lines -= each * following, steps -= following;
    return int(each);
  }

  template <int LINES>
  inline void step() {
    if (now.left()) {
      for (int line = 0; line < LINES; ++line) __builtin_prefetch(now.at + line * LINE, 0, 2);
      now.at += LINES * LINE;
    } else {
      shift();
    }
  }

 private:
  inline void shift() { now = then, then = {}; }
};
