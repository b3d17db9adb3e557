// Sparse attention's indexer (DeepSeek-V3.2, arXiv 2512.02556, 2.1): small heads score what a row sees, and the row
// attends only to the best. Scores are float32 whatever numbers they are computed from. Letters in shapes: J heads, D
// their size, E rotated numbers of it.
#pragma once
#include <algorithm>
#include <vector>
#include "highest.h"
#include "tokens.h"

// Writes a token's key to the cache: the LayerNorm of `made` [D], with its first E numbers rotated.
template <typename T>
void keep_index(const Latent<T>& by, const Indexer<T>& of, int64_t position, const T* made, T* to) {
  static thread_local std::vector<T> normed;
  normed.resize(of.size);
  float mean = 0, square = 0;
  for (int64_t i = 0; i < of.size; ++i) mean += wide(made[i]);
  mean /= of.size;
  for (int64_t i = 0; i < of.size; ++i) square += (wide(made[i]) - mean) * (wide(made[i]) - mean);
  const float scale = 1.0f / std::sqrt(square / of.size + of.epsilon);
  for (int64_t i = 0; i < of.size; ++i)
    normed[i] = narrow<T>((wide(made[i]) - mean) * scale * wide(of.norm[i]) + wide(of.bias[i]));
  turn(normed.data(), by, position, of.pairs, to);
  std::copy_n(normed.data() + by.rotated, of.size - by.rotated, to + by.rotated);
}

// Chooses the `by.most` best of the tokens up to `position`, which are more, in ascending order. Rotates queries [J, D]
// in place; weights [J].
template <typename T>
void choose_tokens(const Latent<T>& by, const Indexer<T>& of, T* queries, const T* weights, int64_t position,
                   const int32_t* table, const T* pool, int32_t* chosen) {
  static thread_local Aligned<T> keys;
  static thread_local Aligned<float> scores;
  static thread_local std::vector<T> turned;
  static thread_local std::vector<const T*> rows;
  static thread_local std::vector<uint64_t> ranks;
  keys.resize(PAGE * of.size), scores.resize(PAGE * of.heads), turned.resize(by.rotated), rows.resize(of.heads);
  ranks.resize(position + 1);
  for (int64_t head = 0; head < of.heads; ++head) {
    T* query = queries + head * of.size;
    turn(query, by, position, of.pairs, turned.data());
    std::copy(turned.begin(), turned.end(), query);
    rows[head] = query;
  }
  const float scale = 1.0f / std::sqrt(float(of.size)), share = 1.0f / std::sqrt(float(of.heads));
  for (int64_t begin = 0; begin <= position; begin += PAGE) {
    const T* page = pool + int64_t(table[begin / PAGE]) * PAGE * by.row + by.width();
    stand_tokens<T>({page, by.row}, of.size, keys.data());
    score<T>(rows.data(), int(of.heads), keys.data(), keys.data(), of.size, scale, scores.data());
    float sums[PAGE] = {};
    for (int64_t head = 0; head < of.heads; ++head) {
      const float weight = wide(weights[head]) * share;
      for (int t = 0; t < PAGE; ++t) sums[t] += weight * std::max(scores[head * PAGE + t], 0.0f);
    }
    for (int64_t t = 0; t < std::min<int64_t>(PAGE, position + 1 - begin); ++t)
      ranks[begin + t] = rank_of(sums[t], begin + t);
  }
  std::nth_element(ranks.begin(), ranks.begin() + by.most, ranks.end());
  for (int64_t n = 0; n < by.most; ++n) chosen[n] = int32_t(ranks[n] & 0xffffffff);
  std::sort(chosen, chosen + by.most);
}
