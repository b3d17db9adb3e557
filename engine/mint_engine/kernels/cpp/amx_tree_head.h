// One key/value head of one tree with AMX, for attention over trees (`tree_attention.cpp`). Scores are transposed,
// [places, rows]: a row's softmax then goes down the lanes of vectors, and its weights have the layout that the next
// product takes. Weights and the gradients of scores are rounded before they go into products, as in flash attention
// and the sampler (`attend.h`); all sums are float.
#pragma once
#include <algorithm>
#include <cmath>
#include "aligned.h"
#include "top_k_mask.h"
#include "amx_gemm.h"
#include "tree_shape.h"

#ifdef MINT_AMX
// Holds the keys and values of `most` places: the trunk's and the longest branch's. Places after those in use are zero,
// up to a multiple of 32, so that earlier contents add to no sum.
class AmxTreeHead {
 public:
  static constexpr int64_t TOKENS = 32;  // query tokens that are computed together

  AmxTreeHead(const TreeShape& shape, const TopKMask& mask, int64_t head, int64_t most, bool back)
      : shape_(shape), mask_(mask), head_(head), places_(padded_depth(most)),
        width_(padded_depth(TOKENS * shape.group())) {
    const int64_t dim = shape.dim;
    k_.assign(places_ * dim, {}), vt_.assign(places_ * dim, {});
    for (auto* each : {&q_, &qt_}) each->resize(width_ * dim);
    for (auto* each : {&weights_, &paired_}) each->resize(places_ * width_);
    scores_.resize(places_ * width_), transposed_.resize(width_ * dim), factors_.resize(width_);
    if (!back) return;
    v_.assign(places_ * dim, {}), kt_.assign(places_ * dim, {});
    for (auto* each : {&dk_, &dv_}) each->assign(places_ * dim, 0.0f);
    for (auto* each : {&qp_, &g_, &gt_, &gp_}) each->resize(width_ * dim);
    weight_gradients_.resize(places_ * width_), output_dots_.resize(width_), score_gradients_.resize(places_ * width_);
  }

  void load(const bf16* qkv, int64_t row, int64_t count, int64_t place) {
    const int64_t dim = shape_.dim, all = padded_depth(place + count) - place;
    for (int64_t n = 0; n < all; ++n) {
      const bf16* key = qkv + (row + n) * shape_.width() + (shape_.heads + head_) * dim;
      write_place(n < count ? key : nullptr, place + n, k_, kt_);
      write_place(n < count ? key + shape_.kv_heads * dim : nullptr, place + n, v_, vt_);
    }
  }

  void attend(const bf16* qkv, bf16* out, float* sums, int64_t row, int64_t count, int64_t before) {
    const TileConfig registers;
    const int64_t dim = shape_.dim;
    for (int64_t at = 0; at < count; at += TOKENS) {
      const Block block = block_of(row + at, std::min(TOKENS, count - at), before + at);
      gather(qkv, shape_.width(), block, q_);
      pack_vnni_transposed(q_.data(), block.wide, dim, qt_.data(), width_);
      const bf16* keys = k_.data() + block.first * dim;
      amx_gemm(block.keys, block.wide, dim, keys, dim, qt_.data(), width_, scores_.data(), width_, false);
      for (int64_t first = 0; first < block.wide; first += LANES) softmax_lanes(block, first, sums);
      pack_vnni(weights_.data(), width_, block.keys, block.wide, paired_.data(), width_);
      amx_gemm(dim, block.wide, block.keys, vt_.data() + block.first, places_, paired_.data(), width_,
               transposed_.data(), width_, false);
      store_transposed(block, out, shape_.heads * dim);
    }
  }

