// What a step's adapters add to its products, as computed by one thread, in three ways with equal results.
//
// Rows of one adapter that fill a tile add it in registers (`strip.h`). Single rows each have an adapter of their own,
// whose weights must come from memory: they are computed between the tiles of the base's product, which is bound by
// arithmetic and meanwhile prefetches the next ones. What is left after the product is added then: all of it if the
// product itself waits for memory.
#pragma once
#include <vector>
#include "step.h"
#include "within.h"

// Items of at least this many rows get a tile of their own.
constexpr int STRIP_ROWS = 4;

template <typename T>
class Beside {
 public:
  Beside(const Slots<T>& slots, const Step<T>& step, const Room<T>& room, const Place& place)
      : slots_(slots), room_(room), place_(place) {
    int64_t row = place.first, turn = 0;
    for (int64_t at = 0; at < step.item_count; ++at) {
      const Item item = within(step.items[at], place);
      if (item.rows <= 0) continue;
      if (TAKES_STRIPS<T> && item.rows >= STRIP_ROWS) {
        cut(row, item.start, tiles_);
        tiles_.push_back({item.start, item.rows, int64_t(whole_.size())});
        whole_.push_back(item);
        row = item.start + item.rows;
      } else if (turn++ % place.members == place.member) {
        single_.push_back(item);
      }
    }
    alone_ = turn > 0;
    cut(row, place.last, tiles_);
  }

  // To be called before the product of x; returns whether the team must wait for its members' work.
  bool begin(const Linear<T>& linear, const T* x) {
    linear_ = &linear, x_ = x;
    if (!linear.target_count || whole_.empty()) return false;
    strips_.clear();
    for (size_t at = 0; at < whole_.size(); ++at) add_strips(whole_[at], int64_t(at) % place_.members == place_.member);
    return true;
  }

  Tiles<T> tiles() const { return {tiles_, strips_.data(), linear_->target_count}; }

  // To be called before this thread's part of the product, of `panels` panels; returns what to prefetch during it.
  Stream start(int64_t panels) {
    pairs_.clear(), brought_ = done_ = 0;
    Stream stream;
    for (const Item& item : single_)
      for (int64_t t = 0; t < linear_->target_count; ++t) {
        const Pair<T> pair = pair_of(slots_, item.slot, linear_->targets[t]);
        if (!pair.a) continue;
        pairs_.push_back({item, linear_->targets[t].column, pair});
        stream.lines += (pair.end() - pair.a) * int64_t(sizeof(T)) / LINE;
      }
    if (pairs_.empty() || BY_MATRICES<T>) return {};  // matrix registers are too fast: the weights would come too late
    stream.steps = panels * int64_t(tiles_.size()) * (linear_->in / GROUP<T>);
    stream.next = turn, stream.from = this;
    return stream;
  }

  // To be called after the product into y, the team's rows: adds the rest. Returns whether the team must wait for it.
  bool finish(T* y) {
    const int64_t out = linear_->out;
    for (size_t at = 0; at < pairs_.size(); ++at) {
      const Due& due = pairs_[at];
      if (at < done_) {
        for (int64_t row = due.item.start; row < due.item.start + due.item.rows; ++row)
          settle(y + row * out + due.column, sums() + row * out + due.column, due.pair.part.out);
        continue;
      }
      Ahead first, second;  // of the next pair, which can only be prefetched while this pair is computed
      if (at + 1 < pairs_.size()) first = pairs_[at + 1].pair.ahead_a(), second = pairs_[at + 1].pair.ahead_b();
      add<true>(due, y, first, second);
    }
    return alone_ && linear_->target_count;
  }

 private:
  // What an item's adapter adds to the columns of one target.
  struct Due {
    Item item;
    int64_t column;
    Pair<T> pair;
  };

  // Rows as wide as y's.
  float* sums() const { return place_.own(room_.sums, room_.wide_width, linear_->out); }

  template <bool ADD>
  void add(const Due& due, Sums<ADD, T>* y, Ahead& first, Ahead& second) const {
    const int64_t out = linear_->out, in = linear_->in;
    add_pair<ADD>(y + due.item.start * out + due.column, out, x_ + due.item.start * in, in, due.item.rows, due.pair,
                  first, second);
  }

  // Computes a pair whose weights have been prefetched, and returns the memory to prefetch next.
  static Ahead turn(void* from) {
    Beside& self = *(Beside*)from;
    if (self.done_ + 1 < self.brought_) {
      const Due &due = self.pairs_[self.done_++], &next = self.pairs_[self.done_];
      Ahead first = due.pair.ahead_b(), second = next.pair.ahead_a();  // parts not prefetched yet
      self.template add<false>(due, self.sums(), first, second);
    }
    return self.brought_ == self.pairs_.size() ? Ahead{} : self.pairs_[self.brought_++].pair.ahead();
  }

  // Adds the strips of one item; `mine`: this thread computes their middles.
  void add_strips(const Item& item, bool mine) {
    Middle<T>* middle = room_.middle + item.start * room_.middle_width;
    for (int64_t t = 0; t < linear_->target_count; ++t) {
      const Target& target = linear_->targets[t];
      const Pair<T> pair = pair_of(slots_, item.slot, target);
      if (!pair.a) {
        strips_.push_back({nullptr, nullptr, 0, 0, 0, 0});
        continue;
      }
      Ahead nothing;
      if (mine)
        shrink(x_ + item.start * target.in, target.in, item.rows, pair.a, pair.part, middle, room_.middle_width,
               nothing);
      strips_.push_back({pair.b(), middle, room_.middle_width, pair.part.rank, target.column, target.out});
      middle += even(pair.part.rank);
    }
  }

  const Slots<T>& slots_;
  const Room<T>& room_;
  const Place& place_;
  const Linear<T>* linear_ = nullptr;
  const T* x_ = nullptr;
  std::vector<Item> whole_, single_;  // the team's items with tiles of their own; this thread's other items
  bool alone_;  // whether any member has such other items
  std::vector<Tile> tiles_;
  std::vector<Strip<T>> strips_;
  std::vector<Due> pairs_;  // of `single_`, in the current product
  size_t brought_ = 0, done_ = 0;  // how many of `pairs_` are prefetched, and how many have their sums stored
};
