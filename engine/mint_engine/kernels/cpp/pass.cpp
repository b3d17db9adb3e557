// One step of a llama-like base: from tokens to logits, through all layers, in one call without the interpreter.
#include <omp.h>

#include <memory>
#include <vector>

#include "adapter_products.h"
#include "indexer.h"
#include "latent.h"
#include "routed_experts.h"
#include "step.h"
#include "team.h"

namespace {
template <typename T>
class StepRunner {
 public:
  StepRunner(const Base<T>& base, const Slots<T>& slots, const Step<T>& step, const Workspace<T>& workspace,
             const Peers<T>* peers, const Worker& worker, bool sequences_split, std::atomic<int64_t>& reached)
      : base_(base), step_(step), workspace_(workspace), peers_(peers), worker_(worker),
        adapters_(slots, step, workspace, worker), latents_(slots, step, workspace, worker),
        routed_(slots, step, workspace, worker), routes_(step.routes), sequences_split_(sequences_split),
        reached_(reached) {}

  // Runs all layers, or ends before one whose part of an adapter does not arrive in time; `reached` is then that layer.
  void run() {
    const int64_t hidden = base_.head.in;
    each_row([&](int64_t row) {
      T* own = workspace_.hidden + row * hidden;
      std::copy_n(base_.embedding + step_.tokens[row] * hidden, hidden, own);
      if (base_.embedding_scale != 1) scale(own, base_.embedding_scale, hidden);
    });
    for (int64_t at = 0; at < base_.layer_count; ++at) {
      if (step_.arrival && !arrives(at)) return;
      layer(base_.layers[at]);
    }
    worker_.all->wait();
    for (int64_t at = worker_.thread; at < step_.logit_row_count; at += worker_.threads)
      add_and_normalize(step_.logit_rows[at], base_.norm, workspace_.x + at * hidden);
    worker_.all->wait();
    multiply(workspace_.x, base_.head.in, step_.logit_row_count, base_.head, step_.logits, step_.logits_width,
             worker_.thread, worker_.threads);
    if (base_.logit_divisor || base_.logit_cap) scale_logits();
    if (peers_) ::wait_at_barrier(*peers_->barriers, 0, worker_.threads * int(peers_->count), peers_->timeout_s);
  }

 private:
  // One thread waits; all learn the result for this layer, even if they look when it already waits for the next.
  bool arrives(int64_t layer) {
    if (worker_.thread == 0 && !await(*step_.arrival, layer, waited_)) reached_.store(layer, std::memory_order_relaxed);
    worker_.all->wait();
    return reached_.load(std::memory_order_relaxed) > layer;
  }

  // Scales and caps the logits; each thread takes a part of their columns.
  void scale_logits() {
    worker_.all->wait();
    const int64_t first = base_.head.out * worker_.thread / worker_.threads;
    const int64_t size = base_.head.out * (worker_.thread + 1) / worker_.threads - first;
    for (int64_t row = 0; row < step_.logit_row_count; ++row) {
      T* logits = step_.logits + row * step_.logits_width + first;
      if (base_.logit_divisor) scale(logits, 1.0f / base_.logit_divisor, size);
      if (base_.logit_cap) soft_cap(logits, size, base_.logit_cap);
    }
  }

  // What is still to be added to the residual stream.
  enum Pending { ATTENTION, NETWORK, NOTHING };

  void layer(const Layer<T>& layer) {
    T* attended = worker_.team_rows(workspace_.narrow, workspace_.narrow_width, layer.output.in);
    add_and_normalize(layer.attention_norm);
    if (layer.latent)
      attend(layer, *layer.latent, attended);
    else
      attend(layer, layer.heads, attended);
    product(layer.output, attended, sums(ATTENTION));
    set_pending(ATTENTION, layer.post_attention_norm);
    add_and_normalize(layer.mlp_norm);
    if (layer.experts)
      experts(layer, *layer.experts);
    else
      network(layer, sums(NETWORK));
    set_pending(NETWORK, layer.post_mlp_norm);
  }

