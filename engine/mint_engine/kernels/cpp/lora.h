// The multi-LoRA product over packed slots: y[t] += (x[t] A^T * scaling) B, with A and B of each row's own slot.
// Punica's SGMV (Chen et al., MLSys 2024) for a CPU: both products in one pass while rows stay in the nearest cache.
#pragma once
#include <algorithm>
#include <type_traits>
#include <utility>
#include "bf16.h"
#include "prefetch.h"

constexpr int ITEM_ROWS = 8;    // most rows of a work item
constexpr int MAX_RANK = 1024;  // the caller refuses more

struct LoraShape {
  int64_t rank, in, out;
  float scaling;
};

// The intermediate result of the two products: for each row one number per rank, padded to an even count.
template <typename T>
struct MiddleOf {
  using Number = float;
};
template <typename T>
using Middle = typename MiddleOf<T>::Number;
inline int64_t even(int64_t rank) { return (rank + 1) / 2 * 2; }

// Where sums go: added to y, or stored as they are for `add_sums` to add. Either way they start from zero and run in
// the order of ranks, so that a row gets the same result.
template <bool ADD, typename T>
using Sums = std::conditional_t<ADD, T, float>;

// middle[row][r] = scaling * dot(x[row], a[r]); a is [rank, in], rows of middle are `pitch` apart.
template <typename T>
void shrink(const T* x, int64_t ldx, int rows, const T* a, const LoraShape& shape, Middle<T>* middle, int64_t pitch,
            PrefetchRange&) {
  for (int row = 0; row < rows; ++row)
    for (int64_t r = 0; r < shape.rank; ++r) {
      const T *xs = x + row * ldx, *as = a + r * shape.in;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < shape.in; ++i) sum += widen(xs[i]) * widen(as[i]);
      middle[row * pitch + r] = sum * shape.scaling;
    }
}

// y[row] gets the sums of middle[row] b; b is [rank, out].
template <bool ADD, typename T, typename = std::enable_if_t<std::is_same_v<Middle<T>, float>>>
void expand(Sums<ADD, T>* y, int64_t ldy, int rows, const T* b, const LoraShape& shape, const Middle<T>* middle,
            int64_t pitch, PrefetchRange&) {
  constexpr int64_t CHUNK = 64;
  float sum[CHUNK];
  for (int row = 0; row < rows; ++row)
    for (int64_t at = 0; at < shape.out; at += CHUNK) {
      int64_t width = std::min(CHUNK, shape.out - at);
      for (int64_t o = 0; o < width; ++o) sum[o] = 0;
      for (int64_t r = 0; r < shape.rank; ++r) {
        const T* bs = b + r * shape.out + at;
        float weight = middle[row * pitch + r];
#pragma omp simd
        for (int64_t o = 0; o < width; ++o) sum[o] += weight * widen(bs[o]);
      }
      auto* ys = y + row * ldy + at;
      for (int64_t o = 0; o < width; ++o) {
        if constexpr (ADD)
          ys[o] = narrow<T>(widen(ys[o]) + sum[o]);
        else
          ys[o] = sum[o];
      }
    }
}

// y [count] += stored sums.
template <typename T>
void add_sums(T* y, const float* sums, int64_t count) {
#pragma omp simd
  for (int64_t o = 0; o < count; ++o) y[o] = narrow<T>(widen(y[o]) + sums[o]);
}

#ifdef MINT_AVX512_BF16
#include "lora_bf16.h"
#endif

// The slots' memory and tables, see `mint_engine.residency.slots`: memory [S, width]; places, ranks, scalings [M, S].
template <typename T>
struct Slots {
  const T* memory;
  int64_t width;
  const int64_t* places;
  const int32_t* ranks;
  const float* scalings;
  int64_t count;
};

// A module whose adapters add to a product's columns from `column` on.
struct Target {
  int64_t module, column, in, out;
};

// At most ITEM_ROWS rows of one slot.
struct Item {
  int32_t start, rows, slot;
};

// A slot's adapter for a target: A [rank, in], followed by B [rank, out]; null: the adapter does not have the target.
template <typename T>
struct LoraWeights {
  const T* a = nullptr;
  LoraShape shape{};
  const T* b() const { return a + shape.rank * shape.in; }
  const T* end() const { return b() + shape.rank * shape.out; }
  PrefetchRange range_a() const { return {(const char*)a, (const char*)b()}; }
  PrefetchRange range_b() const { return {(const char*)b(), (const char*)end()}; }
  PrefetchRange range() const { return {(const char*)a, (const char*)end()}; }
};

template <typename T>
LoraWeights<T> lora_weights(const Slots<T>& slots, int32_t slot, const Target& target) {
  const int64_t at = target.module * slots.count + slot;
  if (slots.places[at] < 0) return {};
  return {slots.memory + slot * slots.width + slots.places[at],
          {slots.ranks[at], target.in, target.out, slots.scalings[at]}};
}

// Adds an adapter's product to its rows. Single rows prefetch `first` while they read A, and `second` while they read
// B.
template <bool ADD, typename T>
void add_lora(Sums<ADD, T>* y, int64_t ldy, const T* x, int64_t ldx, int rows, const LoraWeights<T>& pair,
              PrefetchRange& first, PrefetchRange& second) {
  Middle<T> middle[ITEM_ROWS * MAX_RANK];
  shrink(x, ldx, rows, pair.a, pair.shape, middle, even(pair.shape.rank), first);
  expand<ADD>(y, ldy, rows, pair.b(), pair.shape, middle, even(pair.shape.rank), second);
}
