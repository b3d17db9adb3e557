// Sparse attention's top-k selection over trees of rows, for training (DeepSeek-V3.2, arXiv 2512.02556, 2.1): of its
// trunk and its own past, a row attends to what an indexer's small heads score best, as in serving (`indexer.h`).
// Letters in shapes: J heads, D their size.
#include <algorithm>
#include <cmath>
#include <vector>
#include "aligned.h"
#include "scores.h"
#include "amx_gemm.h"
#include "float_gemm.h"

namespace {
constexpr int64_t TOKENS = 32;  // rows whose bits for a place are one word, which one thread writes
constexpr int64_t PLACES = 64;  // places that are scored together

// projected [T, J + 1, D]: queries and then a key, all rotated; weights [T, J].
template <typename T>
struct Index {
  const T *projected, *weights;
  int64_t heads, size, top_k;
  const T* query(int64_t row) const { return projected + row * (heads + 1) * size; }
  const T* key(int64_t row) const { return query(row) + heads * size; }
};

// A trunk's rows, or a branch's, which see `before` places of the trunk; `first` is their first row.
struct Sequence {
  int64_t trunk, first, before;
  int64_t row_of(int64_t place) const { return place < before ? trunk + place : first + place - before; }
};

// Scores rows of one sequence.
template <typename T>
class Scorer {
 public:
  explicit Scorer(const Index<T>& by) : by_(by) {
    const int64_t rows = (TOKENS * by.heads + 15) / 16 * 16;
    products_.resize(rows * PLACES);
    if (uses_amx())
      queries_.resize(rows * by.size), keys_.resize(PLACES * by.size), packed_keys_.resize(PLACES * by.size);
    else
      float_queries_.resize(rows * by.size), float_keys_.resize(PLACES * by.size);
  }

  // scores [tokens, padded] of rows from `row` on, for the first `places` places; `padded` is a multiple of PLACES.
  void score(const Sequence& of, int64_t row, int64_t tokens, int64_t places, float* scores, int64_t padded) {
    load_queries(row, tokens);
    for (int64_t first = 0; first < places; first += PLACES) {
      multiply_by(of, first, std::min(PLACES, places - first), tokens);
      for (int64_t token = 0; token < tokens; ++token)
        weigh(products_.data() + token * by_.heads * PLACES, by_.weights + (row + token) * by_.heads,
              scores + token * padded + first);
    }
  }

 private:
  bool uses_amx() const { return USES_AMX<T> && by_.size % 32 == 0; }

  void load_queries(int64_t row, int64_t tokens) {
    const int64_t each = by_.heads * by_.size;
    for (int64_t token = 0; token < tokens; ++token) {
      const T* from = by_.query(row + token);
      if (uses_amx())
        std::copy_n(from, each, queries_.data() + token * each);
      else
        for (int64_t i = 0; i < each; ++i) float_queries_[token * each + i] = widen(from[i]);
    }
  }

  // Products of the queries and some places' keys: products_ [tokens J, PLACES].
  void multiply_by(const Sequence& of, int64_t first, int64_t count, int64_t tokens) {
#ifdef MINT_AMX
    if constexpr (USES_AMX<T>)
      if (uses_amx()) {
        const TileConfig registers;
        for (int64_t n = 0; n < count; ++n)
          std::copy_n(by_.key(of.row_of(first + n)), by_.size, keys_.data() + n * by_.size);
        pack_vnni_transposed(keys_.data(), PLACES, by_.size, packed_keys_.data(), PLACES);
        const int64_t rows = (tokens * by_.heads + 15) / 16 * 16;
        return amx_gemm(rows, PLACES, by_.size, queries_.data(), by_.size, packed_keys_.data(), PLACES,
                        products_.data(), PLACES, false);
      }
#endif
    for (int64_t n = 0; n < count; ++n) {
      const T* key = by_.key(of.row_of(first + n));
      for (int64_t i = 0; i < by_.size; ++i) float_keys_[i * PLACES + n] = widen(key[i]);
    }
    gemm(tokens * by_.heads, PLACES, by_.size, {float_queries_.data(), by_.size, 1}, float_keys_.data(), PLACES,
         products_.data(), PLACES, false);
  }