  void network(const Layer<T>& layer, T* to) {
    const int64_t inner = layer.down.in;
    T* gate_up = worker_.team_rows(workspace_.wide, workspace_.wide_width, 2 * inner);
    T* gated = worker_.team_rows(workspace_.narrow, workspace_.narrow_width, inner);
    product(layer.gate_up, workspace_.x, gate_up);
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
    worker_.all->wait();
    routed_.run(experts, base_.activation, routes_);
    routes_ += step_.rows * experts.top_k;
    const T* shared = layer.down.weight ? workspace_.x : nullptr;  // the experts have copies of these rows
    if (shared) network(layer, workspace_.x);
    each_row([&](int64_t row) {
      const int64_t at = row * base_.head.in;
      routed_.combine(row, step_.weights + row * experts.top_k, shared ? shared + at : nullptr, sums(NETWORK) + at);
    });
  }

  void route(const Experts<T>& experts) {
    T* logits = worker_.team_rows(workspace_.wide, workspace_.wide_width, experts.count);
    product(experts.router, workspace_.x, logits);
    each_row([&](int64_t row) {
      const int64_t at = row * experts.top_k;
      route_row(logits + row * experts.count, experts, routes_ + at, step_.weights + at);
    });
  }

  // The rows in float32 and their logits use the buffer of adapters' sums: a router has no adapters.
  void route(const Experts<T>& experts, const GroupedRouter& by) {
    const int64_t hidden = by.router.in, count = by.router.out, rows = worker_.last - worker_.first;
    float* x = workspace_.sums + worker_.first * workspace_.wide_width;
    float* logits = x + rows * hidden;
    each_row([&](int64_t row) {
      const T* from = workspace_.x + row * hidden;
      float* to = x + (row - worker_.first) * hidden;
      for (int64_t i = 0; i < hidden; ++i) to[i] = widen(from[i]);
    });
    multiply(x, hidden, rows, by.router, logits, count, worker_.member, worker_.members);
    worker_.team->wait();
    each_row([&](int64_t row) {
      const int64_t at = row * experts.top_k;
      float* own = logits + (row - worker_.first) * count;
      route_row(own, by, experts, routes_ + at, step_.weights + at);
    });
  }

  template <typename F>
  void each_row(F act) {
    for (int64_t row = worker_.first + worker_.member; row < worker_.last; row += worker_.members) act(row);
    worker_.team->wait();
  }

  void add_and_normalize(const Norm<T>& norm) {
    each_row([&](int64_t row) { add_and_normalize(row, norm, workspace_.x + row * base_.head.in); });
  }

  // hidden[row] += the latest product's output, itself normalised if the layer says so; x = hidden[row], normalised.
  void add_and_normalize(int64_t row, const Norm<T>& norm, T* x) {
    const int64_t size = base_.head.in;
    T* hidden = workspace_.hidden + row * size;
    if (pending_ != NOTHING) {
      T* delta = workspace_.delta + row * size;
      const bool plain = !*pending_norm_ && base_.residual_scale == 1;
      if (peers_ && plain) peers_->add(pending_, row * size, hidden, size);
      if (peers_ && !plain) peers_->sum_into(pending_, row * size, delta, size);
      if (*pending_norm_) normalize(delta, delta, *pending_norm_, size, base_.epsilon);
      if (base_.residual_scale != 1) scale(delta, base_.residual_scale, size);
      if (!peers_ || !plain) add(hidden, delta, size);
    }
    if (norm)
      normalize(x, hidden, norm, size, base_.epsilon);
    else
      std::copy_n(hidden, size, x);
  }

  // Where outputs that are to be added go; each of several ranks has its own part.
  T* sums(Pending pending) const { return peers_ ? peers_->place(pending, peers_->rank) : workspace_.delta; }

  // Sets what is to be added next, and its norm; waits until all ranks have computed their sums for this team's rows.
  void set_pending(Pending pending, const Norm<T>& norm) {
    pending_ = pending, pending_norm_ = &norm;
    if (peers_) wait_for_ranks();
  }

