// How threads share a step's rows. Rows are cut into one range per team; a team's threads share each product's outputs
// and wait for each other after every part of a layer. A team of one never waits: with two cores and a full batch, each
// thread takes its rows through all layers by itself, in its own nearest caches.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include "amx.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// With fewer rows, a team reads its weights for too little arithmetic; then several threads share one reading.
template <typename T>
constexpr int64_t TEAM_ROWS = USES_AMX<T> ? 128 : 32;

class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}

  void wait() {
    if (members_ == 1) return;
    const int generation = generation_.load(std::memory_order_relaxed);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      waiting_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
      if (spins > SPINS) std::this_thread::yield();  // another thread needs this core, perhaps the one we wait for
#if defined(__x86_64__)
      else _mm_pause();
#endif
    }
  }

 private:
  static constexpr int SPINS = 2000;
  const int members_;
  alignas(64) std::atomic<int> waiting_{0};
  alignas(64) std::atomic<int> generation_{0};
};

// The most teams that divide `threads` evenly and leave TEAM_ROWS rows to each, or one.
template <typename T>
int count_teams(int threads, int64_t rows) {
  for (int teams = threads; teams > 1; --teams)
    if (threads % teams == 0 && rows >= teams * TEAM_ROWS<T>) return teams;
  return 1;
}

// One thread of a step: its team's rows, its share of the team's work, and the barriers it waits at.
struct Worker {
  int64_t first, last;  // the team's rows
  int member, members;
  int thread, threads;
  int team_number;
  Barrier *team, *all;

  // Where the team's rows of `width` numbers lie, as a pointer to row 0. Each team has its own part of a buffer whose
  // rows are `widest`, since other teams keep rows of another width there at the same time.
  template <typename T>
  T* team_rows(T* buffer, int64_t widest, int64_t width) const {
    return buffer + first * (widest - width);
  }
};
