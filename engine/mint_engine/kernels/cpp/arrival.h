// A step that begins while the adapter of all its rows is still being read from disk: each layer awaits its own part.
//
// Memory that has not been filled is not touched, though it is mapped: an unreadable block would end this process.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

struct Arrival {
  const std::atomic<int64_t>* loaded;  // bytes of the slot's row that are in memory; LOST: no more will come
  const int64_t* needed;               // [layers]: how many bytes each layer needs
  float timeout_s;                     // how long a step waits in total
};
static_assert(sizeof(std::atomic<int64_t>) == sizeof(int64_t) && std::atomic<int64_t>::is_always_lock_free,
              "an interpreter's thread writes it as a number");

constexpr int64_t LOST = -1;

// Whether what a layer needs arrives in time; `waited` is how long the step has waited so far, and is updated.
inline bool await(const Arrival& arrival, int64_t layer, std::chrono::steady_clock::duration& waited) {
  using Clock = std::chrono::steady_clock;
  const auto began = Clock::now() - waited;
  for (;;) {
    const int64_t loaded = arrival.loaded->load(std::memory_order_acquire);
    waited = Clock::now() - began;
    if (loaded >= arrival.needed[layer]) return true;
    if (loaded == LOST || std::chrono::duration<float>(waited).count() >= arrival.timeout_s) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}
