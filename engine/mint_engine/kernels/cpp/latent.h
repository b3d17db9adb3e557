// Multi-head latent attention over its compressed cache (DeepSeek-V2, arXiv 2405.04434, 2.1.2), absorbed: the key half
// of `kv_b_proj` maps queries to the latents' space, where they attend, and the value half maps the results back. A
// token's row in the cache, its latent and its rotated key, is thus read once for many heads. Letters in shapes: Q
// heads, K size of a head's key without its rotated part, V of its value, C latent size, E rotated size, R rank.
#pragma once
#include <vector>
#include "amx_latent.h"
#include "step.h"
#include "token_rows.h"
#include "team_parts.h"

constexpr int64_t LATENT_ROWS = 128;  // query rows of a work item: their sums fit the second-level cache

// Attention of `heads` heads and `tokens` tokens of a sequence from `position` on: queries [C + E] at `q`, a token's
// heads adjacent and tokens `ld` apart, are replaced by what they attend to [C]. `page_of` returns a page's 16 rows.
template <typename T, typename F>
void attend_latents(const Latent<T>& by, T* q, int64_t ld, int heads, int tokens, int64_t position, float scale,
                    F page_of) {
#ifdef MINT_AMX
  if constexpr (USES_AMX<T>)
    if (AmxLatentAttention::takes(by))
      return AmxLatentAttention(by, heads, tokens, position, scale).attend(q, ld, page_of);
#endif
  const int rows = tokens * heads;
  const int64_t width = by.width(), latent = by.latent;
  static thread_local Aligned<T> keys, values;
  static thread_local Aligned<float> sums, scores;
  static thread_local std::vector<VisibleTokens> seen;
  static thread_local std::vector<SoftmaxState> states;
  static thread_local std::vector<const T*> queries;
  keys.resize(PAGE * width), values.resize(PAGE * latent);
  sums.assign(rows * latent, 0.0f), scores.resize(rows * PAGE), seen.resize(rows);
  states.assign(rows, SoftmaxState{NO_SCORE, 0.0f}), queries.resize(rows);
  for (int row = 0; row < rows; ++row) queries[row] = q + (row / heads) * ld + (row % heads) * width;
  const int64_t pages = (position + tokens + PAGE - 1) / PAGE;
  for (int64_t page = 0; page < pages; ++page) {
    const TokenRows<T> from = page_of(page);
    const int64_t begin = page * PAGE;
    pack_keys(from, width, keys.data());
    pack_values(from, latent, values.data());
    const int skip = int(std::max<int64_t>(0, begin - position)) * heads;  // tokens before the page do not see it
    for (int row = skip; row < rows; ++row)
      seen[row] = {0, int(std::min<int64_t>(PAGE, position + row / heads + 1 - begin))};
    score<T>(queries.data() + skip, rows - skip, keys.data(), keys.data(), width, scale, scores.data());
    accumulate_page<T>(scores.data(), seen.data() + skip, states.data() + skip, rows - skip, values.data(),
                       values.data(), latent, sums.data() + skip * latent);
  }
  for (int row = 0; row < rows; ++row) {
    T* to = q + (row / heads) * ld + (row % heads) * width;
    const float inverse = 1.0f / states[row].sum;
    for (int64_t d = 0; d < latent; ++d) to[d] = narrow<T>(sums[row * latent + d] * inverse);
  }
}

// Latent attention of a team's rows, as one thread sees it; each thread has some of the heads.
template <typename T>
class LatentAttention {
 public:
  LatentAttention(const Slots<T>& slots, const Step<T>& step, const Workspace<T>& workspace, const Worker& worker)
      : slots_(slots), step_(step), workspace_(workspace), worker_(worker) {}

  // Writes a token's row to the cache, from what the layer's first product made of it [C + E].
  void write_row(const Latent<T>& by, int64_t row, const T* projected, T* pool) const {
    T* to = pool + step_.places[row] * by.row;
    normalize(to, projected, by.norm, by.latent, by.epsilon);
    rotate_into(projected + by.latent, by, step_.positions[row], by.pairs, to + by.latent);
  }

  // Maps queries [rows, Q (K + E)], `ld` apart, to the latents' space [rows, Q (C + E)].
  void absorb(const Latent<T>& by, const T* queries, int64_t ld) {
    const int64_t apart = by.heads * by.width();
    each_head(by, [&](int64_t head) {
      const T* q = queries + head * (by.nope + by.rotated);
      T* to = latents(by) + head * by.width();
      for (int64_t row = worker_.first; row < worker_.last; ++row)
        rotate_into(q + row * ld + by.nope, by, step_.positions[row], by.pairs, to + row * apart + by.latent);
      multiply(q + worker_.first * ld, ld, rows(), by.keys[head], to + worker_.first * apart, apart, 0, 1);
      each_adapter(by, [&](const Item& item, const LoraWeights<T>& pair) {
        const LoraShape down = {pair.shape.rank, by.nope, 0, pair.shape.scaling},
                        up = {pair.shape.rank, 0, by.latent, 0};
        add(q + item.start * ld, ld, part_of(by, pair, head, 0, by.nope), down, pair.a, up, to + item.start * apart,
            apart, int(item.rows));
      });
    });
  }

