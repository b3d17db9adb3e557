// Products of routed experts: rows sorted by expert, each multiplied by its own expert's weight as transformers stores
// it. They are dot products with the weight's rows, so that nothing is packed and no weight is in memory twice. Each
// sum is computed in the order of its inputs, so a row's result does not depend on the number of rows.
#pragma once
#include "codes.h"
#include "inputs.h"
#include "lanes.h"
#include "lora.h"
#include "amx_experts.h"

// Outputs of a work item: with 2,000 inputs their weights fit the second-level cache. Dequantised
// weights are used as soon as they are written; of fewer outputs, some still lie in the first-level cache.
constexpr int64_t BLOCK = 64, BLOCK_DEQUANTISED = 32;
constexpr int64_t DOT_OUTPUTS = 16;  // outputs that are computed together

#if defined(__AVX512F__)
constexpr int DOTS = 4;  // rows, and outputs, of a tile of dot products: its sums stay in registers
#else
constexpr int DOTS = 2;
#endif

// One linear of all experts: weight [E, out, in], or, if that is null, quantised linears whose outputs are stacked one
// below another; and the modules whose adapters add to it.
template <typename T>
struct Stack {
  const T* weight;
  const Codes* codes;
  int64_t in, out;
  const Target* targets;
  int64_t target_count;

  // The weights of an expert's outputs `first` to `last`. This thread's next call may overwrite them.
  const T* rows(int64_t expert, int64_t first, int64_t last) const {
    return weight ? weight + (expert * out + first) * in : dequantised<T>(codes, expert, first, last, in);
  }
  // The memory of those weights, to be prefetched `lines` at a time.
  PrefetchRange weight_range(int64_t expert, int64_t first, int64_t last, int lines) const {
    if (!weight) return codes_range(codes, expert, first, last, lines);
    return {(const char*)(weight + (expert * out + first) * in), (const char*)(weight + (expert * out + last) * in),
            lines};
  }
};

// y [N, ldy] = x [N, in] W^T, for R outputs.
template <int N, int R, typename T>
inline void dot_tile(const Input<T>* x, int64_t in, const T* weight, T* y, int64_t ldy) {
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
      for (int64_t j = i; j < in; ++j) sum = __builtin_fmaf(widen(x[n * in + j]), widen(weight[r * in + j]), sum);
      y[n * ldy + r] = narrow<T>(sum);
    }
}

// y [rows, ldy] = x [rows, in] W^T, for at most FEW outputs. Meanwhile prefetches `ahead`.
template <typename T>
inline void dot_block(const Input<T>* x, int64_t in, int rows, const T* weight, int64_t outs, T* y, int64_t ldy,
                      PrefetchRange& ahead) {
  if constexpr (std::is_same_v<Middle<T>, bf16>) {
    T found[ITEM_ROWS * DOT_OUTPUTS];
    shrink(x, in, rows, weight, {outs, in, 0, 1.0f}, found, DOT_OUTPUTS, ahead);
    for (int n = 0; n < rows; ++n) std::copy_n(found + n * DOT_OUTPUTS, outs, y + n * ldy);
  } else {
    for (int n = 0; n < rows; n += DOTS)
      for (int64_t o = 0; o < outs; o += DOTS) {
        const Input<T>* from = x + n * in;
        const T* by = weight + o * in;
        T* to = y + n * ldy + o;
        if (n + DOTS <= rows && o + DOTS <= outs) {
          dot_tile<DOTS, DOTS, T>(from, in, by, to, ldy);
          continue;
        }
        for (int m = 0; m < std::min(DOTS, rows - n); ++m)
          for (int64_t r = 0; r < std::min<int64_t>(DOTS, outs - o); ++r)
            dot_tile<1, 1, T>(from + m * in, in, by + r * in, to + m * ldy + r, ldy);
      }
  }
}

// One expert's rows x [count, in]; `packed`: the same, packed for AMX, or null if it is not used.
template <typename T>
struct Rows {
  const T* x;
  int64_t count;
  const T* packed = nullptr;
  // Lines of the following weights to prefetch at each step.
  int lines() const {
#ifdef MINT_AMX
    if (packed) return int(2 * AMX_ROWS / ((count + AMX_ROWS - 1) / AMX_ROWS)) + 1;
#endif
    return int((DOT_OUTPUTS + count - 1) / count);
  }
};
template <typename T>
inline Rows<T> rows_of(const T* x, int64_t count, const Stack<T>&) {
  return {x, count};
}
#ifdef MINT_AMX
template <>
inline Rows<bf16> rows_of(const bf16* x, int64_t count, const Stack<bf16>& by) {
  return {x, count, fills_tiles(by.in, by.out) ? pack_columns(x, count, by.in) : nullptr};
}
#endif

// One expert's rows times `outs` of its outputs, weight [outs, in] -> y [count, ldy].
template <typename T>
inline void multiply_block(const Rows<T>& rows, const T* weight, int64_t in, int64_t outs, T* y, int64_t ldy,
                           PrefetchRange& ahead) {
#ifdef MINT_AMX
  if constexpr (USES_AMX<T>)
    if (rows.packed) return multiply_packed(rows.packed, rows.count, weight, in, outs, y, ldy, ahead);
#endif
  for (int64_t row = 0; row < rows.count; row += ITEM_ROWS) {
    const int some = int(std::min<int64_t>(ITEM_ROWS, rows.count - row));
    const Inputs<T> from = inputs(rows.x + row * in, in, some, in);
    for (int64_t o = 0; o < outs; o += DOT_OUTPUTS)
      dot_block<T>(from.rows, in, some, weight + o * in, std::min(DOT_OUTPUTS, outs - o), y + row * ldy + o, ldy,
                   ahead);
  }
}

// One thread's part of all experts' outputs: rows bounds[e] to bounds[e + 1] of x [P, in] are expert e's -> y [P, out].
template <typename T>
void multiply_part(const T* x, const int64_t* bounds, int64_t experts, const Stack<T>& by, T* y, int thread,
                   int threads) {
  const int64_t high = by.weight ? BLOCK : BLOCK_DEQUANTISED, blocks = (by.out + high - 1) / high;
  const int64_t first = blocks * thread / threads * high,
                last = std::min(by.out, blocks * (thread + 1) / threads * high);
  if (first == last) return;
#ifdef MINT_AMX
  const TileConfig registers;
#endif
  const auto after = [&](int64_t expert) {  // the next expert with rows
    do ++expert;
    while (expert < experts && bounds[expert] == bounds[expert + 1]);
    return expert;
  };
  for (int64_t expert = after(-1), next; expert < experts; expert = next) {
    next = after(expert);
    const int64_t from = bounds[expert];
    const Rows<T> these = rows_of(x + from * by.in, bounds[expert + 1] - from, by);
    for (int64_t block = first, end; block < last; block = end) {
      end = std::min(block + high, last);
      PrefetchRange ahead;  // prefetches a block's weights while the one before is computed, evenly over its steps
      if (end < last)
        ahead = by.weight_range(expert, end, std::min(end + high, last), these.lines());
      else if (next < experts)
        ahead = by.weight_range(next, first, std::min(first + high, last), these.lines());
      multiply_block(these, by.rows(expert, block, end), by.in, end - block, y + from * by.out + block, by.out, ahead);
    }
  }
}
