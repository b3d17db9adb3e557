// Grouped products of training: rows times frozen weights, plus each policy's adapter, in one call for all experts, or
// for the one weight of a linear. A weight is packed one block at a time and then multiplied by many rows. A sum is
// computed in the order of its inputs, so that a row's numbers depend on nothing but itself.
#include <omp.h>
#include "amx_grouped_product.h"
#include "product.h"
#include "grouped_product.h"

namespace {
// Rows of one run within one tile; adapters `from` to `to` add to them.
struct Piece {
  int64_t row, rows, from, to;
};

// Some rows of a run, to be multiplied by its adapter's A (backward: B).
struct ShrinkItem {
  int64_t run, first, rows;
};

// sums [N, WIDTH] = x times a panel of `depth` inputs (unless `FRESH`, +=). Meanwhile prefetches `ahead`.
template <bool FRESH, int N, typename T>
inline void sum_inputs(const Input<T>* x, int64_t ldx, const T* panel, int64_t depth, float* sums, RowPrefetch& ahead) {
  Lanes own[N][VECTORS];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) own[n][v] = FRESH ? zero() : load(sums + n * WIDTH + v * LANES);
  const auto step = [&](int64_t i, const auto& input) {
    Weights<T> weights[VECTORS];
    for (int v = 0; v < VECTORS; ++v) weights[v] = load_weights(panel + i * WIDTH + v * LANES * GROUP<T>);
    for (int n = 0; n < N; ++n) {
      const Weights<T> one = input(x + n * ldx + i);
      for (int v = 0; v < VECTORS; ++v) own[n][v] = multiply_add_inputs(weights[v], one, own[n][v]);
    }
  };
  const auto whole_group = [](const Input<T>* at) { return spread_input(at); };
  constexpr int64_t STEPS = 4;  // for each prefetched line
  const int64_t whole = depth / GROUP<T> * GROUP<T>;
  RowPrefetch local = ahead;
  int64_t i = 0;
  for (; i + STEPS * GROUP<T> <= whole; i += STEPS * GROUP<T>) {
    local.prefetch();
    for (int64_t s = 0; s < STEPS; ++s) step(i + s * GROUP<T>, whole_group);
  }
  for (; i < whole; i += GROUP<T>) step(i, whole_group);
  ahead = local;
  if constexpr (GROUP<T> == 2)
    if (whole < depth)
      step(whole, [](const T* at) {
        const T pair[] = {*at, narrow<T>(0.0f)};
        return spread_input(pair);
      });
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < VECTORS; ++v) store(sums + n * WIDTH + v * LANES, own[n][v]);
}

template <int N, typename T>
inline void sum_rows(int64_t rows, const Input<T>* x, int64_t ldx, const T* panel, int64_t depth, float* sums,
                     bool fresh, RowPrefetch& ahead) {
  if constexpr (N > 0) {
    if (rows != N)
      sum_rows<N - 1, T>(rows, x, ldx, panel, depth, sums, fresh, ahead);
    else if (fresh)
      sum_inputs<true, N, T>(x, ldx, panel, depth, sums, ahead);
    else
      sum_inputs<false, N, T>(x, ldx, panel, depth, sums, ahead);
  }
}

// sums [rows, WIDTH] of a block's rows. Meanwhile prefetches the rest of its next weight, then its next rows.
template <typename T>
void sum_block(const Inputs<T>& from, int64_t rows, const T* panel, int64_t depth, float* sums, bool fresh,
               RowPrefetch& weight, RowPrefetch& x) {
  for (int64_t row = 0; row < rows; row += TILE)
    sum_rows<TILE, T>(std::min<int64_t>(TILE, rows - row), from.rows + row * from.ld, from.ld, panel, depth,
                      sums + row * WIDTH, fresh, weight.rows ? weight : x);
}