  void attend_back(const bf16* qkv, const bf16* out, const float* sums, const bf16* dout, bf16* dqkv, int64_t row,
                   int64_t count, int64_t before) {
    const TileConfig registers;
    const int64_t dim = shape_.dim;
    std::fill(factors_.begin(), factors_.end(), 1.0f);
    for (int64_t at = 0; at < count; at += TOKENS) {
      const Block block = block_of(row + at, std::min(TOKENS, count - at), before + at);
      gather(qkv, shape_.width(), block, q_), gather(dout, shape_.heads * dim, block, g_);
      pack_vnni_transposed(q_.data(), block.wide, dim, qt_.data(), width_);
      pack_vnni_transposed(g_.data(), block.wide, dim, gt_.data(), width_);
      pack_vnni(q_.data(), dim, block.wide, dim, qp_.data(), dim);
      pack_vnni(g_.data(), dim, block.wide, dim, gp_.data(), dim);
      const bf16* keys = k_.data() + block.first * dim;
      amx_gemm(block.keys, block.wide, dim, keys, dim, qt_.data(), width_, scores_.data(), width_, false);
      amx_gemm(block.keys, block.wide, dim, v_.data() + block.first * dim, dim, gt_.data(), width_,
               weight_gradients_.data(), width_, false);
      dot_outputs(block, out);
      for (int64_t first = 0; first < block.wide; first += LANES) softmax_lanes_back(block, first, sums);
      float *dk = dk_.data() + block.first * dim, *dv = dv_.data() + block.first * dim;
      amx_gemm(block.keys, dim, block.wide, weights_.data(), width_, gp_.data(), dim, dv, dim, true);
      amx_gemm(block.keys, dim, block.wide, score_gradients_.data(), width_, qp_.data(), dim, dk, dim, true);
      pack_vnni(score_gradients_.data(), width_, block.keys, block.wide, paired_.data(), width_);
      amx_gemm(dim, block.wide, block.keys, kt_.data() + block.first, places_, paired_.data(), width_,
               transposed_.data(), width_, false);
      store_transposed(block, dqkv, shape_.width());
    }
  }

  void store_back(bf16* dqkv, int64_t row, int64_t count, int64_t place) {
    const int64_t dim = shape_.dim;
    for (int64_t n = 0; n < count; ++n) {
      bf16* key = dqkv + (row + n) * shape_.width() + (shape_.heads + head_) * dim;
      narrow_row(dk_.data() + (place + n) * dim, key);
      narrow_row(dv_.data() + (place + n) * dim, key + shape_.kv_heads * dim);
    }
    std::fill(dk_.begin() + place * dim, dk_.end(), 0.0f);
    std::fill(dv_.begin() + place * dim, dv_.end(), 0.0f);
  }

 private:
  // Queries of some tokens from `row` on, head after head, and the places that they see: `keys` from `first` on. The
  // first token is at `place`.
  struct Block {
    int64_t row, rows, wide, place, first, keys;  // wide, first, keys: multiples of 32
  };

  Block block_of(int64_t row, int64_t tokens, int64_t place) const {
    const int64_t rows = tokens * shape_.group(), first = shape_.variant.first(place) / AMX_DEPTH * AMX_DEPTH;
    return {row, rows, padded_depth(rows), place, first, padded_depth(place + tokens) - first};
  }

  // Writes a row of keys or values to its place's row, and to its place's column; null: zeros.
  void write_place(const bf16* from, int64_t place, Aligned<bf16>& rows, Aligned<bf16>& columns) {
    const int64_t dim = shape_.dim;
    if (!rows.empty())
      for (int64_t d = 0; d < dim; ++d) rows[place * dim + d] = from ? from[d] : bf16{0};
    if (!columns.empty())
      for (int64_t d = 0; d < dim; ++d) columns[d * places_ + place] = from ? from[d] : bf16{0};
  }

  int64_t place_of(const Block& block, int64_t n, int64_t ld) const {
    const int64_t group = shape_.group();
    return (block.row + n / group) * ld + (head_ * group + n % group) * shape_.dim;
  }

