// Attention over latents with matrix registers, several pages of the past at a time, with online softmax. Weights are
// rounded before the second product, and all sums are float, as in `attend_latents`, which goes page by page.
#pragma once
#include "squares.h"
#include "tokens.h"
#include "weigh_squares.h"

#ifdef MINT_AMX
// Rows of one work item: `heads` heads of `tokens` tokens from `position` on; a token's heads are adjacent.
class LatentSquares {
 public:
  static constexpr int64_t TOKENS = 128;  // of the past at a time: with many, sums are loaded and stored less often

  static bool takes(const Latent<bf16>& by) { return by.width() % DEEP == 0 && by.latent % DEEP == 0; }

  LatentSquares(const Latent<bf16>& by, int heads, int tokens, int64_t position, float scale)
      : width_(by.width()), latent_(by.latent), heads_(heads), rows_(tokens * heads),
        tall_((rows_ + HEIGHT - 1) / HEIGHT * HEIGHT), position_(position), end_(position + tokens), scale_(scale) {}

  // Replaces queries [C + E] of each token, `ld` apart, by what they attend to [C]. `page_of` returns a page's 16 rows.
  template <typename F>
  void attend(bf16* q, int64_t ld, F page_of) {
    const Matrices registers;
    Room& room = this->room();
    for (int64_t row = 0; row < rows_; ++row)
      std::copy_n(row_of(q, ld, row), width_, room.queries.data() + row * width_);
    for (int64_t begin = 0; begin < end_; begin += TOKENS) {
      const int64_t count = std::min(TOKENS, end_ - begin), whole = deep(count);
      lay(room, begin, count, page_of);
      multiply_squares(tall_, whole, width_, room.queries.data(), width_, room.keys.data(), TOKENS, room.scores.data(),
                       TOKENS, false);
      for (int64_t row = 0; row < rows_; ++row)
        weigh_tokens(room.scores.data() + row * TOKENS, room.weights.data() + row * TOKENS, whole, 0,
                     position_ + row / heads_ + 1 - begin, scale_, 0, room.states[row], room.sums.data() + row * latent_,
                     latent_);
      multiply_squares(tall_, latent_, whole, room.weights.data(), TOKENS, room.values.data(), latent_,
                       room.sums.data(), latent_, true);
    }
    for (int64_t row = 0; row < rows_; ++row) {
      const __m512 inverse = _mm512_set1_ps(1.0f / room.states[row].sum);
      const float* sums = room.sums.data() + row * latent_;
      bf16* to = row_of(q, ld, row);
      for (int64_t d = 0; d < latent_; d += LANES)
        store_narrow(to + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), inverse), 0xffff);
    }
  }

 private:
  // This thread's buffers, kept from call to call. They have room for a register's missing rows, which are never read.
  struct Room {
    Aligned<bf16> queries, keys, values, weights, page;
    Aligned<float> scores, sums;
    std::vector<State> states;
  };

  Room& room() const {
    static thread_local Room room;
    room.queries.resize(tall_ * width_), room.weights.resize(tall_ * TOKENS), room.scores.resize(tall_ * TOKENS);
    room.keys.resize(TOKENS * width_), room.values.resize(TOKENS * latent_), room.page.resize(PAGE * width_);
    room.sums.assign(tall_ * latent_, 0.0f), room.states.assign(rows_, State{NEVER, 0.0f});
    return room;
  }

  bf16* row_of(bf16* q, int64_t ld, int64_t row) const { return q + (row / heads_) * ld + (row % heads_) * width_; }

  // Lays out keys [C + E, TOKENS] and values [TOKENS, C] of `count` tokens from `begin` on, in pairs, followed by zeros
  // up to full registers: what was there before may not be multiplied.
  template <typename F>
  void lay(Room& room, int64_t begin, int64_t count, F page_of) const {
    for (int64_t at = 0; at < deep(count); at += PAGE) {
      TokenRows<bf16> from = {room.page.data(), width_};
      if (at + PAGE <= count) {
        from = page_of((begin + at) / PAGE);
      } else {
        std::fill(room.page.begin(), room.page.end(), bf16{0});
        const TokenRows<bf16> some = at < count ? page_of((begin + at) / PAGE) : from;
        for (int64_t t = 0; at + t < count; ++t)
          std::copy_n(some.from + t * some.ld, width_, room.page.data() + t * width_);
      }
      stand_tokens(from, width_, room.keys.data() + 2 * at, TOKENS);
      pair_tokens(from, latent_, room.values.data() + at * latent_);
    }
  }

  const int64_t width_, latent_, heads_, rows_, tall_, position_, end_;  // tall_: rows, in full registers
  const float scale_;
};
#endif
