// A layer's routed experts, computed by all threads of a step together: they share each expert's outputs, so that its
// weights are read once, whatever rows it has. Letters in shapes: k experts of a row, E experts held, P pairs of a row
// and a held expert, H hidden, I an expert's inner size.
#pragma once
#include <vector>
#include "experts.h"
#include "activation.h"
#include "step.h"
#include "team.h"

constexpr int64_t MAX_EXPERTS = 1024;  // the caller refuses more

// Index of the best score, the first among equals; that score becomes -infinity.
inline int64_t pop_best(float* scores, int64_t count) {
  int64_t best = 0;
  for (int64_t e = 1; e < count; ++e)
    if (scores[e] > scores[best]) best = e;
  scores[best] = -INFINITY;
  return best;
}

// Selects one row's k experts, best first, and their weights from the router's logits [E], as transformers does.
template <typename T>
void route_row(const T* logits, const Experts<T>& of, int32_t* routes, float* weights) {
  float probabilities[MAX_EXPERTS], largest = widen(logits[0]), sum = 0;
  for (int64_t e = 1; e < of.count; ++e) largest = std::max(largest, widen(logits[e]));
  for (int64_t e = 0; e < of.count; ++e) sum += probabilities[e] = std::exp(widen(logits[e]) - largest);
  float chosen = 0;
  for (int64_t j = 0; j < of.top_k; ++j) {
    const int64_t best = pop_best(probabilities, of.count);
    routes[j] = int32_t(best), weights[j] = std::exp(widen(logits[best]) - largest) / sum;
    chosen += weights[j];
  }
  for (int64_t j = 0; j < of.top_k; ++j) {
    if (of.normalised) weights[j] /= chosen;
    if (of.rounded) weights[j] = widen(narrow<T>(weights[j]));
  }
}

// The same for a router with groups. Logits [E] become probabilities.
template <typename T>
void route_row(float* logits, const GroupedRouter& by, const Experts<T>& of, int32_t* routes, float* weights) {
  const int64_t count = of.count, top_k = of.top_k;
  float scores[MAX_EXPERTS], groups[MAX_EXPERTS];
  const int64_t size = count / by.groups;
  if (by.softmax) {
    float largest = logits[0], sum = 0;
    for (int64_t e = 1; e < count; ++e) largest = std::max(largest, logits[e]);
    for (int64_t e = 0; e < count; ++e) sum += logits[e] = std::exp(logits[e] - largest);
    for (int64_t e = 0; e < count; ++e) logits[e] /= sum;
  } else {
    for (int64_t e = 0; e < count; ++e) logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  }
  for (int64_t e = 0; e < count; ++e) scores[e] = logits[e] + by.bias[e];
  for (int64_t group = 0; group < by.groups; ++group) {
    float first = -INFINITY, second = -INFINITY;  // a group is as good as its two best experts
    for (int64_t e = group * size; e < (group + 1) * size; ++e) {
      if (scores[e] > first)
        second = first, first = scores[e];
      else if (scores[e] > second)
        second = scores[e];
    }
    groups[group] = first + second;
  }
  for (int64_t left = by.groups - by.top_groups; left > 0; --left) {
    int64_t worst = 0;  // the last of equals
    for (int64_t group = 1; group < by.groups; ++group)
      if (!(groups[group] > groups[worst])) worst = group;
    groups[worst] = INFINITY;
    std::fill_n(scores + worst * size, size, -INFINITY);
  }
  float sum = 0;
  for (int64_t j = 0; j < top_k; ++j) {
    const int64_t best = pop_best(scores, count);
    routes[j] = int32_t(best), weights[j] = logits[best];
    sum += weights[j];
  }
  for (int64_t j = 0; j < top_k; ++j) {
    weights[j] = (of.normalised ? weights[j] / (sum + 1e-20f) : weights[j]) * by.factor;
    if (of.rounded) weights[j] = widen(narrow<T>(weights[j]));
  }
}