// sums [rows, WIDTH], for outputs from `first` on, += what an adapter adds to them.
template <typename T>
void add_ranks(const LoraEpilogue<T>& epilogue, int64_t first, int64_t rows, float* sums) {
  const int64_t from = std::max(first, epilogue.column), to = std::min(first + WIDTH, epilogue.column + epilogue.out);
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t r = 0; r < epilogue.rank; ++r) {
      const float weight = widen(epilogue.middle[n * epilogue.pitch + r]);
      const T* b = epilogue.b + r * epilogue.out - epilogue.column;
#pragma omp simd
      for (int64_t o = from; o < to; ++o) sums[n * WIDTH + o - first] += weight * widen(b[o]);
    }
}

// y [rows, width], for outputs from `first` on, = sums + what adapters add + bias, rounded once.
template <int N, typename T>
inline void store_rows(int64_t rows, float* sums, const LoraEpilogue<T>* epilogues, int64_t count, int64_t first,
                       const T* bias, int64_t width, T* y, int64_t ldy) {
  if constexpr (N > 0) {
    if (rows != N) return store_rows<N - 1>(rows, sums, epilogues, count, first, bias, width, y, ldy);
    Lanes own[N][VECTORS];
    if constexpr (!FUSES_LORA<T>)
      for (int64_t at = 0; at < count; ++at) add_ranks(epilogues[at], first, N, sums);
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < VECTORS; ++v) own[n][v] = load(sums + n * WIDTH + v * LANES);
    if constexpr (FUSES_LORA<T>)
      for (int64_t at = 0; at < count; ++at) add_epilogue(epilogues[at], first, own);
    store_tile<N, T>(own, bias, width, y, ldy, nullptr);
  }
}

// One product, cut into blocks that threads take.
template <Direction DIRECTION, typename T>
class Product {
 public:
  explicit Product(const GroupedProduct<T>& call) : call_(call) {}

