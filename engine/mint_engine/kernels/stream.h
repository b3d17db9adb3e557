// What a product leaves time for: while its sums are taken, memory is brought nearer, and between two of its tiles what
// has come near is used.
#pragma once
#include <algorithm>
#include <cstdint>
#include "aligned.h"


// Memory that is read soon.
struct Ahead {
  const char *at = nullptr, *end = nullptr;
  int each = 0;  // lines beside a tile's step, of several rows

  bool left() const { return at < end; }
  inline void bring(int lines) {
    for (int line = 0; line < lines && at < end; ++line, at += LINE) __builtin_prefetch(at, 0, 2);
  }
};

// Runs of memory that are brought one after another, evenly over a product's steps. In bursts they would not come
// faster, but be in the way of the product's own weights, or, since a processor that is busy drops requests, not come.
struct Stream {
  static constexpr int MOST_LINES = 3;  // a step: what comes of more is less (EPYC of Zen 4, measured)
  Ahead now, then;
  int64_t lines = 0, steps = 0;  // that are left of the product
  // Uses what has been brought and gives the next run; none: no more.
  Ahead (*next)(void*) = nullptr;
  void* from = nullptr;

  // Goes on to the next run when one has been brought; how many lines each of `following` steps is to bring.
  int renew(int64_t following) {
    if (!now.left()) go_on();
    while (next && !then.left()) {
      then = next(from);
      if (!then.left()) next = nullptr;
      if (!now.left()) go_on();
    }
    const int64_t each = now.left() && steps > 0 ? std::clamp<int64_t>((lines + steps - 1) / steps, 1, MOST_LINES) : 0;
    lines -= each * following, steps -= following;
    return int(each);
  }

  template <int LINES>
  inline void step() {
    if (now.left()) {
      for (int line = 0; line < LINES; ++line) __builtin_prefetch(now.at + line * LINE, 0, 2);
      now.at += LINES * LINE;
    } else {
      go_on();
    }
  }

 private:
  inline void go_on() { now = then, then = {}; }
};
