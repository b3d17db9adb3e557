// Ranks of one engine: each is a process with a share of every layer (Shoeybi et al. 2019, Megatron-LM). Twice a layer
// they add up their partial sums in shared memory: each writes its own, all wait at a barrier, each reads all. Two
// buffers alternate, so nobody overwrites sums that another rank still reads: before a rank writes to a buffer again,
// all have met once more.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include "bf16.h"
#include "rows.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int BARRIERS = 1024;  // one for all threads, and one per team

struct SharedBarrier {
  alignas(64) std::atomic<int32_t> waiting;
  alignas(64) std::atomic<int32_t> generation;
};

// Initially zero. A rank that ends, or that keeps others waiting for too long, breaks it for good: from then on nobody
// waits, and results are meaningless.
struct SharedBarriers {
  alignas(64) std::atomic<int32_t> broken;
  SharedBarrier barriers[BARRIERS];
};
static_assert(std::atomic<int32_t>::is_always_lock_free, "processes share these");

// Waits until `members` threads, over all ranks, have arrived.
inline void wait_at_barrier(SharedBarriers& at, int number, int members, float timeout_s) {
  // How long to spin before yielding the core: longer than ranks' times differ within a layer. Whoever gets the core
  // keeps it for milliseconds, during which all ranks wait.
  constexpr float SPIN_S = 5e-3f;
  constexpr int64_t SPINS = 64;  // between two readings of the clock
  SharedBarrier& here = at.barriers[number];
  const int32_t generation = here.generation.load(std::memory_order_acquire);
  if (here.waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
    here.waiting.store(0, std::memory_order_relaxed);
    here.generation.store(generation + 1, std::memory_order_release);
    return;
  }
  const auto began = std::chrono::steady_clock::now();
  std::chrono::duration<float> waited{0};
  for (int64_t spins = 1; here.generation.load(std::memory_order_acquire) == generation; ++spins) {
    if (at.broken.load(std::memory_order_relaxed)) return;
    if (spins % SPINS == 0) waited = std::chrono::steady_clock::now() - began;
    if (waited.count() > timeout_s) at.broken.store(1, std::memory_order_relaxed);
    if (waited.count() > SPIN_S) std::this_thread::yield();
#if defined(__x86_64__)
    else _mm_pause();
#endif
  }
}

template <typename T>
struct Peers {
  int64_t count, rank, threads;  // threads: per rank, all of which wait for each other
  SharedBarriers* barriers;
  T* sums;       // [2, count, rows, hidden]
  int64_t size;  // of one rank's buffer: rows * hidden
  float timeout_s;
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

  T* place(int buffer, int64_t of) const { return sums + (buffer * count + of) * size; }
  // hidden [width] += the sum over all ranks, from element `at` of their buffers on; rounded once.
  void add(int buffer, int64_t at, T* hidden, int64_t width) const {
    reduce(buffer, at, width, [&](int64_t i, float sum) { hidden[i] = narrow<T>(widen(hidden[i]) + sum); });
  }
  // whole [width] = that sum, rounded once.
  void sum_into(int buffer, int64_t at, T* whole, int64_t width) const {
    reduce(buffer, at, width, [&](int64_t i, float sum) { whole[i] = narrow<T>(sum); });
  }

 private:
  // Calls keep(i, sum) for each i < width. Sums run in the order of ranks, so that all ranks get the same bits.
  template <typename F>
  void reduce(int buffer, int64_t at, int64_t width, F keep) const {
    constexpr int64_t CHUNK = 64;
    for (int64_t first = 0; first < width; first += CHUNK) {
      const int64_t many = std::min(CHUNK, width - first);
      float sum[CHUNK];
      for (int64_t i = 0; i < many; ++i) sum[i] = 0;
      for (int64_t of = 0; of < count; ++of) {
        const T* part = place(buffer, of) + at + first;
#pragma omp simd
        for (int64_t i = 0; i < many; ++i) sum[i] += widen(part[i]);
      }
#pragma omp simd
      for (int64_t i = 0; i < many; ++i) keep(first + i, sum[i]);
    }
  }
};