// A step's pairs of rows and experts, as one thread sees them.
template <typename T>
class RoutedExperts {
 public:
  RoutedExperts(const Slots<T>& slots, const Step<T>& step, const Workspace<T>& workspace, const Worker& worker)
      : slots_(slots), step_(step), workspace_(workspace), worker_(worker), row_slots_(step.rows, -1) {
    for (int64_t at = 0; at < step.item_count; ++at)
      std::fill_n(row_slots_.begin() + step.items[at].start, step.items[at].rows, step.items[at].slot);
  }

  // Computes the held experts' outputs for rows x [rows, H] and their routes; `combine` reads them.
  void run(const Experts<T>& experts, const Activation& activation, const int32_t* routes) {
    experts_ = &experts;
    const int64_t hidden = experts.down.out, inner = experts.down.in;
    sort(routes);
    for_each_pair([&](int64_t pair) {
      std::copy_n(workspace_.x + rows_[pair] * hidden, hidden, workspace_.pair_hidden + pair * hidden);
    });
    worker_.all->wait();
    product(experts.gate_up, workspace_.pair_hidden, workspace_.pair_gate_up);
    worker_.all->wait();
    for_each_pair([&](int64_t pair) {
      finish(pair, experts.gate_up_bias, 2 * inner, experts.interleaved, workspace_.pair_gate_up);
    });
    add(experts.gate_up, workspace_.pair_hidden, workspace_.pair_gate_up);
    for_each_pair([&](int64_t pair) {
      gate_mul<T>(activation, workspace_.pair_gate_up + pair * 2 * inner, workspace_.pair_gated + pair * inner, inner);
    });
    worker_.all->wait();
    product(experts.down, workspace_.pair_gated, workspace_.pair_hidden);
    worker_.all->wait();
    for_each_pair([&](int64_t pair) { finish(pair, experts.down_bias, hidden, false, workspace_.pair_hidden); });
    add(experts.down, workspace_.pair_gated, workspace_.pair_hidden);
    worker_.all->wait();
  }

  // to [H] = the weighted sum of the outputs of a row's held experts, plus `shared` [H] unless that is null.
  void combine(int64_t row, const float* weights, const T* shared, T* to) const {
    constexpr int64_t CHUNK = 64;
    const int64_t hidden = experts_->down.out, top_k = experts_->top_k;
    for (int64_t first = 0; first < hidden; first += CHUNK) {
      const int64_t many = std::min(CHUNK, hidden - first);
      float sum[CHUNK] = {};
      for (int64_t j = 0; j < top_k; ++j) {
        if (places_[row * top_k + j] < 0) continue;
        const T* from = workspace_.pair_hidden + places_[row * top_k + j] * hidden + first;
        for (int64_t i = 0; i < many; ++i) {
          const float value = widen(from[i]) * weights[j];
          sum[i] += experts_->rounded ? widen(narrow<T>(value)) : value;
        }
      }
      for (int64_t i = 0; i < many; ++i) {
        to[first + i] = narrow<T>(sum[i]);
        if (shared) to[first + i] = narrow<T>(widen(to[first + i]) + widen(shared[first + i]));
      }
    }
  }

 private:
  // Sorts pairs by expert, and an expert's pairs by row, so that those of one slot are adjacent.
  void sort(const int32_t* routes) {
    const int64_t top_k = experts_->top_k, pairs = step_.rows * top_k, first = experts_->first;
    const auto held = [&](int64_t at) { return routes[at] >= first && routes[at] < first + experts_->held; };
    bounds_.assign(experts_->held + 1, 0), rows_.resize(pairs), experts_of_.resize(pairs), places_.assign(pairs, -1);
    for (int64_t at = 0; at < pairs; ++at)
      if (held(at)) ++bounds_[routes[at] - first + 1];
    for (int64_t e = 0; e < experts_->held; ++e) bounds_[e + 1] += bounds_[e];
    next_.assign(bounds_.begin(), bounds_.end() - 1);
    for (int64_t at = 0; at < pairs; ++at)
      if (held(at)) {
        places_[at] = next_[routes[at] - first]++;
        rows_[places_[at]] = at / top_k, experts_of_[places_[at]] = routes[at] - first;
      }
    from_ = bounds_.back() * worker_.thread / worker_.threads,
    to_ = bounds_.back() * (worker_.thread + 1) / worker_.threads;
  }

