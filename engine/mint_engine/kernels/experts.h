// The products of routed experts: rows sorted by expert, each by its own expert's weight as transformers keeps it.
// Inputs meet a weight's rows in dot products, so that nothing is packed and no weight lies in memory twice. A sum is
// taken in the order of its inputs, so a row's result does not depend on how many rows there are.
#pragma once
#include "inputs.h"
#include "lanes.h"
#include "lora.h"
#include "turned.h"

constexpr int64_t BLOCK = 64;  // outputs of a work item: with 2,000 inputs their weights fit the second-level cache
constexpr int64_t FEW = 16;    // outputs that are taken together

#if defined(__AVX512F__)
constexpr int DOTS = 4;  // rows, and outputs, of a tile of dot products: its sums stay in registers
#else
constexpr int DOTS = 2;
#endif

// One linear of all experts: weight [E, out, in], and the modules whose adapters add to it.
template <typename T>
struct Stack {
  const T* weight;
  int64_t in, out;
  const Target* targets;
  int64_t target_count;
};

// y [N, ldy] = x [N, in] W^T of R outputs.
template <int N, int R, typename T>
inline void put_dots(const Input<T>* x, int64_t in, const T* weight, T* y, int64_t ldy) {
  Lanes sums[N][R];
  for (int n = 0; n < N; ++n)
    for (int r = 0; r < R; ++r) sums[n][r] = zero();
  int64_t i = 0;
  for (; i + LANES <= in; i += LANES) {
    Lanes xs[N];
    for (int n = 0; n < N; ++n) xs[n] = load(x + n * in + i);
    for (int r = 0; r < R; ++r) {
      const Lanes weights = load(weight + r * in + i);
      for (int n = 0; n < N; ++n) sums[n][r] = multiply_add(xs[n], weights, sums[n][r]);
    }
  }
  for (int n = 0; n < N; ++n)
    for (int r = 0; r < R; ++r) {
      float lanes[LANES], sum = 0;
      store(lanes, sums[n][r]);
      for (int lane = 0; lane < LANES; ++lane) sum += lanes[lane];
      for (int64_t j = i; j < in; ++j) sum = __builtin_fmaf(wide(x[n * in + j]), wide(weight[r * in + j]), sum);
      y[n * ldy + r] = narrow<T>(sum);
    }
}

// y [rows, ldy] = x [rows, in] W^T of FEW outputs at most. Brings `ahead` meanwhile.
template <typename T>
inline void put(const Input<T>* x, int64_t in, int rows, const T* weight, int64_t outs, T* y, int64_t ldy, Ahead& ahead) {
  if constexpr (std::is_same_v<Middle<T>, bf16>) {
    T found[ITEM_ROWS * FEW];
    shrink(x, in, rows, weight, {outs, in, 0, 1.0f}, found, FEW, ahead);
    for (int n = 0; n < rows; ++n) std::copy_n(found + n * FEW, outs, y + n * ldy);
  } else {
    for (int n = 0; n < rows; n += DOTS)
      for (int64_t o = 0; o < outs; o += DOTS) {
        const Input<T>* from = x + n * in;
        const T* by = weight + o * in;
        T* to = y + n * ldy + o;
        if (n + DOTS <= rows && o + DOTS <= outs) {
          put_dots<DOTS, DOTS, T>(from, in, by, to, ldy);
          continue;
        }
        for (int m = 0; m < std::min(DOTS, rows - n); ++m)
          for (int64_t r = 0; r < std::min<int64_t>(DOTS, outs - o); ++r)
            put_dots<1, 1, T>(from + m * in, in, by + r * in, to + m * ldy + r, ldy);
      }
  }
}

// One expert's rows x [count, in]; `standing`: the same as matrix registers take them, null: they don't.
template <typename T>
struct Rows {
  const T* x;
  int64_t count;
  const T* standing = nullptr;
  // Of the weights that follow, to be brought at each step.
  int lines() const {
#ifdef MINT_AMX
    if (standing) return int(2 * HEIGHT / ((count + HEIGHT - 1) / HEIGHT)) + 1;
#endif
    return int((FEW + count - 1) / count);
  }
};
template <typename T>
inline Rows<T> rows_of(const T* x, int64_t count, const Stack<T>&) {
  return {x, count};
}
#ifdef MINT_AMX
template <>
inline Rows<bf16> rows_of(const bf16* x, int64_t count, const Stack<bf16>& by) {
  return {x, count, fills(by.in, by.out) ? stand(x, count, by.in) : nullptr};
}
#endif

// Outputs `first` to `last` of one expert's rows -> y [count, out].
template <typename T>
inline void multiply_block(const Rows<T>& rows, const T* weight, const Stack<T>& by, int64_t first, int64_t last, T* y,
                           Ahead& ahead) {
#ifdef MINT_AMX
  if constexpr (BY_MATRICES<T>)
    if (rows.standing)
      return multiply_standing(rows.standing, rows.count, weight, by.in, by.out, first, last, y, ahead);
#endif
  for (int64_t row = 0; row < rows.count; row += ITEM_ROWS) {
    const int some = int(std::min<int64_t>(ITEM_ROWS, rows.count - row));
    const Inputs<T> from = inputs(rows.x + row * by.in, by.in, some, by.in);
    for (int64_t o = first; o < last; o += FEW)
      put<T>(from.rows, by.in, some, weight + o * by.in, std::min(FEW, last - o), y + row * by.out + o, by.out, ahead);
  }
}

// One thread's part of all experts' outputs: rows bounds[e] to bounds[e + 1] of x [P, in] are expert e's -> y [P, out].
template <typename T>
void multiply_part(const T* x, const int64_t* bounds, int64_t experts, const Stack<T>& by, T* y, int thread,
                   int threads) {
  const int64_t blocks = (by.out + BLOCK - 1) / BLOCK;
  const int64_t first = blocks * thread / threads * BLOCK, last = std::min(by.out, blocks * (thread + 1) / threads * BLOCK);
  if (first == last) return;
#ifdef MINT_AMX
  const Matrices registers;
#endif
  const auto after = [&](int64_t expert) {  // the next one with rows
    do ++expert;
    while (expert < experts && bounds[expert] == bounds[expert + 1]);
    return expert;
  };
  for (int64_t expert = after(-1), next; expert < experts; expert = next) {
    next = after(expert);
    const int64_t from = bounds[expert], rows = bounds[expert + 1] - from;
    const T *weight = by.weight + expert * by.out * by.in, *following = by.weight + next * by.out * by.in;
    const Rows<T> these = rows_of(x + from * by.in, rows, by);
    for (int64_t block = first; block < last; block += BLOCK) {
      Ahead ahead;  // a block's weights while the one before is computed, evenly over the steps that this takes
      const bool more = block + BLOCK < last;
      if (more || next < experts) {
        const T* soon = more ? weight + (block + BLOCK) * by.in : following + first * by.in;
        ahead = {(const char*)soon, (const char*)(soon + std::min(BLOCK, last - first) * by.in), these.lines()};
      }
      multiply_block(these, weight, by, block, std::min(block + BLOCK, last), y + from * by.out, ahead);
    }
  }
}
