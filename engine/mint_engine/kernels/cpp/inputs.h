// The form in which rows are multiplied: if the instruction set has no products of bfloat16, they are widened to float,
// once for all outputs. A float in memory is broadcast to all lanes of a register directly; broadcasting a bfloat16
// would take as long as its products.
#pragma once
#include <type_traits>
#include <vector>
#include "aligned.h"
#include "bf16.h"

template <typename T>
struct InputOf {
  using Number = float;
};
#ifdef MINT_AVX512_BF16
template <>
struct InputOf<bf16> {
  using Number = bf16;
};
#endif
template <typename T>
using Input = typename InputOf<T>::Number;

template <typename T>
constexpr bool WIDENS = !std::is_same_v<Input<T>, T>;

// Rows of inputs in that form, `ld` apart.
template <typename T>
struct Inputs {
  const Input<T>* rows;
  int64_t ld;
};

// Rows x [rows, depth], `ldx` apart. Rows that are widened are overwritten by this thread's next call.
template <typename T>
Inputs<T> inputs(const T* x, int64_t ldx, int64_t rows, int64_t depth) {
  if constexpr (!WIDENS<T>) {
    return {x, ldx};
  } else {
    static thread_local Aligned<float> widened;
    if (int64_t(widened.size()) < rows * depth) widened.resize(rows * depth);
    for (int64_t row = 0; row < rows; ++row) {
      const T* from = x + row * ldx;
      float* to = widened.data() + row * depth;
#pragma omp simd
      for (int64_t i = 0; i < depth; ++i) to[i] = widen(from[i]);
    }
    return {widened.data(), depth};
  }
}