  // This thread's pairs.
  template <typename F>
  void for_each_pair(F act) {
    for (int64_t pair = from_; pair < to_; ++pair) act(pair);
  }

  // Adds the expert's bias to a pair's row of y [P, width]; `interleaved`: also moves its odd numbers behind its even
  // ones.
  void finish(int64_t pair, const T* bias, int64_t width, bool interleaved, T* y) {
    T* own = y + pair * width;
    if (bias) ::add(own, bias + experts_of_[pair] * width, width);
    if (!interleaved) return;
    odd_.resize(width / 2);
    for (int64_t i = 0; i < width / 2; ++i) odd_[i] = own[2 * i + 1];
    for (int64_t i = 0; i < width / 2; ++i) own[i] = own[2 * i];
    std::copy(odd_.begin(), odd_.end(), own + width / 2);
  }

  void product(const Stack<T>& stack, const T* x, T* y) {
    multiply_part(x, bounds_.data(), experts_->held, stack, y, worker_.thread, worker_.threads);
  }

  // Adds the adapters of this thread's pairs: y [P, out] += theirs of x [P, in].
  void add(const Stack<T>& stack, const T* x, T* y) {
    work_.clear();
    for (int64_t pair = from_, expert = 0; pair < to_;) {
      while (bounds_[expert + 1] <= pair) ++expert;
      const int32_t slot = row_slots_[rows_[pair]];
      int64_t end = pair + 1;
      const int64_t last = std::min({to_, bounds_[expert + 1], pair + ITEM_ROWS});
      while (end < last && row_slots_[rows_[end]] == slot) ++end;
      if (slot >= 0)
        for (int64_t t = 0; t < stack.target_count; ++t) push(stack.targets[t], pair, int(end - pair), slot, expert);
      pair = end;
    }
    for (size_t at = 0; at < work_.size(); ++at) {
      const AdapterWork& work = work_[at];
      PrefetchRange own = work.range_b(), next;
      if (at + 1 < work_.size()) next = work_[at + 1].range_a();
      Middle<T> middle[ITEM_ROWS * MAX_RANK];
      const int64_t pitch = even(work.shape.rank);
      shrink(x + work.pair * stack.in, stack.in, work.rows, work.a, work.shape, middle, pitch, own);
      expand<true>(y + work.pair * stack.out + work.column, stack.out, work.rows, work.b, work.shape, middle, pitch,
                   next);
    }
  }

  // What an adapter adds to pairs of one expert: a [rank, in], b [rank, out].
  struct AdapterWork {
    int64_t pair, column;
    int rows;
    const T *a, *b;
    LoraShape shape;
    PrefetchRange range_a() const { return {(const char*)a, (const char*)(a + shape.rank * shape.in)}; }
    PrefetchRange range_b() const { return {(const char*)b, (const char*)(b + shape.rank * shape.out)}; }
  };

  // A slot's row holds a module's A of all experts, one after another, and then their B.
  void push(const Target& target, int64_t pair, int rows, int32_t slot, int64_t expert) {
    const LoraWeights<T> all = lora_weights(slots_, slot, target);
    if (!all.a) return;
    const T* b = all.a + experts_->held * all.shape.rank * target.in;
    work_.push_back({pair, target.column, rows, all.a + expert * all.shape.rank * target.in,
                     b + expert * all.shape.rank * target.out, all.shape});
  }

  const Slots<T>& slots_;
  const Step<T>& step_;
  const Workspace<T>& workspace_;
  const Worker& worker_;
  const Experts<T>* experts_ = nullptr;
  std::vector<int32_t> row_slots_;      // [rows]: the slot of each, or -1
  std::vector<int64_t> bounds_, next_;  // [E + 1]: where each expert's pairs begin
  std::vector<int64_t> rows_;           // [P]: each sorted pair's row
  std::vector<int32_t> experts_of_;     // [P]: and its expert
  std::vector<T> odd_;                  // buffer for half of a row
  std::vector<int64_t> places_;         // [rows, k]: where a row's pairs lie, -1 for experts that are not held
  int64_t from_ = 0, to_ = 0;           // this thread's pairs
  std::vector<AdapterWork> work_;
};
