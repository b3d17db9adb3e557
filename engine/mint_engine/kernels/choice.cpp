// Sparse attention's choice over trees of rows, for training (DeepSeek-V3.2, arXiv 2512.02556, 2.1): of its trunk and
// its own past, a row attends to what an indexer's small heads score best, as in serving (`indexer.h`). Letters in
// shapes: J heads, D their size.
#include <algorithm>
#include <cmath>
#include <vector>
#include "aligned.h"
#include "highest.h"
#include "squares.h"
#include "tiles.h"

namespace {
constexpr int64_t TOKENS = 32;  // rows whose bits for a place are one word, which one thread writes
constexpr int64_t PLACES = 64;  // places that are scored together

// asked [T, J + 1, D]: queries and then a key, all rotated; weights [T, J].
template <typename T>
struct Index {
  const T *asked, *weights;
  int64_t heads, size, most;
  const T* query(int64_t row) const { return asked + row * (heads + 1) * size; }
  const T* key(int64_t row) const { return query(row) + heads * size; }
};

// A trunk's rows, or a branch's, which see `before` places of the trunk; `first` is their first row.
struct Part {
  int64_t trunk, first, before;
  int64_t row_of(int64_t place) const { return place < before ? trunk + place : first + place - before; }
};

// Scores rows of one part.
template <typename T>
class Scorer {
 public:
  explicit Scorer(const Index<T>& by) : by_(by) {
    const int64_t rows = (TOKENS * by.heads + 15) / 16 * 16;
    products_.resize(rows * PLACES);
    if (by_matrices())
      asked_.resize(rows * by.size), keys_.resize(PLACES * by.size), standing_.resize(PLACES * by.size);
    else
      wide_.resize(rows * by.size), wide_standing_.resize(PLACES * by.size);
  }

  // scores [tokens, room] of rows from `row` on, for the first `places` places; room is a multiple of PLACES.
  void score(const Part& part, int64_t row, int64_t tokens, int64_t places, float* scores, int64_t room) {
    load_queries(row, tokens);
    for (int64_t first = 0; first < places; first += PLACES) {
      multiply_by(part, first, std::min(PLACES, places - first), tokens);
      for (int64_t token = 0; token < tokens; ++token)
        weigh(products_.data() + token * by_.heads * PLACES, by_.weights + (row + token) * by_.heads,
              scores + token * room + first);
    }
  }

 private:
  bool by_matrices() const { return BY_MATRICES<T> && by_.size % 32 == 0; }

  void load_queries(int64_t row, int64_t tokens) {
    const int64_t each = by_.heads * by_.size;
    for (int64_t token = 0; token < tokens; ++token) {
      const T* from = by_.query(row + token);
      if (by_matrices())
        std::copy_n(from, each, asked_.data() + token * each);
      else
        for (int64_t i = 0; i < each; ++i) wide_[token * each + i] = wide(from[i]);
    }
  }

  // Products of the queries and some places' keys: products_ [tokens J, PLACES].
  void multiply_by(const Part& part, int64_t first, int64_t count, int64_t tokens) {
#ifdef MINT_AMX
    if constexpr (BY_MATRICES<T>)
      if (by_matrices()) {
        const Matrices registers;
        for (int64_t n = 0; n < count; ++n)
          std::copy_n(by_.key(part.row_of(first + n)), by_.size, keys_.data() + n * by_.size);
        stand_rows(keys_.data(), PLACES, by_.size, standing_.data(), PLACES);
        const int64_t rows = (tokens * by_.heads + 15) / 16 * 16;
        return multiply_squares(rows, PLACES, by_.size, asked_.data(), by_.size, standing_.data(), PLACES,
                                products_.data(), PLACES, false);
      }
#endif
    for (int64_t n = 0; n < count; ++n) {
      const T* key = by_.key(part.row_of(first + n));
      for (int64_t i = 0; i < by_.size; ++i) wide_standing_[i * PLACES + n] = wide(key[i]);
    }
    multiply(tokens * by_.heads, PLACES, by_.size, {wide_.data(), by_.size, 1}, wide_standing_.data(), PLACES,
             products_.data(), PLACES, false);
  }

