// Sums over an engine's ranks between transformers' modules, and waiting for all ranks: see peers.h.
#include "peers.h"

namespace {
constexpr int64_t STRIPE = 1 << 14;  // from this many numbers on, another thread is worth waking

// Each stripe meets by itself. All ranks cut alike, and a rank with fewer threads takes stripes in the same order, so
// every rank comes to the first stripe that has not been reached by all.
template <typename T>
void sum(T* numbers, int64_t count, int turn, const Peers<T>& peers) {
  const int64_t stripes = std::clamp<int64_t>(count / STRIPE, 1, std::min<int64_t>(peers.threads, GATES));
#pragma omp parallel for num_threads(int(stripes)) schedule(static, 1)
  for (int64_t stripe = 0; stripe < stripes; ++stripe) {
    const int64_t first = count * stripe / stripes, width = count * (stripe + 1) / stripes - first;
    std::copy_n(numbers + first, width, peers.place(turn, peers.rank) + first);
    meet(*peers.meeting, int(stripe), int(peers.count), peers.patience_s);
    peers.take(turn, first, numbers + first, width);
  }
}
}  // namespace

#define MINT_SUMS(T, NAME)                                                                                             \
  /* numbers [count], the same count on all ranks and at most `size`, become the sum over all ranks; `turn` alternates \
     between 0 and 1 */                                                                                                \
  extern "C" void mint_sum_##NAME(T* numbers, int64_t count, int64_t turn, const Peers<T>* peers) {                    \
    sum<T>(numbers, count, int(turn), *peers);                                                                         \
  }                                                                                                                    \
  /* Waits until all ranks have arrived. */                                                                            \
  extern "C" void mint_meet_##NAME(const Peers<T>* peers) {                                                            \
    meet(*peers->meeting, 0, int(peers->count), peers->patience_s);                                                    \
  }
MINT_SUMS(bf16, bfloat16)
MINT_SUMS(float, float32)