  void run(const int64_t* bounds, int64_t experts) {
    const size_t threads = size_t(omp_get_max_threads());
    plan(bounds, experts, threads);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 4)
      for (size_t at = 0; at < shrink_items_.size(); ++at) shrink_rows(shrink_items_[at]);
#pragma omp for schedule(dynamic, 1)
      for (size_t at = 0; at < blocks_.size(); ++at)
        multiply(blocks_[at], at + threads < blocks_.size() ? &blocks_[at + threads] : nullptr);
    }
  }

 private:
  // Blocks for each thread, if there can be as many, so that all threads end at about the same time.
  static constexpr size_t BLOCKS = USES_AMX<T> ? 3 : 4;

  // The largest block: its sums fit the second-level cache; with AMX, its panels fit half of it, in pairs.
  struct Size {
    int64_t rows, panels;
  };

  Size size() const {
    constexpr int64_t ROWS = 1024, PANELS = 6, HALF = 1 << 20;  // bytes
    if (!USES_AMX<T>) return {64 * TILE, 4};
    const int64_t held = HALF / (panel_size<T>(call_.in) * int64_t(sizeof(T)));
    return {ROWS, held > 1 ? std::min(held / 2 * 2, PANELS) : 1};
  }

  // Cuts a block's rows into pieces where a tile or a run ends; `at`: the first adapter that does not end before them.
  void cut_pieces(Block& block, int64_t& at) {
    block.first_piece = int64_t(pieces_.size());
    for (int64_t row = block.first, tile = std::min(row + TILE, block.last); row < block.last;) {
      while (at < call_.count && call_.runs[at].first + call_.runs[at].rows <= row) ++at;
      int64_t to = at;  // the first that adds nothing to this row
      while (to < call_.count && call_.runs[to].first <= row) ++to;
      const int64_t run = to > at            ? call_.runs[at].first + call_.runs[at].rows
                          : at < call_.count ? call_.runs[at].first
                                             : block.last;
      const int64_t end = std::min(tile, run);
      pieces_.push_back({row, end - row, at, to});
      row = end;
      if (row == tile) tile = std::min(row + TILE, block.last);
    }
    block.last_piece = int64_t(pieces_.size());
  }

  // Cuts each expert's rows into blocks of full tiles. With AMX, blocks find runs themselves and need no pieces.
  void plan(const int64_t* bounds, int64_t experts, size_t threads) {
    int64_t at = 0;
    std::vector<Block> whole;  // with all panels
    for (int64_t expert = 0; expert < experts; ++expert)
      for (int64_t first = bounds[expert]; first < bounds[expert + 1]; first += most_.rows) {
        whole.push_back({expert, first, std::min(first + most_.rows, bounds[expert + 1]), 0, 0, 0, 0});
        if (!USES_AMX<T>) cut_pieces(whole.back(), at);
      }
    const int64_t panels = (call_.out + WIDTH - 1) / WIDTH;
    int64_t most = most_.panels;
    while (most > 1 && whole.size() * (panels / most) < BLOCKS * threads) most = most > 2 ? most / 4 * 2 : 1;
    for (Block each : whole)
      for (each.panel = 0; each.panel < panels; each.panel += most) {
        each.panels = std::min(most, panels - each.panel);
        blocks_.push_back(each);
      }
    for (int64_t own = 0; own < call_.count; ++own) {
      const int64_t rows = item_rows(call_.runs[own]);
      for (int64_t first = 0; first < call_.runs[own].rows; first += rows)
        shrink_items_.push_back({own, first, std::min(rows, call_.runs[own].rows - first)});
    }
  }

  // The number of inputs of a run's shrink product.
  int64_t shrink_depth(const AdapterRun<T>& own) const {
    return DIRECTION == Direction::FORWARD ? call_.in : own.width;
  }

  // Whether they fill AMX registers.
  bool uses_amx(const AdapterRun<T>& own) const {
#ifdef MINT_AMX
    if constexpr (USES_AMX<T>) return shrink_depth(own) % AMX_DEPTH == 0;
#endif
    return false;
  }

  // Rows of a work item of a shrink product.
  int64_t item_rows(const AdapterRun<T>& own) const { return uses_amx(own) ? 8 * ITEM_ROWS : ITEM_ROWS; }

  void shrink_rows(const ShrinkItem& rows) const {
    const AdapterRun<T>& own = call_.runs[rows.run];
    const bool forward = DIRECTION == Direction::FORWARD;
    const LoraShape shape{own.rank, shrink_depth(own), 0, float(own.scaling)};
    const T *x = call_.x + (own.first + rows.first) * call_.in + (forward ? 0 : own.column),
            *by = forward ? own.a : own.b;
    Middle<T>* middle = call_.middles + own.middle + rows.first * own.pitch();
#ifdef MINT_AMX
    if constexpr (USES_AMX<T>)
      if (uses_amx(own)) return shrink_run(x, call_.in, rows.rows, by, shape, middle, own.pitch());
#endif
    PrefetchRange nothing;
    shrink(x, call_.in, int(rows.rows), by, shape, middle, own.pitch(), nothing);
  }

  RowPrefetch weight_rows(const Block& block, int64_t i) const {
    const int64_t depth = std::min(DEPTH, call_.in - i);
    const int64_t width = std::min(block.panels * WIDTH, call_.out - block.panel * WIDTH);
    const T* from = weight_of<DIRECTION>(call_, block, i);
    return DIRECTION == Direction::FORWARD ? prefetch_rows(from, call_.pitch, depth, width)
                                           : prefetch_rows(from, call_.pitch, width, depth);
  }

  void multiply(const Block& block, const Block* next) const {
#ifdef MINT_AMX
    if constexpr (USES_AMX<T>) return multiply_block<DIRECTION>(call_, block, blocks_.back().last);
#endif
    static thread_local Aligned<T> panels;
    static thread_local Aligned<float> sums;
    const int64_t in = call_.in, rows = block.last - block.first;
    if (int64_t(panels.size()) < most_.panels * DEPTH * WIDTH) panels.resize(most_.panels * DEPTH * WIDTH);
    if (int64_t(sums.size()) < most_.panels * most_.rows * WIDTH) sums.resize(most_.panels * most_.rows * WIDTH);
    for (int64_t i = 0; i < in; i += DEPTH) {
      const int64_t depth = std::min(DEPTH, in - i), then = i + depth;
      RowPrefetch weight, x;
      if (then < in) {
        weight = weight_rows(block, then);
        x = prefetch_rows(call_.x + block.first * in + then, in, std::min(DEPTH, in - then), rows);
      } else if (next) {
        weight = weight_rows(*next, 0);
      }
      const Inputs<T> from = inputs(call_.x + block.first * in + i, in, rows, depth);
      pack_block<DIRECTION>(call_, block, i, depth, panels.data());
      for (int64_t p = 0; p < block.panels; ++p)
        sum_block(from, rows, panels.data() + p * panel_size<T>(depth), depth, sums.data() + p * most_.rows * WIDTH,
                  i == 0, weight, x);
    }
    store_block(block, sums.data());
  }

  // Writes a block's sums and what adapters add to them.
  void store_block(const Block& block, float* sums) const {
    std::vector<LoraEpilogue<T>> epilogues;
    for (int64_t at = block.first_piece; at < block.last_piece; ++at) {
      const Piece& piece = pieces_[at];
      epilogues.clear();
      for (int64_t own = piece.from; own < piece.to; ++own)
        epilogues.push_back(epilogue_of<DIRECTION>(call_, call_.runs[own], piece.row));
      for (int64_t p = 0; p < block.panels; ++p) {
        const int64_t first = (block.panel + p) * WIDTH;
        store_rows<TILE>(piece.rows, sums + (p * most_.rows + piece.row - block.first) * WIDTH, epilogues.data(),
                         int64_t(epilogues.size()), first, call_.bias ? call_.bias + first : nullptr, call_.out - first,
                         call_.y + piece.row * call_.out + first, call_.out);
      }
    }
  }

  // Inputs of a step: a panel of them fits the first-level cache.
  static constexpr int64_t DEPTH = 512 / int64_t(sizeof(T));
  const GroupedProduct<T> call_;
  const Size most_ = size();
  std::vector<Piece> pieces_;
  std::vector<Block> blocks_;
  std::vector<ShrinkItem> shrink_items_;
};
}  // namespace

