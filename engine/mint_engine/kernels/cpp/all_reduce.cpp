// All-reduce over an engine's ranks between transformers' modules, and a barrier for all ranks: see peers.h.
#include "peers.h"

namespace {
constexpr int64_t STRIPE = 1 << 14;  // from this many numbers on, another thread is worth waking

// Each stripe has its own barrier. All ranks cut alike, and a rank with fewer threads takes stripes in the same order,
// so every rank comes to the first stripe that not all ranks have reached.
template <typename T>
void all_reduce(T* numbers, int64_t count, int buffer, const Peers<T>& peers) {
  const int64_t stripes = std::clamp<int64_t>(count / STRIPE, 1, std::min<int64_t>(peers.threads, BARRIERS));
#pragma omp parallel for num_threads(int(stripes)) schedule(static, 1)
  for (int64_t stripe = 0; stripe < stripes; ++stripe) {
    const int64_t first = count * stripe / stripes, width = count * (stripe + 1) / stripes - first;
    std::copy_n(numbers + first, width, peers.place(buffer, peers.rank) + first);
    wait_at_barrier(*peers.barriers, int(stripe), int(peers.count), peers.timeout_s);
    peers.sum_into(buffer, first, numbers + first, width);
  }
}
}  // namespace

#define MINT_ALL_REDUCE(T, NAME)                                                                                       \
  /* numbers [count], the same count on all ranks and at most `size`, become the sum over all ranks; `buffer`          \
     alternates between 0 and 1 */                                                                                     \
  extern "C" void mint_all_reduce_##NAME(T* numbers, int64_t count, int64_t buffer, const Peers<T>* peers) {           \
    all_reduce<T>(numbers, count, int(buffer), *peers);                                                                \
  }                                                                                                                    \
  /* Waits until all ranks have arrived. */                                                                            \
  extern "C" void mint_barrier_##NAME(const Peers<T>* peers) {                                                         \
    wait_at_barrier(*peers->barriers, 0, int(peers->count), peers->timeout_s);                                         \
  }
MINT_ALL_REDUCE(bf16, bfloat16)
MINT_ALL_REDUCE(float, float32)
