// Sparse attention's indexer (DeepSeek-V3.2, arXiv 2512.02556, 2.1): small heads score what a row sees, and the row
// attends only to the best. Scores are float32 whatever numbers they are computed from. Letters in shapes: J heads, D
// their size, E rotated numbers of it.
#pragma once
#include <algorithm>
#include <vector>
#include "scores.h"
#include "token_rows.h"

// Writes a token's key to the cache: the LayerNorm of `projected` [D], with its first E numbers rotated.
template <typename T>
void write_index_key(const Latent<T>& by, const Indexer<T>& of, int64_t position, const T* projected, T* to) {
  static thread_local std::vector<T> normed;
  normed.resize(of.size);
  float mean = 0, square = 0;
  for (int64_t i = 0; i < of.size; ++i) mean += widen(projected[i]);
  mean /= of.size;
  for (int64_t i = 0; i < of.size; ++i) square += (widen(projected[i]) - mean) * (widen(projected[i]) - mean);
  const float scale = 1.0f / std::sqrt(square / of.size + of.epsilon);
  for (int64_t i = 0; i < of.size; ++i)
    normed[i] = narrow<T>((widen(projected[i]) - mean) * scale * widen(of.norm[i]) + widen(of.bias[i]));
  rotate_into(normed.data(), by, position, of.pairs, to);
  std::copy_n(normed.data() + by.rotated, of.size - by.rotated, to + by.rotated);
}

// Selects the `by.top_k` best of the tokens up to `position`, which are more, in ascending order. Rotates queries [J,
// D] in place; weights [J].
template <typename T>
void select_tokens(const Latent<T>& by, const Indexer<T>& of, T* queries, const T* weights, int64_t position,
                   const int32_t* table, const T* pool, int32_t* selected) {
  static thread_local Aligned<T> keys;
  static thread_local Aligned<float> scores;
  static thread_local std::vector<T> rotated;
  static thread_local std::vector<const T*> rows;
  static thread_local std::vector<uint64_t> keys_by_score;
  keys.resize(PAGE * of.size), scores.resize(PAGE * of.heads), rotated.resize(by.rotated), rows.resize(of.heads);
  keys_by_score.resize(position + 1);
  for (int64_t head = 0; head < of.heads; ++head) {
    T* query = queries + head * of.size;
    rotate_into(query, by, position, of.pairs, rotated.data());
    std::copy(rotated.begin(), rotated.end(), query);
    rows[head] = query;
  }
  const float scale = 1.0f / std::sqrt(float(of.size)), share = 1.0f / std::sqrt(float(of.heads));
  for (int64_t begin = 0; begin <= position; begin += PAGE) {
    const T* page = pool + int64_t(table[begin / PAGE]) * PAGE * by.row + by.width();
    pack_keys<T>({page, by.row}, of.size, keys.data());
    score<T>(rows.data(), int(of.heads), keys.data(), keys.data(), of.size, scale, scores.data());
    float sums[PAGE] = {};
    for (int64_t head = 0; head < of.heads; ++head) {
      const float weight = widen(weights[head]) * share;
      for (int t = 0; t < PAGE; ++t) sums[t] += weight * std::max(scores[head * PAGE + t], 0.0f);
    }
    for (int64_t t = 0; t < std::min<int64_t>(PAGE, position + 1 - begin); ++t)
      keys_by_score[begin + t] = sort_key(sums[t], begin + t);
  }
  std::nth_element(keys_by_score.begin(), keys_by_score.begin() + by.top_k, keys_by_score.end());
  for (int64_t n = 0; n < by.top_k; ++n) selected[n] = int32_t(keys_by_score[n] & 0xffffffff);
  std::sort(selected, selected + by.top_k);
}
