// One step of a llama-like base: from tokens to logits, through all layers, in one call without the interpreter.
#include <omp.h>

#include <memory>
#include <vector>

#include "beside.h"
#include "indexer.h"
#include "latent.h"
#include "routed.h"
#include "step.h"
#include "team.h"

namespace {
template <typename T>
class Walk {
 public:
  Walk(const Base<T>& base, const Slots<T>& slots, const Step<T>& step, const Room<T>& room, const Peers<T>* peers,
       const Place& place, bool divided, std::atomic<int64_t>& reached)
      : base_(base), step_(step), room_(room), peers_(peers), place_(place), beside_(slots, step, room, place),
        latents_(slots, step, room, place), routed_(slots, step, room, place), routes_(step.routes), divided_(divided),
        reached_(reached) {}

  // Runs all layers, or ends before one whose part of an adapter does not arrive in time; `reached` is then that layer.
  void run() {
    const int64_t hidden = base_.head.in;
    each_row([&](int64_t row) {
      T* own = room_.hidden + row * hidden;
      std::copy_n(base_.embedding + step_.tokens[row] * hidden, hidden, own);
      if (base_.enlarged != 1) scale(own, base_.enlarged, hidden);
    });
    for (int64_t at = 0; at < base_.layer_count; ++at) {
      if (step_.arrival && !arrives(at)) return;
      layer(base_.layers[at]);
    }
    place_.all->wait();
    for (int64_t at = place_.thread; at < step_.kept; at += place_.threads)
      settle(step_.keep[at], base_.norm, room_.x + at * hidden);
    place_.all->wait();
    multiply(room_.x, base_.head.in, step_.kept, base_.head, step_.logits, step_.logits_width, place_.thread,
             place_.threads);
    if (base_.divided || base_.cap) bound();
    if (peers_) ::meet(*peers_->meeting, 0, place_.threads * int(peers_->count), peers_->patience_s);
  }

 private:
  // One thread waits; all learn the result for this layer, even if they look when it already waits for the next.
  bool arrives(int64_t layer) {
    if (place_.thread == 0 && !await(*step_.arrival, layer, waited_)) reached_.store(layer, std::memory_order_relaxed);
    place_.all->wait();
    return reached_.load(std::memory_order_relaxed) > layer;
  }

  // Scales and caps the logits; each thread takes a part of their columns.
  void bound() {
    place_.all->wait();
    const int64_t first = base_.head.out * place_.thread / place_.threads;
    const int64_t size = base_.head.out * (place_.thread + 1) / place_.threads - first;
    for (int64_t row = 0; row < step_.kept; ++row) {
      T* logits = step_.logits + row * step_.logits_width + first;
      if (base_.divided) scale(logits, 1.0f / base_.divided, size);
      if (base_.cap) hold_within(logits, size, base_.cap);
    }
  }

  // What is still to be added to the residual stream.
  enum Added { ATTENTION, NETWORK, NOTHING };

  void layer(const Layer<T>& layer) {
    T* attended = place_.own(room_.narrow, room_.narrow_width, layer.output.in);
    settle(layer.attention_norm);
    if (layer.latent)
      attend(layer, *layer.latent, attended);
    else
      attend(layer, layer.heads, attended);
    product(layer.output, attended, sums(ATTENTION));
    gather(ATTENTION, layer.attended_norm);
    settle(layer.mlp_norm);
    if (layer.experts)
      experts(layer, *layer.experts);
    else
      network(layer, sums(NETWORK));
    gather(NETWORK, layer.given_norm);
  }

  void network(const Layer<T>& layer, T* to) {
    const int64_t inner = layer.down.in;
    T* gate_up = place_.own(room_.wide, room_.wide_width, 2 * inner);
    T* gated = place_.own(room_.narrow, room_.narrow_width, inner);
    product(layer.gate_up, room_.x, gate_up);
    each_row([&](int64_t row) {
      gate_mul<T>(base_.activation, gate_up + row * 2 * inner, gated + row * inner, inner);
    });
    product(layer.down, gated, to);
  }

