// Attention over trees of rows and its gradients, for training: a trunk's rows and then those of its branches, each of
// which sees the trunk and its own past. No row is padded, and no key is expanded for its group of query heads; of the
// weights only each row's sum is kept (FlashAttention-2, arXiv 2307.08691). A tree's numbers depend on nothing outside
// it. Products and sums are float, except with AMX (`amx_tree_head.h`).
#include <algorithm>
#include <vector>
#include "aligned.h"
#include "top_k_mask.h"
#include "amx_tree_head.h"
#include "float_gemm.h"
#include "tree_shape.h"

namespace {
constexpr int64_t TOKENS = 32;  // query tokens that are computed together
inline int64_t aligned(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// One key/value head of one tree: its keys and values as floats, the trunk's followed by the current branch's.
template <typename T>
struct Head {
  const TreeShape& shape;
  const TopKMask& mask;
  int64_t head, places;  // places: the trunk's and the longest branch's, a multiple of 16
  Aligned<float> k, kt, v, vt, dk, dv;
  Aligned<float> q, s, o, dp;

  Head(const TreeShape& shape, const TopKMask& mask, int64_t head, int64_t most, bool back)
      : shape(shape), mask(mask), head(head), places(aligned(most)) {
    const int64_t rows = TOKENS * shape.group();
    for (auto* each : {&k, &kt, &v}) each->assign(places * shape.dim, 0.0f);
    if (back)
      for (auto* each : {&vt, &dk, &dv}) each->assign(places * shape.dim, 0.0f);
    q.resize(rows * shape.dim), o.resize(rows * shape.dim), s.resize(rows * places),
        dp.resize(back ? rows * places : 0);
  }

  void load(const T* qkv, int64_t row, int64_t count, int64_t place) {
    const int64_t dim = shape.dim;
    for (int64_t n = 0; n < count; ++n) {
      const T* key = qkv + (row + n) * shape.width() + (shape.heads + head) * dim;
      const T* value = key + shape.kv_heads * dim;
      for (int64_t d = 0; d < dim; ++d) {
        k[(place + n) * dim + d] = kt[d * places + place + n] = widen(key[d]);
        v[(place + n) * dim + d] = widen(value[d]);
      }
      if (!vt.empty())
        for (int64_t d = 0; d < dim; ++d) vt[d * places + place + n] = widen(value[d]);
    }
  }

  // q [tokens * group, dim] of rows from `row` on, scaled.
  void load_queries(const T* qkv, int64_t row, int64_t tokens) {
    const int64_t group = shape.group(), dim = shape.dim;
    for (int64_t i = 0; i < tokens * group; ++i) {
      const T* from = qkv + (row + i / group) * shape.width() + (head * group + i % group) * dim;
      for (int64_t d = 0; d < dim; ++d) q[i * dim + d] = widen(from[d]) * shape.scale;
    }
  }

  // s = q k^T for places `first` to `keys`, rounded up to a multiple of 16; the excess is never read.
  void score(int64_t rows, int64_t first, int64_t keys) {
    const float* from = kt.data() + first;
    float* to = s.data() + first;
    gemm(rows, aligned(keys) - first, shape.dim, {q.data(), shape.dim, 1}, from, places, to, places, false);
    if (shape.variant.cap)
      for (int64_t i = 0; i < rows; ++i) soft_cap(to + i * places, keys - first, shape.variant.cap);
  }

  // The first place that tokens from `place` on see, rounded down to a multiple of 16.
  int64_t first_of(int64_t place) const { return shape.variant.first(place) / LANES * LANES; }

  // Writes `instead` for those of the `seen` places that are not among a token's top k.
  void hide(float* row, int64_t token, int64_t seen, float instead) const {
    if (!mask.bits) return;
    for (int64_t n = 0; n < seen; ++n)
      if (!(mask.at(n, token) & 1)) row[n] = instead;
  }

  void attend(const T* qkv, T* out, float* sums, int64_t row, int64_t count, int64_t before) {
    const int64_t group = shape.group(), dim = shape.dim;
    for (int64_t at = 0; at < count; at += TOKENS) {
      const int64_t tokens = std::min(TOKENS, count - at), keys = before + at + tokens, from = first_of(before + at);
      load_queries(qkv, row + at, tokens);
      score(tokens * group, from, keys);
      for (int64_t i = 0; i < tokens * group; ++i) {
        const int64_t place = before + at + i / group, token = row + at + i / group, h = head * group + i % group;
        const float sink = shape.variant.sinks ? shape.variant.sinks[h] : -INFINITY;
        hide(s.data() + i * places, token, place + 1, -INFINITY);
        sums[token * shape.heads + h] = softmax_row(s.data() + i * places + from, shape.variant.first(place) - from,
                                                    place + 1 - from, keys - from, sink);
        hide(s.data() + i * places, token, place + 1, 0.0f);
      }
      gemm(tokens * group, dim, keys - from, {s.data() + from, places, 1}, v.data() + from * dim, dim, o.data(), dim,
           false);
      for (int64_t i = 0; i < tokens * group; ++i) {
        T* to = out + ((row + at + i / group) * shape.heads + head * group + i % group) * dim;
        for (int64_t d = 0; d < dim; ++d) to[d] = narrow<T>(o[i * dim + d]);
      }
    }
  }

  // Turns scores into weights in place, 0 for what is not seen; returns the log-sum-exp of scores and sink.
  static float softmax_row(float* scores, int64_t first, int64_t end, int64_t keys, float sink) {
    float peak = std::max(scores[first], sink), sum = 0;
#pragma omp simd reduction(max : peak)
    for (int64_t n = first; n < end; ++n) peak = scores[n] > peak ? scores[n] : peak;
    if (sink > -INFINITY) sum = exp_below_zero(sink - peak);
#pragma omp simd reduction(+ : sum)
    for (int64_t n = first; n < end; ++n) sum += scores[n] = exp_below_zero(scores[n] - peak);
    const float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t n = first; n < end; ++n) scores[n] *= inverse;
    std::fill(scores, scores + first, 0.0f), std::fill(scores + end, scores + keys, 0.0f);
    return peak + std::log(sum);
  }

  void attend_back(const T* qkv, const T* out, const float* sums, const T* dout, T* dqkv, int64_t row, int64_t count,
                   int64_t before) {
    const int64_t group = shape.group(), dim = shape.dim;
    for (int64_t at = 0; at < count; at += TOKENS) {
      const int64_t tokens = std::min(TOKENS, count - at), rows = tokens * group;
      const int64_t keys = before + at + tokens, from = first_of(before + at), met = keys - from;
      load_queries(qkv, row + at, tokens);
      score(rows, from, keys);
      for (int64_t i = 0; i < rows; ++i) {
        const T* given = dout + ((row + at + i / group) * shape.heads + head * group + i % group) * dim;
        for (int64_t d = 0; d < dim; ++d) o[i * dim + d] = widen(given[d]);
      }
      gemm(rows, aligned(keys) - from, dim, {o.data(), dim, 1}, vt.data() + from, places, dp.data() + from, places,
           false);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t place = before + at + i / group, token = row + at + i / group, h = head * group + i % group;
        const T* given = out + (token * shape.heads + h) * dim;
        float both = 0;
#pragma omp simd reduction(+ : both)
        for (int64_t d = 0; d < dim; ++d) both += widen(given[d]) * o[i * dim + d];
        softmax_row_back(s.data() + i * places + from, dp.data() + i * places + from, sums[token * shape.heads + h],
                         both, shape.variant.first(place) - from, place + 1 - from, met);
        hide(s.data() + i * places, token, place + 1, 0.0f), hide(dp.data() + i * places, token, place + 1, 0.0f);
      }
      gemm(met, dim, rows, {s.data() + from, 1, places}, o.data(), dim, dv.data() + from * dim, dim, true);
      gemm(met, dim, rows, {dp.data() + from, 1, places}, q.data(), dim, dk.data() + from * dim, dim, true);
      gemm(rows, dim, met, {dp.data() + from, places, 1}, k.data() + from * dim, dim, o.data(), dim, false);
      for (int64_t i = 0; i < rows; ++i) {
        T* to = dqkv + (row + at + i / group) * shape.width() + (head * group + i % group) * dim;
        for (int64_t d = 0; d < dim; ++d) to[d] = narrow<T>(o[i * dim + d] * shape.scale);
      }
    }
  }

