// The multi-LoRA product as a kernel of its own; and that of stacked experts.
#include "lora.h"

namespace {
// At most ITEM_ROWS pairs of one slot and one expert.
struct ExpertItem {
  int32_t start, rows, slot, expert;
};

template <typename T>
void add_items(T* y, int64_t ldy, const T* x, int64_t ldx, const Item* items, int64_t item_count, const Slots<T>& slots,
               const Target* targets, int64_t count) {
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t i = 0; i < item_count; ++i) {
    const Item& item = items[i];
    for (int64_t t = 0; t < count; ++t) {
      const LoraWeights<T> pair = lora_weights(slots, item.slot, targets[t]);
      if (!pair.a) continue;
      // An item's last target is most likely followed by the next item's first.
      LoraWeights<T> next;
      if (t + 1 < count)
        next = lora_weights(slots, item.slot, targets[t + 1]);
      else if (i + 1 < item_count)
        next = lora_weights(slots, items[i + 1].slot, targets[0]);
      PrefetchRange first = pair.range_b(), second = next.range_a();
      add_lora<true>(y + item.start * ldy + targets[t].column, ldy, x + item.start * ldx, ldx, item.rows, pair, first,
                     second);
    }
  }
}

// One module of stacked experts: a slot's row holds the A of all experts, one after another, and then their B.
template <typename T>
void add_experts(T* y, int64_t ldy, const T* x, int64_t ldx, const ExpertItem* items, int64_t item_count,
                 const T* memory, int64_t width, const int64_t* places, const int32_t* ranks, const float* scalings,
                 int64_t experts, int64_t in, int64_t out) {
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t i = 0; i < item_count; ++i) {
    const ExpertItem& item = items[i];
    if (places[item.slot] < 0) continue;
    const LoraShape shape{ranks[item.slot], in, out, scalings[item.slot]};
    const T* first = memory + item.slot * width + places[item.slot];
    const T* b = first + experts * shape.rank * in + item.expert * shape.rank * out;
    Middle<T> middle[ITEM_ROWS * MAX_RANK];
    PrefetchRange ahead{(const char*)b, (const char*)(b + shape.rank * shape.out)}, nothing;
    shrink(x + item.start * ldx, ldx, item.rows, first + item.expert * shape.rank * in, shape, middle, even(shape.rank),
           ahead);
    expand<true>(y + item.start * ldy, ldy, item.rows, b, shape, middle, even(shape.rank), nothing);
  }
}
}  // namespace

// y [T, ldy], x [T, ldx]; items [n, 3]; targets [p, 4].
#define MINT_LORA(NAME, T)                                                                                             \
  extern "C" void mint_lora_##NAME(T* y, int64_t ldy, const T* x, int64_t ldx, const Item* items, int64_t item_count,  \
                                   const Slots<T>* slots, const Target* targets, int64_t count) {                      \
    add_items<T>(y, ldy, x, ldx, items, item_count, *slots, targets, count);                                           \
  }                                                                                                                    \
  /* As above for one module; items [n, 4]; memory [S, width]; places, ranks, scalings [S]. */                         \
  extern "C" void mint_lora_experts_##NAME(                                                                            \
      T* y, int64_t ldy, const T* x, int64_t ldx, const ExpertItem* items, int64_t item_count, const T* memory,        \
      int64_t width, const int64_t* places, const int32_t* ranks, const float* scalings, int64_t experts, int64_t in,  \
      int64_t out) {                                                                                                   \
    add_experts<T>(y, ldy, x, ldx, items, item_count, memory, width, places, ranks, scalings, experts, in, out);       \
  }
MINT_LORA(bfloat16, bf16)
MINT_LORA(float32, float)