  // Gathers a block's rows of heads, one after another, followed by zeros.
  void gather(const bf16* from, int64_t ld, const Block& block, Aligned<bf16>& to) const {
    const int64_t dim = shape_.dim;
    for (int64_t n = 0; n < block.rows; ++n) std::copy_n(from + place_of(block, n, ld), dim, to.data() + n * dim);
    std::fill(to.begin() + block.rows * dim, to.begin() + block.wide * dim, bf16{0});
  }

  // Which of a block's places each of 16 rows sees, restricted to its top k if there is a mask.
  struct VisibleMask {
    __m512i from, to;
    TopKMask mask;
    int64_t row, first;
    __mmask16 at(int64_t place) const {
      const __m512i here = _mm512_set1_epi32(int32_t(place));
      const __mmask16 seen = _mm512_cmpgt_epi32_mask(to, here) & _mm512_cmple_epi32_mask(from, here);
      return mask.bits ? seen & __mmask16(mask.at(first + place, row)) : seen;
    }
  };

  // What 16 rows from `first` on see; rows beyond the block's see nothing.
  VisibleMask visible_to(const Block& block, int64_t first) const {
    alignas(64) int32_t from[LANES], to[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) {
      const int64_t place = block.place + (first + lane) / shape_.group();
      from[lane] = int32_t(shape_.variant.first(place) - block.first);
      to[lane] = first + lane < block.rows ? int32_t(place + 1 - block.first) : 0;
    }
    return {_mm512_load_si512(from), _mm512_load_si512(to), mask_, block.row + first, block.first};
  }

  // The same rows' sinks.
  __m512 sinks_of(int64_t first) const {
    alignas(64) float sinks[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane)
      sinks[lane] = shape_.variant.sinks
                        ? shape_.variant.sinks[head_ * shape_.group() + (first + lane) % shape_.group()]
                        : -std::numeric_limits<float>::infinity();
    return _mm512_load_ps(sinks);
  }

  __m512 capped(__m512 score) const { return shape_.variant.cap ? soft_capped(score, shape_.variant.cap) : score; }

  // The derivative of capping a score.
  __m512 slope_of(__m512 score) const {
    const __m512 one = _mm512_set1_ps(1.0f);
    if (!shape_.variant.cap) return one;
    const __m512 part = _mm512_mul_ps(score, _mm512_set1_ps(1.0f / shape_.variant.cap));
    return _mm512_fnmadd_ps(part, part, one);
  }

  // Index of a block's row among all rows' sums.
  int64_t sum_at(const Block& block, int64_t n) const {
    return (block.row + n / shape_.group()) * shape_.heads + head_ * shape_.group() + n % shape_.group();
  }

