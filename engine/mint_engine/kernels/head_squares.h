// Attention of heads with matrix registers, several pages of the past at a time, with online softmax. Pages store keys
// and values as registers take them. All rows use this, however few: registers sum in another order than vectors do.
#pragma once
#include <algorithm>
#include <vector>
#include "aligned.h"
#include "squares.h"
#include "weigh_squares.h"

#ifdef MINT_AMX
// Rows of one work item: `group` heads of `tokens` tokens from `position` on; a token's heads are adjacent.
class HeadSquares {
 public:
  static constexpr int64_t TOKENS = 128;  // of the past at a time: with many, sums are loaded and stored less often

  static bool takes(int64_t dim) { return dim % DEEP == 0; }

  HeadSquares(int64_t dim, int group, int tokens, int64_t position, float scale, const Sight& sight)
      : dim_(dim), group_(group), rows_(tokens * group), tall_((rows_ + HEIGHT - 1) / HEIGHT * HEIGHT),
        position_(position), end_(position + tokens), scale_(scale), sight_(sight) {}

  // Attends with one key/value head: queries [dim] of each token, `ld` apart -> out, `out_ld` apart. The head's part of
  // a page begins at `pool`, its values `kv_heads` parts after its keys; pages are `apart`. `own` is its first query
  // head. Needs `Matrices`.
  void attend(const bf16* q, int64_t ld, const bf16* pool, int64_t apart, int64_t kv_heads, const int32_t* table,
              int64_t own, bf16* out, int64_t out_ld) const {
    Room& room = this->room(own);
    for (int64_t row = 0; row < rows_; ++row)
      std::copy_n(q + (row / group_) * ld + (row % group_) * dim_, dim_, room.queries.data() + row * dim_);
    const int64_t size = PAGE * dim_, past = kv_heads * size, seen = sight_.first(position_) / PAGE * PAGE;
    for (int64_t begin = seen / TOKENS * TOKENS; begin < end_; begin += TOKENS) {
      const int64_t first = std::max(seen - begin, int64_t{0}), last = std::min(TOKENS, end_ - begin);
      const int64_t from = first / DEEP * DEEP, whole = deep(last) - from;  // in full registers
      for (int64_t t = from; t < from + whole; t += PAGE) {
        bf16* values = room.values.data() + (t - from) * dim_;
        const int64_t there = t < first ? 0 : std::clamp<int64_t>(last - t, 0, PAGE);
        if (there == 0) {
          std::fill_n(values, size, bf16{0});
          continue;
        }
        const bf16* page = pool + int64_t(table[(begin + t) / PAGE]) * apart;
        multiply_squares(tall_, PAGE, dim_, room.queries.data(), dim_, page, PAGE, room.scores.data() + t - from, TOKENS,
                         false);
        copy_values(page + past, there, values);
      }
      for (int64_t row = 0; row < rows_; ++row) {
        const int64_t at = position_ + row / group_;
        weigh_tokens(room.scores.data() + row * TOKENS, room.weights.data() + row * TOKENS, whole,
                     sight_.first(at) - begin - from, at + 1 - begin - from, scale_, sight_.cap, room.states[row],
                     room.sums.data() + row * dim_, dim_);
      }
      multiply_squares(tall_, dim_, whole, room.weights.data(), TOKENS, room.values.data(), dim_, room.sums.data(), dim_,
                       true);
    }
    for (int64_t row = 0; row < rows_; ++row) {
      const __m512 inverse = _mm512_set1_ps(1.0f / room.states[row].sum);
      const float* sums = room.sums.data() + row * dim_;
      bf16* to = out + (row / group_) * out_ld + (row % group_) * dim_;
      for (int64_t d = 0; d < dim_; d += LANES)
        store_narrow(to + d, _mm512_mul_ps(_mm512_loadu_ps(sums + d), inverse), 0xffff);
    }
  }

 private:
  // This thread's buffers, kept from call to call. They have room for a register's missing rows, which are never read.
  struct Room {
    Aligned<bf16> queries, values, weights;
    Aligned<float> scores, sums;
    std::vector<State> states;
  };

  Room& room(int64_t own) const {
    static thread_local Room room;
    room.queries.resize(tall_ * dim_), room.weights.resize(tall_ * TOKENS), room.scores.resize(tall_ * TOKENS);
    room.values.resize(TOKENS * dim_), room.sums.resize(tall_ * dim_), room.states.resize(rows_);
    std::fill_n(room.sums.begin(), rows_ * dim_, 0.0f);
    for (int64_t row = 0; row < rows_; ++row)
      room.states[row] = sight_.sinks ? State{sight_.sinks[own + row % group_], 1.0f} : State{NEVER, 0.0f};
    return room;
  }

  // The values of the first `there` tokens of a page [16 / 2, dim, 2], and zeros for the others: what an earlier
  // request has left there may not be multiplied, not even by zero.
  void copy_values(const bf16* page, int64_t there, bf16* to) const {
    std::copy_n(page, (there + 1) / 2 * 2 * dim_, to);
    std::fill(to + (there + 1) / 2 * 2 * dim_, to + PAGE * dim_, bf16{0});
    if (there % 2)
      for (int64_t d = 0; d < dim_; ++d) to[(there - 1) * dim_ + 2 * d + 1] = bf16{0};
  }

  const int64_t dim_, group_, rows_, tall_, position_, end_;  // tall_: rows, in full registers
  const float scale_;
  const Sight sight_;
};
#endif