  void weigh(const float* products, const T* weights, float* scores) const {
    const float scale = 1.0f / std::sqrt(float(by_.size)), share = 1.0f / std::sqrt(float(by_.heads));
    float sums[PLACES] = {};
    for (int64_t head = 0; head < by_.heads; ++head) {
      const float weight = widen(weights[head]) * share;
#pragma omp simd
      for (int64_t n = 0; n < PLACES; ++n) {
        const float found = products[head * PLACES + n] * scale;
        sums[n] += weight * (found > 0.0f ? found : 0.0f);
      }
    }
    std::copy_n(sums, PLACES, scores);
  }

  const Index<T>& by_;
  Aligned<T> queries_, keys_, packed_keys_;
  Aligned<float> float_queries_, float_keys_, products_;
};

// Marks the top k of rows of one sequence: their bits, from `shift` on, in words that lie `stride` apart.
template <typename T>
void select_rows(const Index<T>& by, Scorer<T>& scorer, const Sequence& of, int64_t row, int64_t tokens,
                 uint32_t* words, int64_t stride, int64_t shift) {
  static thread_local Aligned<float> scores;
  static thread_local std::vector<uint64_t> keys_by_score;
  const int64_t sees = of.before + row - of.first + 1, places = sees + tokens - 1;  // sees: of the first row
  const int64_t padded = (places + PLACES - 1) / PLACES * PLACES;
  if (places > by.top_k) {
    if (int64_t(scores.size()) < tokens * padded) scores.resize(tokens * padded);
    scorer.score(of, row, tokens, places, scores.data(), padded);
  }
  for (int64_t token = 0; token < tokens; ++token) {
    const int64_t seen = sees + token;
    const uint32_t bit = uint32_t(1) << (shift + token);
    if (seen <= by.top_k) {
      for (int64_t place = 0; place < seen; ++place) words[place * stride] |= bit;
      continue;
    }
    keys_by_score.resize(seen);
    for (int64_t place = 0; place < seen; ++place)
      keys_by_score[place] = sort_key(scores[token * padded + place], place);
    std::nth_element(keys_by_score.begin(), keys_by_score.begin() + by.top_k, keys_by_score.end());
    for (int64_t n = 0; n < by.top_k; ++n) words[(keys_by_score[n] & 0xffffffff) * stride] |= bit;
  }
}

// Fills one word of every place: rows `begin` on of a tree [first row, trunk, branches, where their lengths begin].
template <typename T>
void select_word(const Index<T>& by, Scorer<T>& scorer, const int64_t* tree, const int64_t* lengths, int64_t begin,
                 uint8_t* bits, int64_t bytes) {
  int64_t start = 0;
  for (int64_t b = -1; b < tree[2]; ++b) {
    const int64_t length = b < 0 ? tree[1] : lengths[tree[3] + b];
    const int64_t first = std::max(begin, start), end = std::min(begin + TOKENS, start + length);
    if (first < end)
      select_rows<T>(by, scorer, {tree[0], tree[0] + start, b < 0 ? 0 : tree[1]}, tree[0] + first, end - first,
                     (uint32_t*)bits + begin / TOKENS, bytes / 4, first - begin);
    start += length;
  }
}

template <typename T>
void select(const Index<T>& by, const int64_t* trees, int64_t count, const int64_t* lengths, uint8_t* bits,
            const int64_t* masks) {
  for (int64_t at = 0; at < count; ++at) {
    const int64_t *tree = trees + 4 * at, begins = masks[2 * at], bytes = masks[2 * at + 1];
    if (begins < 0) continue;
    int64_t rows = tree[1];
    for (int64_t b = 0; b < tree[2]; ++b) rows += lengths[tree[3] + b];
#pragma omp parallel
    {
      Scorer<T> scorer(by);
#pragma omp for schedule(dynamic, 1)
      for (int64_t begin = 0; begin < rows; begin += TOKENS)
        select_word(by, scorer, tree, lengths, begin, bits + begins, bytes);
    }
  }
}
}  // namespace

// trees and lengths as in attention over trees (`tree_attention.cpp`); bits, all zero at first, and masks as in
// `TopKMasks`.
#define MINT_TOP_K(NAME, T)                                                                                            \
  extern "C" void mint_top_k_trees_##NAME(const T* projected, const T* weights, int64_t heads, int64_t size,           \
                                          int64_t top_k, const int64_t* trees, int64_t count, const int64_t* lengths,  \
                                          uint8_t* bits, const int64_t* masks) {                                       \
    select<T>({projected, weights, heads, size, top_k}, trees, count, lengths, bits, masks);                           \
  }
MINT_TOP_K(bfloat16, bf16)
MINT_TOP_K(float32, float)