  // Turns scores into weights relative to a row's largest; `factors_` will normalise them.
  void softmax_lanes(const Block& block, int64_t first, float* sums) {
    const VisibleMask seen = visible_to(block, first);
    const __m512 scale = _mm512_set1_ps(shape_.scale), sinks = sinks_of(first);
    float* scores = scores_.data() + first;
    __m512 peak = sinks;
    for (int64_t n = 0; n < block.keys; ++n) {
      const __m512 score = capped(_mm512_mul_ps(_mm512_loadu_ps(scores + n * width_), scale));
      peak = _mm512_mask_max_ps(peak, seen.at(n), peak, score);
      _mm512_storeu_ps(scores + n * width_, score);
    }
    __m512 sum = _mm512_setzero_ps();
    if (shape_.variant.sinks) sum = exp_below_zero(_mm512_sub_ps(sinks, peak));
    for (int64_t n = 0; n < block.keys; ++n) {
      const __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + n * width_), peak);
      const __m512 weight = _mm512_maskz_mov_ps(seen.at(n), exp_below_zero(below));
      sum = _mm512_add_ps(sum, weight);
      store_narrow(weights_.data() + n * width_ + first, weight, 0xffff);
    }
    _mm512_storeu_ps(factors_.data() + first, _mm512_div_ps(_mm512_set1_ps(1.0f), sum));
    alignas(64) float peaks[LANES], all[LANES];
    _mm512_store_ps(peaks, peak), _mm512_store_ps(all, sum);
    for (int64_t n = first; n < std::min(first + LANES, block.rows); ++n)
      sums[sum_at(block, n)] = peaks[n - first] + std::log(all[n - first]);
  }

  // The dot product of each row's output and that output's gradient.
  void dot_outputs(const Block& block, const bf16* out) {
    const int64_t dim = shape_.dim;
    for (int64_t n = 0; n < block.wide; ++n) {
      __m512 sum = _mm512_setzero_ps();
      if (n < block.rows) {
        const bf16 *given = out + place_of(block, n, shape_.heads * dim), *gradient = g_.data() + n * dim;
        for (int64_t d = 0; d < dim; d += LANES)
          sum = _mm512_fmadd_ps(load_wide(given + d, 0xffff), load_wide(gradient + d, 0xffff), sum);
      }
      output_dots_[n] = _mm512_reduce_add_ps(sum);
    }
  }

  // Computes weights from scores again, and the gradients of scores from those of the weights.
  void softmax_lanes_back(const Block& block, int64_t first, const float* sums) {
    const VisibleMask seen = visible_to(block, first);
    const __m512 scale = _mm512_set1_ps(shape_.scale), both = _mm512_loadu_ps(output_dots_.data() + first);
    alignas(64) float known[LANES] = {};
    for (int64_t n = first; n < std::min(first + LANES, block.rows); ++n) known[n - first] = sums[sum_at(block, n)];
    const __m512 sum = _mm512_load_ps(known);
    for (int64_t n = 0; n < block.keys; ++n) {
      const int64_t place = n * width_ + first;
      const __mmask16 mask = seen.at(n);
      const __m512 score = capped(_mm512_mul_ps(_mm512_loadu_ps(scores_.data() + place), scale));
      const __m512 weight = _mm512_maskz_mov_ps(mask, exp_below_zero(_mm512_sub_ps(score, sum)));
      const __m512 slope = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(weight_gradients_.data() + place), both), scale);
      store_narrow(weights_.data() + place, weight, 0xffff);
      store_narrow(score_gradients_.data() + place,
                   _mm512_maskz_mul_ps(mask, weight, _mm512_mul_ps(slope, slope_of(score))), 0xffff);
    }
  }

  // Writes transposed_ [dim, wide], times each row's factor, to the block's rows of heads.
  void store_transposed(const Block& block, bf16* to, int64_t ld) const {
    alignas(64) float tile[AMX_ROWS * AMX_ROWS];
    for (int64_t first = 0; first < block.rows; first += AMX_ROWS)
      for (int64_t d = 0; d < shape_.dim; d += AMX_ROWS) {
        transpose(transposed_.data() + d * width_ + first, width_, tile, AMX_ROWS);
        for (int64_t n = first; n < std::min(first + AMX_ROWS, block.rows); ++n) {
          const __m512 sums = _mm512_load_ps(tile + (n - first) * AMX_ROWS);
          store_narrow(to + place_of(block, n, ld) + d, _mm512_mul_ps(sums, _mm512_set1_ps(factors_[n])), 0xffff);
        }
      }
  }

  void narrow_row(const float* from, bf16* to) const {
    for (int64_t d = 0; d < shape_.dim; d += LANES) store_narrow(to + d, _mm512_loadu_ps(from + d), 0xffff);
  }

  const TreeShape& shape_;
  const TopKMask& mask_;
  const int64_t head_, places_, width_;               // width_: rows of a block
  Aligned<bf16> k_, kt_, v_, vt_;                     // [places, dim], and transposed
  Aligned<bf16> q_, qt_, qp_, g_, gt_, gp_;           // queries and output gradients [width, dim], transposed, in pairs
  Aligned<float> scores_, weight_gradients_;          // [places, width]
  Aligned<bf16> weights_, score_gradients_, paired_;  // [places, width], the last in pairs
  Aligned<float> transposed_, factors_, output_dots_;  // [dim, width], [width], [width]
  Aligned<float> dk_, dv_;                             // [places, dim]
};
#endif