  void experts(const Layer<T>& layer, const Experts<T>& experts) {
    if (experts.grouped)
      route(experts, *experts.grouped);
    else
      route(experts);
    place_.all->wait();
    routed_.run(experts, base_.activation, routes_);
    routes_ += step_.rows * experts.each;
    const T* beside = layer.down.weight ? room_.x : nullptr;  // the experts have copies of these rows
    if (beside) network(layer, room_.x);
    each_row([&](int64_t row) {
      const int64_t at = row * base_.head.in;
      routed_.mix(row, step_.weights + row * experts.each, beside ? beside + at : nullptr, sums(NETWORK) + at);
    });
  }

  void route(const Experts<T>& experts) {
    T* logits = place_.own(room_.wide, room_.wide_width, experts.count);
    product(experts.router, room_.x, logits);
    each_row([&](int64_t row) {
      const int64_t at = row * experts.each;
      choose(logits + row * experts.count, experts, routes_ + at, step_.weights + at);
    });
  }

  // The rows in float32 and their logits use the buffer of adapters' sums: a router has no adapters.
  void route(const Experts<T>& experts, const Grouped& by) {
    const int64_t hidden = by.router.in, count = by.router.out, rows = place_.last - place_.first;
    float* x = room_.sums + place_.first * room_.wide_width;
    float* logits = x + rows * hidden;
    each_row([&](int64_t row) {
      const T* from = room_.x + row * hidden;
      float* to = x + (row - place_.first) * hidden;
      for (int64_t i = 0; i < hidden; ++i) to[i] = wide(from[i]);
    });
    multiply(x, hidden, rows, by.router, logits, count, place_.member, place_.members);
    place_.team->wait();
    each_row([&](int64_t row) {
      const int64_t at = row * experts.each;
      float* own = logits + (row - place_.first) * count;
      choose(own, by, experts, routes_ + at, step_.weights + at);
    });
  }

  template <typename F>
  void each_row(F act) {
    for (int64_t row = place_.first + place_.member; row < place_.last; row += place_.members) act(row);
    place_.team->wait();
  }

  void settle(const Norm<T>& norm) {
    each_row([&](int64_t row) { settle(row, norm, room_.x + row * base_.head.in); });
  }

  // hidden[row] += the latest product's output, itself normalised if the layer says so; x = hidden[row], normalised.
  void settle(int64_t row, const Norm<T>& norm, T* x) {
    const int64_t size = base_.head.in;
    T* hidden = room_.hidden + row * size;
    if (added_ != NOTHING) {
      T* delta = room_.delta + row * size;
      const bool plain = !*given_ && base_.added == 1;
      if (peers_ && plain) peers_->add(added_, row * size, hidden, size);
      if (peers_ && !plain) peers_->take(added_, row * size, delta, size);
      if (*given_) normalize(delta, delta, *given_, size, base_.epsilon);
      if (base_.added != 1) scale(delta, base_.added, size);
      if (!peers_ || !plain) add(hidden, delta, size);
    }
    if (norm)
      normalize(x, hidden, norm, size, base_.epsilon);
    else
      std::copy_n(hidden, size, x);
  }

  // Where outputs that are to be added go; each of several ranks has its own part.
  T* sums(Added added) const { return peers_ ? peers_->place(added, peers_->rank) : room_.delta; }

  // Sets what is to be added next, and its norm; waits until all ranks have computed their sums for this team's rows.
  void gather(Added added, const Norm<T>& given) {
    added_ = added, given_ = &given;
    if (peers_) meet();
  }

  // Waits for this team and for the teams of the other ranks with the same rows.
  void meet() const {
    ::meet(*peers_->meeting, 1 + place_.team_number, place_.members * int(peers_->count), peers_->patience_s);
  }

  // Waits until all ranks have shared the squares of their heads for this team's rows. Those of the previous layer have
  // been read by then: all ranks have met twice since.
  void tell_squares(const T* qkv, const Heads<T>& heads) {
    each_row([&](int64_t row) {
      peers_->squares[row * peers_->count + peers_->rank] = squares_of(qkv + row * heads.width(), heads);
    });
    meet();
  }