  // Computes weights from scores again, and the gradients of scores from those of the weights, both in place.
  void softmax_row_back(float* scores, float* gradients, float sum, float both, int64_t first, int64_t end,
                        int64_t keys) const {
    const float inverse = shape.variant.cap ? 1.0f / shape.variant.cap : 0.0f;
#pragma omp simd
    for (int64_t n = first; n < end; ++n) {
      const float part = scores[n] * inverse;  // tanh, whose slope is 1 minus its square
      scores[n] = exp_below_zero(scores[n] - sum);
      gradients[n] = scores[n] * (gradients[n] - both) * (1.0f - part * part);
    }
    for (auto* each : {scores, gradients})
      std::fill(each, each + first, 0.0f), std::fill(each + end, each + keys, 0.0f);
  }

  void store_back(T* dqkv, int64_t row, int64_t count, int64_t place) {
    const int64_t dim = shape.dim;
    for (int64_t n = 0; n < count; ++n) {
      T* key = dqkv + (row + n) * shape.width() + (shape.heads + head) * dim;
      T* value = key + shape.kv_heads * dim;
      for (int64_t d = 0; d < dim; ++d) {
        key[d] = narrow<T>(dk[(place + n) * dim + d]);
        value[d] = narrow<T>(dv[(place + n) * dim + d]);
      }
    }
    std::fill(dk.begin() + place * dim, dk.end(), 0.0f);
    std::fill(dv.begin() + place * dim, dv.end(), 0.0f);
  }
};