  // Waits for this team and for the teams of the other ranks with the same rows.
  void wait_for_ranks() const {
    ::wait_at_barrier(*peers_->barriers, 1 + worker_.team_number, worker_.members * int(peers_->count),
                      peers_->timeout_s);
  }

  // Waits until all ranks have shared the squares of their heads for this team's rows. Those of the previous layer have
  // been read by then: all ranks have met twice since.
  void share_squares(const T* qkv, const Heads<T>& heads) {
    each_row([&](int64_t row) {
      peers_->squares[row * peers_->count + peers_->rank] = squares_of(qkv + row * heads.width(), heads);
    });
    wait_for_ranks();
  }

  // y = x W^T + b, plus every row's adapter.
  void product(const Linear<T>& linear, const T* x, T* y) {
    if (adapters_.begin(linear, x)) worker_.team->wait();
    const Panels panels(linear.panels(), worker_.member, worker_.members);
    PrefetchSchedule ahead = adapters_.start(panels.count());
    multiply(x, linear.in, adapters_.tiles(), linear, y, linear.out, panels, ahead);
    worker_.team->wait();
    if (adapters_.finish(y)) worker_.team->wait();
  }

  void attend(const Layer<T>& layer, const Heads<T>& heads, T* attended) {
    const int64_t width = heads.width(), out = heads.heads * heads.dim;
    const int64_t* places = step_.places + layer.group * step_.rows;
    const Chunk* chunks = step_.chunks + layer.group * step_.chunk_count;
    T* qkv = worker_.team_rows(workspace_.wide, workspace_.wide_width, width);
    product(layer.qkv, workspace_.x, qkv);
    if (heads.joint() && peers_) share_squares(qkv, heads);
    each_row([&](int64_t row) {
      T* own = qkv + row * width;
      SquareSums squares{};
      if (heads.joint()) squares = peers_ ? peers_->squares_of(row) : squares_of(own, heads);
      rope<T>(own, heads, step_.positions[row], places[row], layer.pool, squares);
    });
    if (sequences_split_) worker_.all->wait();
    // A page's heads are adjacent: a thread that reads one reads them all, unless other threads would then be idle.
    const int64_t share = step_.chunk_count >= 4 * worker_.members ? heads.kv_heads : 1;
    int64_t counter = 0;
    for (int64_t at = 0; at < step_.chunk_count; ++at) {
      const Chunk each = team_part(chunks[at], worker_);
      if (each.tokens <= 0) continue;
      for (int64_t first = 0; first < heads.kv_heads; first += share)
        if (counter++ % worker_.members == worker_.member)
          attend_block<T>(qkv + each.row * width, width, heads.heads / heads.kv_heads, int(each.tokens), each.position,
                          step_.tables + each.table, layer.pool, heads.kv_heads, first, first + share, heads.dim,
                          base_.scale, heads.variant, attended + each.row * out, out);
    }
    worker_.team->wait();
  }

  void attend(const Layer<T>& layer, const Latent<T>& by, T* attended) {
    const int64_t projected_width = layer.qkv.out, out = by.queries.out;
    const int64_t before = projected_width - by.width() - (by.indexer ? by.indexer->projected_width() : 0);
    T* x = worker_.team_rows(workspace_.wide, workspace_.wide_width, projected_width);
    product(layer.qkv, workspace_.x, x);
    T* compressed = worker_.team_rows(workspace_.narrow, workspace_.narrow_width, before);
    each_row([&](int64_t row) {
      latents_.write_row(by, row, x + row * projected_width + before, layer.pool);
      if (by.query_norm)
        normalize(compressed + row * before, x + row * projected_width, by.query_norm, before, by.epsilon);
    });
    if (by.indexer) find_tokens(layer, by, *by.indexer, compressed, x + before + by.width());
    if (by.query_norm) {
      T* queries = worker_.team_rows(workspace_.wide, workspace_.wide_width, out);
      product(by.queries, compressed, queries);
      latents_.absorb(by, queries, out);
    } else {
      latents_.absorb(by, x, projected_width);
    }
    (sequences_split_ ? worker_.all : worker_.team)->wait();
    latents_.attend(by, layer.pool, base_.scale);
    worker_.team->wait();
    latents_.project_values(by, attended);
    worker_.team->wait();
  }