  // y = x W^T + b, plus every row's adapter.
  void product(const Linear<T>& linear, const T* x, T* y) {
    if (beside_.begin(linear, x)) place_.team->wait();
    const Panels panels(linear.panels(), place_.member, place_.members);
    Stream ahead = beside_.start(panels.count());
    multiply(x, linear.in, beside_.tiles(), linear, y, linear.out, panels, ahead);
    place_.team->wait();
    if (beside_.finish(y)) place_.team->wait();
  }

  void attend(const Layer<T>& layer, const Heads<T>& heads, T* attended) {
    const int64_t width = heads.width(), out = heads.heads * heads.dim;
    const int64_t* places = step_.places + layer.group * step_.rows;
    const Stretch* stretches = step_.stretches + layer.group * step_.stretch_count;
    T* qkv = place_.own(room_.wide, room_.wide_width, width);
    product(layer.qkv, room_.x, qkv);
    if (heads.joint() && peers_) tell_squares(qkv, heads);
    each_row([&](int64_t row) {
      T* own = qkv + row * width;
      SquareSums squares{};
      if (heads.joint()) squares = peers_ ? peers_->squares_of(row) : squares_of(own, heads);
      rope<T>(own, heads, step_.positions[row], places[row], layer.pool, squares);
    });
    if (divided_) place_.all->wait();
    // A page's heads are adjacent: a thread that reads one reads them all, unless other threads would then be idle.
    const int64_t share = step_.stretch_count >= 4 * place_.members ? heads.kv_heads : 1;
    int64_t turn = 0;
    for (int64_t at = 0; at < step_.stretch_count; ++at) {
      const Stretch each = within(stretches[at], place_);
      if (each.tokens <= 0) continue;
      for (int64_t first = 0; first < heads.kv_heads; first += share)
        if (turn++ % place_.members == place_.member)
          attend_block<T>(qkv + each.row * width, width, heads.heads / heads.kv_heads, int(each.tokens),
                          each.position, step_.tables + each.table, layer.pool, heads.kv_heads, first, first + share,
                          heads.dim, base_.scale, heads.sight, attended + each.row * out, out);
    }
    place_.team->wait();
  }

  void attend(const Layer<T>& layer, const Latent<T>& by, T* attended) {
    const int64_t made = layer.qkv.out, out = by.queries.out;
    const int64_t before = made - by.width() - (by.indexer ? by.indexer->made() : 0);
    T* x = place_.own(room_.wide, room_.wide_width, made);
    product(layer.qkv, room_.x, x);
    T* small = place_.own(room_.narrow, room_.narrow_width, before);
    each_row([&](int64_t row) {
      latents_.keep(by, row, x + row * made + before, layer.pool);
      if (by.query_norm) normalize(small + row * before, x + row * made, by.query_norm, before, by.epsilon);
    });
    if (by.indexer) find_tokens(layer, by, *by.indexer, small, x + before + by.width());
    if (by.query_norm) {
      T* queries = place_.own(room_.wide, room_.wide_width, out);
      product(by.queries, small, queries);
      latents_.absorb(by, queries, out);
    } else {
      latents_.absorb(by, x, made);
    }
    (divided_ ? place_.all : place_.team)->wait();
    latents_.attend(by, layer.pool, base_.scale);
    place_.team->wait();
    latents_.release(by, attended);
    place_.team->wait();
  }

  // Finds the tokens that each row attends to; `made` is the indexer's part of the layer's first product.
  void find_tokens(const Layer<T>& layer, const Latent<T>& by, const Indexer<T>& indexer, const T* small,
                   const T* made) {
    const int64_t width = indexer.queries.out;
    T* queries = place_.own(room_.latents, room_.latents_width, width);
    each_row([&](int64_t row) {
      keep_index(by, indexer, step_.positions[row], made + row * layer.qkv.out,
                 layer.pool + step_.places[row] * by.row + by.width());
    });
    product(indexer.queries, small, queries);
    if (divided_) place_.all->wait();
    int64_t turn = 0;
    for (int64_t at = 0; at < step_.stretch_count; ++at) {
      const Stretch each = within(step_.stretches[at], place_);
      for (int64_t token = by.dense(each.position, each.tokens); token < each.tokens; ++token) {
        const int64_t row = each.row + token;
        if (turn++ % place_.members == place_.member)
          choose_tokens(by, indexer, queries + row * width, made + row * layer.qkv.out + indexer.size,
                        each.position + token, step_.tables + each.table, layer.pool, room_.chosen + row * by.most);
      }
    }
    place_.team->wait();
  }

