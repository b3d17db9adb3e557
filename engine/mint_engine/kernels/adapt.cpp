// One adapter over the rows of one policy, for training: y += (x D^T scaling) U, and the middle products, which its
// gradients need. Forwards D is A and U is B; backwards, from dy to dx, D is B and U is A. A row's numbers depend on
// nothing but itself.
#include "lora.h"

namespace {
template <typename T>
void adapt(T* y, int64_t ldy, const T* x, int64_t ldx, int64_t rows, const T* down, const T* up, const Part& part,
           T* middles) {
#pragma omp parallel for schedule(static)
  for (int64_t at = 0; at < rows; at += ITEM_ROWS) {
    Middle<T> middle[ITEM_ROWS * MAX_RANK];
    const int count = int(std::min<int64_t>(ITEM_ROWS, rows - at));
    const int64_t pitch = even(part.rank);
    Ahead nothing;  // all items read the same
    shrink(x + at * ldx, ldx, count, down, part, middle, pitch, nothing);
    expand<true>(y + at * ldy, ldy, count, up, part, middle, pitch, nothing);
    for (int row = 0; row < count; ++row)
      for (int64_t r = 0; r < part.rank; ++r)
        middles[(at + row) * part.rank + r] = narrow<T>(wide(middle[row * pitch + r]));
  }
}
}  // namespace

// y [rows, out], x [rows, in], rows ldy and ldx apart; down [rank, in]; up [rank, out] -> middles [rows, rank].
#define MINT_ADAPT(NAME, T)                                                                                            \
  extern "C" void mint_adapt_##NAME(T* y, int64_t ldy, const T* x, int64_t ldx, int64_t rows, const T* down,           \
                                    const T* up, int64_t rank, int64_t in, int64_t out, float scaling, T* middles) {   \
    adapt<T>(y, ldy, x, ldx, rows, down, up, {rank, in, out, scaling}, middles);                                       \
  }
MINT_ADAPT(bfloat16, bf16)
MINT_ADAPT(float32, float)