// A tree is: first row, rows of the trunk, number of branches, where the branches' lengths begin in `lengths`.
template <typename H, typename Visit>
void each_of(const int64_t* trees, int64_t count, const int64_t* lengths, const TreeShape& shape,
             const TopKMasks& masks, bool back, Visit visit) {
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t item = 0; item < count * shape.kv_heads; ++item) {
    const int64_t* tree = trees + 4 * (item / shape.kv_heads);
    const TopKMask mask = masks.at(item / shape.kv_heads, tree[0]);
    int64_t longest = 0;
    for (int64_t b = 0; b < tree[2]; ++b) longest = std::max(longest, lengths[tree[3] + b]);
    H head(shape, mask, item % shape.kv_heads, tree[1] + longest, back);
    visit(head, tree[0], tree[1], lengths + tree[3], tree[2]);
  }
}

template <typename T, typename Visit>
void each_head(const int64_t* trees, int64_t count, const int64_t* lengths, const TreeShape& shape,
               const TopKMasks& masks, bool back, Visit visit) {
#ifdef MINT_AMX
  if constexpr (USES_AMX<T>)
    if (shape.dim % AMX_DEPTH == 0) return each_of<AmxTreeHead>(trees, count, lengths, shape, masks, back, visit);
#endif
  each_of<Head<T>>(trees, count, lengths, shape, masks, back, visit);
}

template <typename T>
void attend(const T* qkv, T* out, float* sums, const int64_t* trees, int64_t count, const int64_t* lengths,
            const TreeShape& shape, const TopKMasks& masks) {
  each_head<T>(trees, count, lengths, shape, masks, false,
               [&](auto& head, int64_t row, int64_t trunk, const int64_t* branches, int64_t many) {
                 head.load(qkv, row, trunk, 0);
                 head.attend(qkv, out, sums, row, trunk, 0);
                 for (int64_t b = 0, at = row + trunk; b < many; at += branches[b++]) {
                   head.load(qkv, at, branches[b], trunk);
                   head.attend(qkv, out, sums, at, branches[b], trunk);
                 }
               });
}

template <typename T>
void attend_back(const T* qkv, const T* out, const float* sums, const T* dout, T* dqkv, const int64_t* trees,
                 int64_t count, const int64_t* lengths, const TreeShape& shape, const TopKMasks& masks) {
  each_head<T>(trees, count, lengths, shape, masks, true,
               [&](auto& head, int64_t row, int64_t trunk, const int64_t* branches, int64_t many) {
                 head.load(qkv, row, trunk, 0);
                 head.attend_back(qkv, out, sums, dout, dqkv, row, trunk, 0);
                 for (int64_t b = 0, at = row + trunk; b < many; at += branches[b++]) {
                   head.load(qkv, at, branches[b], trunk);
                   head.attend_back(qkv, out, sums, dout, dqkv, at, branches[b], trunk);
                   head.store_back(dqkv, at, branches[b], trunk);
                 }
                 head.store_back(dqkv, row, trunk, 0);
               });
}
}  // namespace

// qkv, dqkv [T, (heads + 2 kv_heads) dim]; out, dout [T, heads dim]; sums [T, heads]; trees [count, 4]: first row, rows
// of the trunk, number of branches, where their lengths begin in `lengths`; bits and masks as in `TopKMasks`, only with
// as many key/value heads as query heads. Rows of no tree are left as they are.
#define MINT_TREES(NAME, T)                                                                                            \
  extern "C" void mint_attend_trees_##NAME(const T* qkv, T* out, float* sums, const int64_t* trees, int64_t count,     \
                                           const int64_t* lengths, const uint8_t* bits, const int64_t* masks,          \
                                           int64_t heads, int64_t kv_heads, int64_t dim, float scale,                  \
                                           const AttentionVariant* variant) {                                          \
    attend<T>(qkv, out, sums, trees, count, lengths, {heads, kv_heads, dim, scale, *variant}, {bits, masks});          \
  }                                                                                                                    \
  extern "C" void mint_attend_trees_back_##NAME(const T* qkv, const T* out, const float* sums, const T* dout, T* dqkv, \
                                                const int64_t* trees, int64_t count, const int64_t* lengths,           \
                                                const uint8_t* bits, const int64_t* masks, int64_t heads,              \
                                                int64_t kv_heads, int64_t dim, float scale,                            \
                                                const AttentionVariant* variant) {                                     \
    attend_back<T>(qkv, out, sums, dout, dqkv, trees, count, lengths, {heads, kv_heads, dim, scale, *variant},         \
                   {bits, masks});                                                                                     \
  }
MINT_TREES(bfloat16, bf16)
MINT_TREES(float32, float)
