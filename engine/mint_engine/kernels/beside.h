// What a step's adapters add to its products, by one thread, in three ways that give the same.
//
// Rows of one adapter that fill a tile take it in registers (`strip.h`). Single rows have an adapter each, and wait for
// its weights to come from memory: they are computed between the tiles of the base's product, which is bound by
// arithmetic and meanwhile reads the next ones. What the product leaves over is added behind it.
#pragma once
#include <vector>
#include "step.h"
#include "team.h"

// Rows from which an item makes a tile of its own.
constexpr int STRIP_ROWS = 4;

// The part of `item` within a team's rows.
inline Item within(const Item& item, const Place& place) {
  const int32_t start = std::max<int32_t>(item.start, int32_t(place.first));
  return {start, std::min<int32_t>(item.start + item.rows, int32_t(place.last)) - start, item.slot};
}

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

  // Before the product of x: returns whether the team must wait for what its members have done.
  bool begin(const Linear<T>& linear, const T* x) {
    linear_ = &linear, x_ = x;
    brought_ = done_ = 0;
    if (!linear.target_count || whole_.empty()) return false;
    strips_.clear();
    for (size_t at = 0; at < whole_.size(); ++at) add_strips(whole_[at], int64_t(at) % place_.members == place_.member);
    return true;
  }

  Tiles<T> tiles() const { return {tiles_, strips_.data(), linear_->target_count}; }

  Stream stream() { return {nullptr, nullptr, linear_->target_count && !single_.empty() ? turn : nullptr, this}; }

  // After the product, whose rows y are the team's: adds the rest. Returns whether the team must wait for that.
  bool finish(T* y) {
    if (!linear_->target_count || !alone_) return false;
    for (size_t at = 0; at < done_; ++at) settle_item(single_[at], y);
    for (size_t at = done_; at < single_.size(); ++at) {
      std::pair<const T*, const T*> next{nullptr, nullptr};
      if (at + 1 < single_.size()) next = run(single_[at + 1]);
      add_lora<true>(y, linear_->out, x_, linear_->in, single_[at], slots_, linear_->targets, linear_->target_count,
                     next.first, (next.second - next.first) * int64_t(sizeof(T)));
    }
    return true;
  }

 private:
  std::pair<const T*, const T*> run(const Item& item) const {
    return run_of(slots_, item.slot, linear_->targets, linear_->target_count);
  }

  float* sums() const { return room_.sums + place_.first * (room_.wide_width - linear_->out); }

  // Computes the item whose weights have come near, and names the next one's.
  static std::pair<const void*, const void*> turn(void* from) {
    Beside& self = *(Beside*)from;
    if (self.done_ < self.brought_) {
      const T* none = nullptr;
      add_lora<false>(self.sums(), self.linear_->out, self.x_, self.linear_->in, self.single_[self.done_++],
                      self.slots_, self.linear_->targets, self.linear_->target_count, none, 0);
    }
    if (self.brought_ == self.single_.size()) return {nullptr, nullptr};
    const auto run = self.run(self.single_[self.brought_++]);
    return {run.first ? run.first : self.slots_.memory, run.second};
  }

  void settle_item(const Item& item, T* y) const {
    for (int64_t t = 0; t < linear_->target_count; ++t) {
      const Target& target = linear_->targets[t];
      if (slots_.places[target.module * slots_.count + item.slot] < 0) continue;
      for (int64_t row = item.start; row < item.start + item.rows; ++row) {
        const int64_t at = row * linear_->out + target.column;
        settle(y + at, sums() + at, target.out);
      }
    }
  }

  // The strips of one item; `mine`: this thread computes what lies between its two products.
  void add_strips(const Item& item, bool mine) {
    Middle<T>* middle = room_.middle + item.start * room_.middle_width;
    for (int64_t t = 0; t < linear_->target_count; ++t) {
      const Target& target = linear_->targets[t];
      const int64_t at = target.module * slots_.count + item.slot;
      if (slots_.places[at] < 0) {
        strips_.push_back({nullptr, nullptr, 0, 0, 0, 0});
        continue;
      }
      const Part part{slots_.ranks[at], target.in, target.out, slots_.scalings[at]};
      const T* a = slots_.memory + item.slot * slots_.width + slots_.places[at];
      if (mine) shrink(x_ + item.start * target.in, target.in, item.rows, a, part, middle, room_.middle_width);
      strips_.push_back({a + part.rank * part.in, middle, room_.middle_width, part.rank, target.column, target.out});
      middle += even(part.rank);
    }
  }

  const Slots<T>& slots_;
  const Room<T>& room_;
  const Place& place_;
  const Linear<T>* linear_ = nullptr;
  const T* x_ = nullptr;
  std::vector<Item> whole_, single_;  // the team's that have tiles of their own; this thread's others
  bool alone_;  // whether any member has such others
  std::vector<Tile> tiles_;
  std::vector<Strip<T>> strips_;
  size_t brought_ = 0, done_ = 0;  // of `single_`: whose weights are read ahead, and whose sums are put down
};
