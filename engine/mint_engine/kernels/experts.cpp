// The products of routed experts: rows sorted by expert, each by its own expert's weight as transformers keeps it.
// Inputs meet a weight's rows in dot products, so that nothing is packed and no weight lies in memory twice. A sum is
// taken in the order of its inputs, so a row's result does not depend on how many rows there are.
#include <vector>

#include "lora.h"

namespace {
constexpr int64_t BLOCK = 64;  // outputs of a work item: with 2,000 inputs their weights fit the second-level cache
constexpr int64_t FEW = 16;    // outputs that are taken together

// Some outputs of one expert.
struct Share {
  int64_t expert, first, count;
};

// y [rows, outs] = x [rows, in] W^T, of a few outputs.
template <typename T>
inline void put(const T* x, int64_t in, int rows, const T* weight, int64_t outs, T* y, int64_t ldy) {
  Middle<T> found[ITEM_ROWS * FEW];
  Ahead nothing;
  shrink(x, in, rows, weight, {outs, in, 0, 1.0f}, found, FEW, nothing);
  for (int n = 0; n < rows; ++n)
    for (int64_t o = 0; o < outs; ++o) {
      if constexpr (std::is_same_v<Middle<T>, T>)
        y[n * ldy + o] = found[n * FEW + o];
      else
        y[n * ldy + o] = narrow<T>(found[n * FEW + o]);
    }
}

template <typename T>
void multiply_experts(const T* x, const int64_t* bounds, int64_t experts, const T* weight, int64_t in, int64_t out,
                      T* y) {
  std::vector<Share> shares;
  for (int64_t expert = 0; expert < experts; ++expert)
    if (bounds[expert] < bounds[expert + 1])
      for (int64_t first = 0; first < out; first += BLOCK)
        shares.push_back({expert, first, std::min(BLOCK, out - first)});
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t at = 0; at < shares.size(); ++at) {
    const Share& share = shares[at];
    const T* own = weight + (share.expert * out + share.first) * in;
    const int64_t from = bounds[share.expert], to = bounds[share.expert + 1];
    for (int64_t row = from; row < to; row += ITEM_ROWS) {
      const int count = int(std::min<int64_t>(ITEM_ROWS, to - row));
      for (int64_t o = 0; o < share.count; o += FEW) {
        // What lies behind a share is, most likely, the next one.
        const T* next = own + (o + BLOCK) * in;
        if (row == from)
          for (int64_t i = 0; i < FEW * in; i += LINE / int64_t(sizeof(T))) __builtin_prefetch(next + i, 0, 2);
        put(x + row * in, in, count, own + o * in, std::min(FEW, share.count - o), y + row * out + share.first + o, out);
      }
    }
  }
}
}  // namespace

// x [P, in], rows bounds[e] to bounds[e + 1] expert e's; weight [E, out, in] -> y [P, out].
#define MINT_EXPERTS(NAME, T)                                                                                          \
  extern "C" void mint_multiply_experts_##NAME(const T* x, const int64_t* bounds, int64_t experts, const T* weight,    \
                                               int64_t in, int64_t out, T* y) {                                        \
    multiply_experts<T>(x, bounds, experts, weight, in, out, y);                                                       \
  }
MINT_EXPERTS(bfloat16, bf16)
MINT_EXPERTS(float32, float)