  // Finds the tokens that each row attends to; `projected` is the indexer's part of the layer's first product.
  void find_tokens(const Layer<T>& layer, const Latent<T>& by, const Indexer<T>& indexer, const T* compressed,
                   const T* projected) {
    const int64_t width = indexer.queries.out;
    T* queries = worker_.team_rows(workspace_.latents, workspace_.latents_width, width);
    each_row([&](int64_t row) {
      write_index_key(by, indexer, step_.positions[row], projected + row * layer.qkv.out,
                      layer.pool + step_.places[row] * by.row + by.width());
    });
    product(indexer.queries, compressed, queries);
    if (sequences_split_) worker_.all->wait();
    int64_t counter = 0;
    for (int64_t at = 0; at < step_.chunk_count; ++at) {
      const Chunk each = team_part(step_.chunks[at], worker_);
      for (int64_t token = by.dense(each.position, each.tokens); token < each.tokens; ++token) {
        const int64_t row = each.row + token;
        if (counter++ % worker_.members == worker_.member)
          select_tokens(by, indexer, queries + row * width, projected + row * layer.qkv.out + indexer.size,
                        each.position + token, step_.tables + each.table, layer.pool,
                        workspace_.selected + row * by.top_k);
      }
    }
    worker_.team->wait();
  }

  const Base<T>& base_;
  const Step<T>& step_;
  const Workspace<T>& workspace_;
  const Peers<T>* peers_;
  const Worker& worker_;
  AdapterProducts<T> adapters_;
  LatentAttention<T> latents_;
  RoutedExperts<T> routed_;
  int32_t* routes_;  // of the next layer with experts
  Pending pending_ = NOTHING;
  const Norm<T>* pending_norm_ = nullptr;  // the norm of what is to be added
  const bool sequences_split_;
  std::atomic<int64_t>& reached_;  // the layer at which the step ends
  std::chrono::steady_clock::duration waited_{};  // in total, for the adapter
};

// Whether several teams hold tokens of one sequence, and so must see each other's keys and values.
template <typename T>
bool splits_sequences(const Step<T>& step, const std::vector<int64_t>& cuts) {
  for (size_t cut = 1; cut + 1 < cuts.size(); ++cut) {
    int64_t before = -1, after = -2;
    for (int64_t at = 0; at < step.chunk_count; ++at) {
      const Chunk& each = step.chunks[at];
      if (each.row < cuts[cut] && each.row + each.tokens >= cuts[cut]) before = each.table;
      if (each.row <= cuts[cut] && each.row + each.tokens > cuts[cut]) after = each.table;
    }
    if (before == after) return true;
  }
  return false;
}

// Whether the step was completed; it is not if an adapter did not arrive.
template <typename T>
bool pass(const Base<T>& base, const Slots<T>& slots, const Step<T>& step, const Workspace<T>& workspace,
          const Peers<T>* peers) {
  std::unique_ptr<Barrier> all;
  std::vector<std::unique_ptr<Barrier>> teams;
  std::vector<int64_t> cuts;
  std::atomic<int64_t> reached{base.layer_count};
  bool sequences_split = false;
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
      sequences_split = splits_sequences(step, cuts);
    }
    const int members = threads / int(teams.size()), team = thread / members;
    const Worker worker{cuts[team], cuts[team + 1], thread % members,  members,  thread,
                        threads,    team,           teams[team].get(), all.get()};
    StepRunner<T>(base, slots, step, workspace, peers, worker, sequences_split, reached).run();
  }
  return reached.load() == base.layer_count;
}
}  // namespace

#define MINT_PASS(NAME, T)                                                                                             \
  extern "C" int32_t mint_pass_##NAME(const Base<T>* base, const Slots<T>* slots, const Step<T>* step,                 \
                                      const Workspace<T>* workspace, const Peers<T>* peers) {                          \
    return pass<T>(*base, *slots, *step, *workspace, peers);                                                           \
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