  void attend(const Latent<T>& by, const T* pool, float scale) {
    int64_t counter = 0;
    for (int64_t at = 0; at < step_.chunk_count; ++at) {
      const Chunk each = team_part(step_.chunks[at], worker_);
      const int32_t* table = step_.tables + each.table;
      const int64_t dense = by.dense(each.position, each.tokens);
      attend(by, {each.row, dense, each.position, each.table}, scale, counter,
             [&](int64_t page) { return TokenRows<T>{pool + int64_t(table[page]) * PAGE * by.row, by.row}; });
      for (int64_t row = each.row + dense; row < each.row + each.tokens; ++row) {
        const int32_t* selected = workspace_.selected + row * by.top_k;
        attend(by, {row, 1, by.top_k - 1, each.table}, scale, counter, [&](int64_t page) {
          return gathered(by, selected + page * PAGE, std::min<int64_t>(PAGE, by.top_k - page * PAGE), table, pool);
        });
      }
    }
  }

  // Maps what was attended to back to the heads' values [rows, Q V].
  void project_values(const Latent<T>& by, T* to) {
    const int64_t apart = by.heads * by.width(), out = by.heads * by.value;
    each_head(by, [&](int64_t head) {
      const T* from = latents(by) + head * by.width();
      T* values = to + head * by.value;
      multiply(from + worker_.first * apart, apart, rows(), by.values[head], values + worker_.first * out, out, 0, 1);
      each_adapter(by, [&](const Item& item, const LoraWeights<T>& pair) {
        const LoraShape down = {pair.shape.rank, by.latent, 0, pair.shape.scaling},
                        up = {pair.shape.rank, 0, by.value, 0};
        add(from + item.start * apart, apart, pair.a, down, part_of(by, pair, head, by.nope, by.value), up,
            values + item.start * out, out, int(item.rows));
      });
    });
  }

 private:
  int64_t rows() const { return worker_.last - worker_.first; }

  // Queries in the latents' space.
  T* latents(const Latent<T>& by) const {
    return worker_.team_rows(workspace_.latents, workspace_.latents_width, by.heads * by.width());
  }

  // Attends with this thread's heads, which alternate with the others'. A work item's heads share one read of the
  // cache; items have many heads, unless threads would then be idle.
  template <typename F>
  void attend(const Latent<T>& by, const Chunk& each, float scale, int64_t& counter, F page_of) const {
    if (each.tokens <= 0) return;
    const int64_t apart = by.heads * by.width(), members = worker_.members;
    const int64_t share = step_.chunk_count >= 4 * members ? by.heads : (by.heads + members - 1) / members;
    const int64_t most = std::min(share, std::max<int64_t>(1, LATENT_ROWS / each.tokens));
    for (int64_t head = 0; head < by.heads; head += most)
      if (counter++ % members == worker_.member)
        attend_latents(by, latents(by) + each.row * apart + head * by.width(), apart,
                       int(std::min(most, by.heads - head)), int(each.tokens), each.position, scale, page_of);
  }

  // Gathers the rows of at most 16 tokens of a sequence; the next call overwrites them.
  TokenRows<T> gathered(const Latent<T>& by, const int32_t* tokens, int64_t count, const int32_t* table,
                        const T* pool) {
    gathered_.resize(PAGE * by.width());
    for (int64_t n = 0; n < count; ++n) {
      const int64_t place = int64_t(table[tokens[n] / PAGE]) * PAGE + tokens[n] % PAGE;
      std::copy_n(pool + place * by.row, by.width(), gathered_.data() + n * by.width());
    }
    return {gathered_.data(), by.width()};
  }

  template <typename F>
  void each_head(const Latent<T>& by, F act) const {
    const int64_t first = by.heads * worker_.member / worker_.members;
    for (int64_t head = first; head < by.heads * (worker_.member + 1) / worker_.members; ++head) act(head);
  }

  // Calls `act` for each of the team's items whose adapter adds to `kv_b_proj`: A [R, C], B [R, Q (K + V)].
  template <typename F>
  void each_adapter(const Latent<T>& by, F act) const {
    if (by.module < 0) return;
    const Target whole = {by.module, 0, by.latent, by.heads * (by.nope + by.value)};
    for (int64_t at = 0; at < step_.item_count; ++at) {
      const Item item = team_part(step_.items[at], worker_);
      if (item.rows <= 0) continue;
      const LoraWeights<T> pair = lora_weights(slots_, item.slot, whole);
      if (pair.a) act(item, pair);
    }
  }

  // Copies from B `count` of a head's outputs, `from` on -> [R, count]. The next call overwrites them.
  const T* part_of(const Latent<T>& by, const LoraWeights<T>& pair, int64_t head, int64_t from, int64_t count) {
    part_.resize(pair.shape.rank * count);
    const T* b = pair.b() + head * (by.nope + by.value) + from;
    for (int64_t r = 0; r < pair.shape.rank; ++r) std::copy_n(b + r * pair.shape.out, count, part_.data() + r * count);
    return part_.data();
  }

  // y += (x down^T) up
  static void add(const T* x, int64_t ldx, const T* down, const LoraShape& first, const T* up, const LoraShape& second,
                  T* y, int64_t ldy, int rows) {
    Middle<T> middle[ITEM_ROWS * MAX_RANK];
    PrefetchRange nothing;
    shrink(x, ldx, rows, down, first, middle, even(first.rank), nothing);
    expand<true>(y, ldy, rows, up, second, middle, even(first.rank), nothing);
  }

  const Slots<T>& slots_;
  const Step<T>& step_;
  const Workspace<T>& workspace_;
  const Worker& worker_;
  Aligned<T> part_, gathered_;
};