  void weigh(const float* products, const T* weights, float* scores) const {
    const float scale = 1.0f / std::sqrt(float(by_.size)), share = 1.0f / std::sqrt(float(by_.heads));
    float sums[PLACES] = {};
    for (int64_t head = 0; head < by_.heads; ++head) {
      const float weight = wide(weights[head]) * share;
#pragma omp simd
      for (int64_t n = 0; n < PLACES; ++n) {
        const float found = products[head * PLACES + n] * scale;
        sums[n] += weight * (found > 0.0f ? found : 0.0f);
      }
    }
    std::copy_n(sums, PLACES, scores);
  }

  const Index<T>& by_;
  Aligned<T> asked_, keys_, standing_;
  Aligned<float> wide_, wide_standing_, products_;
};

// Marks what rows of one part choose: their bits, from `shift` on, in words that lie `stride` apart.
template <typename T>
void choose_some(const Index<T>& by, Scorer<T>& scorer, const Part& part, int64_t row, int64_t tokens, uint32_t* words,
                 int64_t stride, int64_t shift) {
  static thread_local Aligned<float> scores;
  static thread_local std::vector<uint64_t> ranks;
  const int64_t sees = part.before + row - part.first + 1, places = sees + tokens - 1;  // sees: of the first row
  const int64_t room = (places + PLACES - 1) / PLACES * PLACES;
  if (places > by.most) {
    if (int64_t(scores.size()) < tokens * room) scores.resize(tokens * room);
    scorer.score(part, row, tokens, places, scores.data(), room);
  }
  for (int64_t token = 0; token < tokens; ++token) {
    const int64_t seen = sees + token;
    const uint32_t bit = uint32_t(1) << (shift + token);
    if (seen <= by.most) {
      for (int64_t place = 0; place < seen; ++place) words[place * stride] |= bit;
      continue;
    }
    ranks.resize(seen);
    for (int64_t place = 0; place < seen; ++place) ranks[place] = rank_of(scores[token * room + place], place);
    std::nth_element(ranks.begin(), ranks.begin() + by.most, ranks.end());
    for (int64_t n = 0; n < by.most; ++n) words[(ranks[n] & 0xffffffff) * stride] |= bit;
  }
}

// Fills one word of every place: rows `begin` on of a tree [first row, trunk, branches, where their lengths begin].
template <typename T>
void choose_word(const Index<T>& by, Scorer<T>& scorer, const int64_t* tree, const int64_t* lengths, int64_t begin,
                 uint8_t* bits, int64_t bytes) {
  int64_t start = 0;
  for (int64_t b = -1; b < tree[2]; ++b) {
    const int64_t length = b < 0 ? tree[1] : lengths[tree[3] + b];
    const int64_t first = std::max(begin, start), end = std::min(begin + TOKENS, start + length);
    if (first < end)
      choose_some<T>(by, scorer, {tree[0], tree[0] + start, b < 0 ? 0 : tree[1]}, tree[0] + first, end - first,
                     (uint32_t*)bits + begin / TOKENS, bytes / 4, first - begin);
    start += length;
  }
}

template <typename T>
void choose(const Index<T>& by, const int64_t* trees, int64_t count, const int64_t* lengths, uint8_t* bits,
            const int64_t* choices) {
  for (int64_t at = 0; at < count; ++at) {
    const int64_t *tree = trees + 4 * at, begins = choices[2 * at], bytes = choices[2 * at + 1];
    if (begins < 0) continue;
    int64_t rows = tree[1];
    for (int64_t b = 0; b < tree[2]; ++b) rows += lengths[tree[3] + b];
#pragma omp parallel
    {
      Scorer<T> scorer(by);
#pragma omp for schedule(dynamic, 1)
      for (int64_t begin = 0; begin < rows; begin += TOKENS)
        choose_word(by, scorer, tree, lengths, begin, bits + begins, bytes);
    }
  }
}
}  // namespace

// trees and lengths as in attention over trees (`trees.cpp`); bits, all zero at first, and choices as in `Choices`.
#define MINT_CHOICE(NAME, T)                                                                                        \
  extern "C" void mint_choose_trees_##NAME(const T* asked, const T* weights, int64_t heads, int64_t size, int64_t most, \
                                           const int64_t* trees, int64_t count, const int64_t* lengths, uint8_t* bits, \
                                           const int64_t* choices) {                                                \
    choose<T>({asked, weights, heads, size, most}, trees, count, lengths, bits, choices);                           \
  }
MINT_CHOICE(bfloat16, bf16)
MINT_CHOICE(float32, float)
