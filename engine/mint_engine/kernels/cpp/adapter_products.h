// What a step's adapters add to its products, as computed by one thread, in three ways with equal results.
//
// Rows of one adapter that fill a tile add it in registers (`lora_epilogue.h`). Single rows each have their own
// adapter, whose weights must come from memory: they are computed between the tiles of the base's product, which is
// bound by arithmetic and meanwhile prefetches the next ones. The rest, or everything if the product itself waits for
// memory, is added after the product.
#pragma once
#include <vector>
#include "step.h"
#include "team_parts.h"

// Items of at least this many rows get a tile of their own.
constexpr int EPILOGUE_ROWS = 4;

template <typename T>
class AdapterProducts {
 public:
  AdapterProducts(const Slots<T>& slots, const Step<T>& step, const Workspace<T>& workspace, const Worker& worker)
      : slots_(slots), workspace_(workspace), worker_(worker) {
    int64_t row = worker.first, counter = 0;
    for (int64_t at = 0; at < step.item_count; ++at) {
      const Item item = team_part(step.items[at], worker);
      if (item.rows <= 0) continue;
      if (FUSES_LORA<T> && item.rows >= EPILOGUE_ROWS) {
        cut_tiles(row, item.start, tiles_);
        tiles_.push_back({item.start, item.rows, int64_t(tiled_.size())});
        tiled_.push_back(item);
        row = item.start + item.rows;
      } else if (counter++ % worker.members == worker.member) {
        single_.push_back(item);
      }
    }
    has_single_ = counter > 0;
    cut_tiles(row, worker.last, tiles_);
  }

  // To be called before the product of x; returns whether the team must wait for its members' work.
  bool begin(const Linear<T>& linear, const T* x) {
    linear_ = &linear, x_ = x;
    if (!linear.target_count || tiled_.empty()) return false;
    epilogues_.clear();
    for (size_t at = 0; at < tiled_.size(); ++at)
      add_epilogues(tiled_[at], int64_t(at) % worker_.members == worker_.member);
    return true;
  }

  Tiles<T> tiles() const { return {tiles_, epilogues_.data(), linear_->target_count}; }

  // To be called before this thread's part of the product, of `panels` panels; returns what to prefetch during it.
  PrefetchSchedule start(int64_t panels) {
    pairs_.clear(), prefetched_ = computed_ = 0;
    PrefetchSchedule schedule;
    for (const Item& item : single_)
      for (int64_t t = 0; t < linear_->target_count; ++t) {
        const LoraWeights<T> pair = lora_weights(slots_, item.slot, linear_->targets[t]);
        if (!pair.a) continue;
        pairs_.push_back({item, linear_->targets[t].column, pair});
        schedule.lines += (pair.end() - pair.a) * int64_t(sizeof(T)) / LINE;
      }
    if (pairs_.empty() || USES_AMX<T>) return {};  // AMX is too fast: the weights would come too late
    schedule.steps = panels * int64_t(tiles_.size()) * (linear_->in / GROUP<T>);
    schedule.next = compute_next, schedule.from = this;
    return schedule;
  }

  // To be called after the product into y, the team's rows: adds the rest. Returns whether the team must wait for it.
  bool finish(T* y) {
    const int64_t out = linear_->out;
    for (size_t at = 0; at < pairs_.size(); ++at) {
      const PendingProduct& pending = pairs_[at];
      if (at < computed_) {
        for (int64_t row = pending.item.start; row < pending.item.start + pending.item.rows; ++row)
          add_sums(y + row * out + pending.column, sums() + row * out + pending.column, pending.pair.shape.out);
        continue;
      }
      PrefetchRange first, second;  // of the next pair, which can only be prefetched while this pair is computed
      if (at + 1 < pairs_.size()) first = pairs_[at + 1].pair.range_a(), second = pairs_[at + 1].pair.range_b();
      add<true>(pending, y, first, second);
    }
    return has_single_ && linear_->target_count;
  }

 private:
  // What an item's adapter adds to the columns of one target.
  struct PendingProduct {
    Item item;
    int64_t column;
    LoraWeights<T> pair;
  };

  // Rows as wide as y's.
  float* sums() const { return worker_.team_rows(workspace_.sums, workspace_.wide_width, linear_->out); }

  template <bool ADD>
  void add(const PendingProduct& pending, Sums<ADD, T>* y, PrefetchRange& first, PrefetchRange& second) const {
    const int64_t out = linear_->out, in = linear_->in;
    add_lora<ADD>(y + pending.item.start * out + pending.column, out, x_ + pending.item.start * in, in,
                  pending.item.rows, pending.pair, first, second);
  }

  // Computes a pair whose weights have been prefetched, and returns the memory to prefetch next.
  static PrefetchRange compute_next(void* from) {
    AdapterProducts& self = *(AdapterProducts*)from;
    if (self.computed_ + 1 < self.prefetched_) {
      const PendingProduct &pending = self.pairs_[self.computed_++], &next = self.pairs_[self.computed_];
      PrefetchRange first = pending.pair.range_b(), second = next.pair.range_a();  // parts not prefetched yet
      self.template add<false>(pending, self.sums(), first, second);
    }
    return self.prefetched_ == self.pairs_.size() ? PrefetchRange{} : self.pairs_[self.prefetched_++].pair.range();
  }

  // Adds the epilogues of one item; `mine`: this thread computes their middles.
  void add_epilogues(const Item& item, bool mine) {
    Middle<T>* middle = workspace_.middle + item.start * workspace_.middle_width;
    for (int64_t t = 0; t < linear_->target_count; ++t) {
      const Target& target = linear_->targets[t];
      const LoraWeights<T> pair = lora_weights(slots_, item.slot, target);
      if (!pair.a) {
        epilogues_.push_back({nullptr, nullptr, 0, 0, 0, 0});
        continue;
      }
      PrefetchRange nothing;
      if (mine)
        shrink(x_ + item.start * target.in, target.in, item.rows, pair.a, pair.shape, middle, workspace_.middle_width,
               nothing);
      epilogues_.push_back({pair.b(), middle, workspace_.middle_width, pair.shape.rank, target.column, target.out});
      middle += even(pair.shape.rank);
    }
  }

  const Slots<T>& slots_;
  const Workspace<T>& workspace_;
  const Worker& worker_;
  const Linear<T>* linear_ = nullptr;
  const T* x_ = nullptr;
  std::vector<Item> tiled_, single_;  // the team's items with tiles of their own; this thread's other items
  bool has_single_;                   // whether any member has such other items
  std::vector<Tile> tiles_;
  std::vector<LoraEpilogue<T>> epilogues_;
  std::vector<PendingProduct> pairs_;     // of `single_`, in the current product
  size_t prefetched_ = 0, computed_ = 0;  // how many of `pairs_` are prefetched, and how many have their sums stored
};