  const Base<T>& base_;
  const Step<T>& step_;
  const Room<T>& room_;
  const Peers<T>* peers_;
  const Place& place_;
  Beside<T> beside_;
  Latents<T> latents_;
  Routed<T> routed_;
  int32_t* routes_;  // of the next layer with experts
  Added added_ = NOTHING;
  const Norm<T>* given_ = nullptr;  // the norm of what is to be added
  const bool divided_;
  std::atomic<int64_t>& reached_;  // the layer at which the step ends
  std::chrono::steady_clock::duration waited_{};  // in total, for the adapter
};

// Whether several teams hold tokens of one sequence, and so must see each other's keys and values.
template <typename T>
bool divides(const Step<T>& step, const std::vector<int64_t>& cuts) {
  for (size_t cut = 1; cut + 1 < cuts.size(); ++cut) {
    int64_t before = -1, after = -2;
    for (int64_t at = 0; at < step.stretch_count; ++at) {
      const Stretch& each = step.stretches[at];
      if (each.row < cuts[cut] && each.row + each.tokens >= cuts[cut]) before = each.table;
      if (each.row <= cuts[cut] && each.row + each.tokens > cuts[cut]) after = each.table;
    }
    if (before == after) return true;
  }
  return false;
}

// Whether the step was completed; it is not if an adapter did not arrive.
template <typename T>
bool pass(const Base<T>& base, const Slots<T>& slots, const Step<T>& step, const Room<T>& room, const Peers<T>* peers) {
  std::unique_ptr<Barrier> all;
  std::vector<std::unique_ptr<Barrier>> teams;
  std::vector<int64_t> cuts;
  std::atomic<int64_t> reached{base.layer_count};
  bool divided = false;
  const int wanted = peers ? int(peers->threads) : omp_get_max_threads();
#pragma omp parallel num_threads(wanted)
  {
    const int threads = omp_get_num_threads(), thread = omp_get_thread_num();
#pragma omp single
    {
      const int count = count_teams<T>(threads, step.rows);
      all = std::make_unique<Barrier>(threads);
      for (int team = 0; team < count; ++team) {
        teams.push_back(std::make_unique<Barrier>(threads / count));
        cuts.push_back(step.rows * team / count);
      }
      cuts.push_back(step.rows);
      divided = divides(step, cuts);
    }
    const int members = threads / int(teams.size()), team = thread / members;
    const Place place{cuts[team], cuts[team + 1], thread % members, members,          thread,
                      threads,    team,           teams[team].get(), all.get()};
    Walk<T>(base, slots, step, room, peers, place, divided, reached).run();
  }
  return reached.load() == base.layer_count;
}
}  // namespace

#define MINT_PASS(NAME, T)                                                                                             \
  extern "C" int32_t mint_pass_##NAME(const Base<T>* base, const Slots<T>* slots, const Step<T>* step,                 \
                                      const Room<T>* room, const Peers<T>* peers) {                                    \
    return pass<T>(*base, *slots, *step, *room, peers);                                                                \
  }                                                                                                                    \
  /* weight [out, in] -> packed: `in` times as many numbers as `out` rounded up to a multiple of WIDTH */              \
  extern "C" void mint_pack_##NAME(const T* weight, int64_t out, int64_t in, T* packed) {                              \
    pack<T>(weight, out, in, packed);                                                                                  \
  }                                                                                                                    \
  /* y [rows, out] = x [rows, in] W^T + b */                                                                           \
  extern "C" void mint_multiply_##NAME(const T* x, int64_t rows, const Linear<T>* by, T* y) {                          \
    multiply<T>(x, by->in, rows, *by, y, by->out, 0, 1);                                                               \
  }
MINT_PASS(bfloat16, bf16)
MINT_PASS(float32, float)
