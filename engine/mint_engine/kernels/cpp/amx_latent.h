// Attention over latents with AMX, several pages of the past at a time, with online softmax. Weights are
// rounded before the second product, and all sums are float, as in `attend_latents`, which goes page by page.
#pragma once
#include "amx_gemm.h"
#include "token_rows.h"
#include "online_softmax.h"

#ifdef MINT_AMX
// Rows of one work item: `heads` heads of `tokens` tokens from `position` on; a token's heads are adjacent.
class AmxLatentAttention {
 public:
  static constexpr int64_t TOKENS = 128;  // of the past at a time: with many, sums are loaded and stored less often

  static bool takes(const Latent<bf16>& by) { return by.width() % AMX_DEPTH == 0 && by.latent % AMX_DEPTH == 0; }

  AmxLatentAttention(const Latent<bf16>& by, int heads, int tokens, int64_t position, float scale)
      : width_(by.width()), latent_(by.latent), heads_(heads), rows_(tokens * heads),
        padded_rows_((rows_ + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS), position_(position), end_(position + tokens),
        scale_(scale) {}

  // Replaces queries [C + E] of each token, `ld` apart, by what they attend to [C]. `page_of` returns a page's 16 rows.
  template <typename F>
  void attend(bf16* q, int64_t ld, F page_of) {
    const TileConfig registers;
    Buffers& buffers = this->buffers();
    for (int64_t row = 0; row < rows_; ++row)
      std::copy_n(row_of(q, ld, row), width_, buffers.queries.data() + row * width_);
    for (int64_t begin = 0; begin < end_; begin += TOKENS) {
      const int64_t count = std::min(TOKENS, end_ - begin), whole = padded_depth(count);
      pack(buffers, begin, count, page_of);
      amx_gemm(padded_rows_, whole, width_, buffers.queries.data(), width_, buffers.keys.data(), TOKENS,
               buffers.scores.data(), TOKENS, false);
      for (int64_t row = 0; row < rows_; ++row)
        softmax_tokens(buffers.scores.data() + row * TOKENS, buffers.weights.data() + row * TOKENS, whole, 0,
                       position_ + row / heads_ + 1 - begin, scale_, 0, buffers.states[row],
                       buffers.sums.data() + row * latent_, latent_);
      amx_gemm(padded_rows_, latent_, whole, buffers.weights.data(), TOKENS, buffers.values.data(), latent_,
               buffers.sums.data(), latent_, true);
    }
    for (int64_t row = 0; row < rows_; ++row) {
      const __m512 inverse = _mm512_set1_ps(1.0f / buffers.states[row].sum);
      const float* sums = buffers.sums.data() + row * latent_;
      bf16* to = row_of(q, ld, row);
      for (int64_t d = 0; d < latent_; d += LANES)
        store_narrow(to + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), inverse), 0xffff);
    }
  }

 private:
  // This thread's buffers, kept from call to call. They are padded to full registers; padding is never read.
  struct Buffers {
    Aligned<bf16> queries, keys, values, weights, page;
    Aligned<float> scores, sums;
    std::vector<SoftmaxState> states;
  };

  Buffers& buffers() const {
    static thread_local Buffers buffers;
    buffers.queries.resize(padded_rows_ * width_), buffers.weights.resize(padded_rows_ * TOKENS),
        buffers.scores.resize(padded_rows_ * TOKENS);
    buffers.keys.resize(TOKENS * width_), buffers.values.resize(TOKENS * latent_), buffers.page.resize(PAGE * width_);
    buffers.sums.assign(padded_rows_ * latent_, 0.0f), buffers.states.assign(rows_, SoftmaxState{NO_SCORE, 0.0f});
    return buffers;
  }

  bf16* row_of(bf16* q, int64_t ld, int64_t row) const { return q + (row / heads_) * ld + (row % heads_) * width_; }

  // Packs keys [C + E, TOKENS] and values [TOKENS, C] of `count` tokens from `begin` on, in pairs, padded with zeros to
  // full registers: earlier contents of the buffers must not be multiplied.
  template <typename F>
  void pack(Buffers& buffers, int64_t begin, int64_t count, F page_of) const {
    for (int64_t at = 0; at < padded_depth(count); at += PAGE) {
      TokenRows<bf16> from = {buffers.page.data(), width_};
      if (at + PAGE <= count) {
        from = page_of((begin + at) / PAGE);
      } else {
        std::fill(buffers.page.begin(), buffers.page.end(), bf16{0});
        const TokenRows<bf16> some = at < count ? page_of((begin + at) / PAGE) : from;
        for (int64_t t = 0; at + t < count; ++t)
          std::copy_n(some.from + t * some.ld, width_, buffers.page.data() + t * width_);
      }
      pack_keys(from, width_, buffers.keys.data() + 2 * at, TOKENS);
      pack_values(from, latent_, buffers.values.data() + at * latent_);
    }
  }

  const int64_t width_, latent_, heads_, rows_, padded_rows_, position_, end_;  // padded_rows_: in full registers
  const float scale_;
};
#endif
