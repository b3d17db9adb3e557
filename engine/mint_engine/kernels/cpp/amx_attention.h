// Attention of heads with AMX, several pages of the past at a time, with online softmax. Pages store keys and values in
// the registers' layout. All rows use this, however few: AMX sums in another order than vectors do.
#pragma once
#include <algorithm>
#include <vector>
#include "aligned.h"
#include "amx_gemm.h"
#include "online_softmax.h"

#ifdef MINT_AMX
// Rows of one work item: `group` heads of `tokens` tokens from `position` on; a token's heads are adjacent.
class AmxAttention {
 public:
  static constexpr int64_t TOKENS = 128;  // of the past at a time: with many, sums are loaded and stored less often

  static bool takes(int64_t dim) { return dim % AMX_DEPTH == 0; }

  AmxAttention(int64_t dim, int group, int tokens, int64_t position, float scale, const AttentionVariant& variant)
      : dim_(dim), group_(group), rows_(tokens * group), padded_rows_((rows_ + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS),
        position_(position), end_(position + tokens), scale_(scale), variant_(variant) {}

  // Attends with one key/value head: queries [dim] of each token, `ld` apart -> out, `out_ld` apart. The head's part of
  // a page begins at `pool`, its values `kv_heads` parts after its keys; pages are `apart`. `own` is its first query
  // head. Needs `TileConfig`.
  void attend(const bf16* q, int64_t ld, const bf16* pool, int64_t apart, int64_t kv_heads, const int32_t* table,
              int64_t own, bf16* out, int64_t out_ld) const {
    Buffers& buffers = this->buffers(own);
    for (int64_t row = 0; row < rows_; ++row)
      std::copy_n(q + (row / group_) * ld + (row % group_) * dim_, dim_, buffers.queries.data() + row * dim_);
    const int64_t size = PAGE * dim_, past = kv_heads * size, seen = variant_.first(position_) / PAGE * PAGE;
    for (int64_t begin = seen / TOKENS * TOKENS; begin < end_; begin += TOKENS) {
      const int64_t first = std::max(seen - begin, int64_t{0}), last = std::min(TOKENS, end_ - begin);
      const int64_t from = first / AMX_DEPTH * AMX_DEPTH, whole = padded_depth(last) - from;  // in full registers
      for (int64_t t = from; t < from + whole; t += PAGE) {
        bf16* values = buffers.values.data() + (t - from) * dim_;
        const int64_t there = t < first ? 0 : std::clamp<int64_t>(last - t, 0, PAGE);
        if (there == 0) {
          std::fill_n(values, size, bf16{0});
          continue;
        }
        const bf16* page = pool + int64_t(table[(begin + t) / PAGE]) * apart;
        amx_gemm(padded_rows_, PAGE, dim_, buffers.queries.data(), dim_, page, PAGE, buffers.scores.data() + t - from,
                 TOKENS, false);
        copy_values(page + past, there, values);
      }
      for (int64_t row = 0; row < rows_; ++row) {
        const int64_t at = position_ + row / group_;
        softmax_tokens(buffers.scores.data() + row * TOKENS, buffers.weights.data() + row * TOKENS, whole,
                       variant_.first(at) - begin - from, at + 1 - begin - from, scale_, variant_.cap,
                       buffers.states[row], buffers.sums.data() + row * dim_, dim_);
      }
      amx_gemm(padded_rows_, dim_, whole, buffers.weights.data(), TOKENS, buffers.values.data(), dim_,
               buffers.sums.data(), dim_, true);
    }
    for (int64_t row = 0; row < rows_; ++row) {
      const __m512 inverse = _mm512_set1_ps(1.0f / buffers.states[row].sum);
      const float* sums = buffers.sums.data() + row * dim_;
      bf16* to = out + (row / group_) * out_ld + (row % group_) * dim_;
      for (int64_t d = 0; d < dim_; d += LANES)
        store_narrow(to + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), inverse), 0xffff);
    }
  }

 private:
  // This thread's buffers, kept from call to call. They are padded to full registers; padding is never read.
  struct Buffers {
    Aligned<bf16> queries, values, weights;
    Aligned<float> scores, sums;
    std::vector<SoftmaxState> states;
  };

  Buffers& buffers(int64_t own) const {
    static thread_local Buffers buffers;
    buffers.queries.resize(padded_rows_ * dim_), buffers.weights.resize(padded_rows_ * TOKENS),
        buffers.scores.resize(padded_rows_ * TOKENS);
    buffers.values.resize(TOKENS * dim_), buffers.sums.resize(padded_rows_ * dim_), buffers.states.resize(rows_);
    std::fill_n(buffers.sums.begin(), rows_ * dim_, 0.0f);
    for (int64_t row = 0; row < rows_; ++row)
      buffers.states[row] =
          variant_.sinks ? SoftmaxState{variant_.sinks[own + row % group_], 1.0f} : SoftmaxState{NO_SCORE, 0.0f};
    return buffers;
  }

  // The values of the first `there` tokens of a page [16 / 2, dim, 2], and zeros for the others: what an earlier
  // request has left there may not be multiplied, not even by zero.
  void copy_values(const bf16* page, int64_t there, bf16* to) const {
    std::copy_n(page, (there + 1) / 2 * 2 * dim_, to);
    std::fill(to + (there + 1) / 2 * 2 * dim_, to + PAGE * dim_, bf16{0});
    if (there % 2)
      for (int64_t d = 0; d < dim_; ++d) to[(there - 1) * dim_ + 2 * d + 1] = bf16{0};
  }

  const int64_t dim_, group_, rows_, padded_rows_, position_, end_;  // padded_rows_: in full registers
  const float scale_;
  const AttentionVariant variant_;
};
#endif