// Rows bounds[e] to bounds[e + 1] are multiplied by expert e's weight [out, in]: weights are `apart`, rows of a weight
// `pitch` apart; bias [out], null: none. `runs` is in the order of rows; a run's adapters are adjacent.
#define MINT_GROUPED(NAME, T)                                                                                          \
  /* x [R, in] -> y [R, out], middles */                                                                               \
  extern "C" void mint_multiply_grouped_##NAME(const T* x, const int64_t* bounds, int64_t experts, const T* weight,    \
                                               int64_t apart, int64_t pitch, const T* bias, int64_t in, int64_t out,   \
                                               const AdapterRun<T>* runs, int64_t count, Middle<T>* middles, T* y) {   \
    Product<Direction::FORWARD, T>({x, weight, apart, pitch, bias, in, out, runs, count, middles, y})                  \
        .run(bounds, experts);                                                                                         \
  }                                                                                                                    \
  /* dy [R, out] -> dx [R, in]; dy B^T scaling, laid out as middles are */                                             \
  extern "C" void mint_multiply_grouped_back_##NAME(const T* dy, const int64_t* bounds, int64_t experts,               \
                                                    const T* weight, int64_t apart, int64_t pitch, int64_t in,         \
                                                    int64_t out, const AdapterRun<T>* runs, int64_t count,             \
                                                    Middle<T>* backs, T* dx) {                                         \
    Product<Direction::BACKWARD, T>({dy, weight, apart, pitch, nullptr, out, in, runs, count, backs, dx})              \
        .run(bounds, experts);                                                                                         \
  }
MINT_GROUPED(bfloat16, bf16)
MINT_GROUPED(float32, float)
