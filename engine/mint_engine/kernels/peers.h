// Ranks of one engine: each is a process with a share of every layer (Shoeybi et al. 2019, Megatron-LM). Twice a layer
// they add up their partial sums in shared memory: each writes its own, all wait at a gate, each reads all. Two buffers
// alternate, so nobody overwrites sums that another rank still reads: before a rank writes to a buffer again, all have
// met once more.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include "number.h"
#include "rows.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int GATES = 1024;  // one for all threads, and one per team

struct Gate {
  alignas(64) std::atomic<int32_t> waiting;
  alignas(64) std::atomic<int32_t> turn;
};

// Initially zero. A rank that ends, or that keeps others waiting for too long, breaks it for good: from then on nobody
// waits, and results are meaningless.
struct Meeting {
  alignas(64) std::atomic<int32_t> broken;
  Gate gates[GATES];
};
static_assert(std::atomic<int32_t>::is_always_lock_free, "processes share these");

// Waits until `members` threads, over all ranks, have arrived.
inline void meet(Meeting& at, int gate, int members, float patience_s) {
  // How long to spin before yielding the core: longer than ranks' times differ within a layer. Whoever gets the core
  // keeps it for milliseconds, during which all ranks wait.
  constexpr float SPIN_S = 5e-3f;
  constexpr int64_t LOOKS = 64;  // spins between two looks at the clock
  Gate& here = at.gates[gate];
  const int32_t turn = here.turn.load(std::memory_order_acquire);
  if (here.waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
    here.waiting.store(0, std::memory_order_relaxed);
    here.turn.store(turn + 1, std::memory_order_release);
    return;
  }
  const auto began = std::chrono::steady_clock::now();
  std::chrono::duration<float> waited{0};
  for (int64_t looks = 1; here.turn.load(std::memory_order_acquire) == turn; ++looks) {
    if (at.broken.load(std::memory_order_relaxed)) return;
    if (looks % LOOKS == 0) waited = std::chrono::steady_clock::now() - began;
    if (waited.count() > patience_s) at.broken.store(1, std::memory_order_relaxed);
    if (waited.count() > SPIN_S) std::this_thread::yield();
#if defined(__x86_64__)
    else _mm_pause();
#endif
  }
}

template <typename T>
struct Peers {
  int64_t count, rank, threads;  // threads: per rank, all of which meet
  Meeting* meeting;
  T* sums;       // [2, count, rows, hidden]
  int64_t size;  // of one rank's buffer: rows * hidden
  float patience_s;
  SquareSums* squares;  // [rows, count]: of each rank's heads, for norms that are joint over all ranks

  // The squares of a row's heads on all ranks, added in the order of ranks.
  SquareSums squares_of(int64_t row) const {
    SquareSums sum{0, 0};
    for (int64_t of = 0; of < count; ++of) {
      const SquareSums& each = squares[row * count + of];
      sum.queries += each.queries, sum.keys += each.keys;
    }
    return sum;
  }

  T* place(int turn, int64_t of) const { return sums + (turn * count + of) * size; }
  // hidden [width] += the sum over all ranks, from element `at` of their buffers on; rounded once.
  void add(int turn, int64_t at, T* hidden, int64_t width) const {
    total(turn, at, width, [&](int64_t i, float sum) { hidden[i] = narrow<T>(wide(hidden[i]) + sum); });
  }
  // whole [width] = that sum, rounded once.
  void take(int turn, int64_t at, T* whole, int64_t width) const {
    total(turn, at, width, [&](int64_t i, float sum) { whole[i] = narrow<T>(sum); });
  }

 private:
  // Calls keep(i, sum) for each i < width. Sums run in the order of ranks, so that all ranks get the same bits.
  template <typename F>
  void total(int turn, int64_t at, int64_t width, F keep) const {
    constexpr int64_t CHUNK = 64;
    for (int64_t first = 0; first < width; first += CHUNK) {
      const int64_t many = std::min(CHUNK, width - first);
      float sum[CHUNK];
      for (int64_t i = 0; i < many; ++i) sum[i] = 0;
      for (int64_t of = 0; of < count; ++of) {
        const T* part = place(turn, of) + at + first;
#pragma omp simd
        for (int64_t i = 0; i < many; ++i) sum[i] += wide(part[i]);
      }
#pragma omp simd
      for (int64_t i = 0; i < many; ++i) keep(first + i, sum[i]);
    }
  }
};
