// The backward of a decoder layer's row-wise operations between products, and the gradients of A and B. Inner sums are
// float; results are rounded once.
#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>
#include "adapter_run.h"
#include "aligned.h"
#include "activation.h"
#include "amx_gemm.h"
#include "float_gemm.h"

namespace {
// dx = inv (g - x inv^2 mean(g x)) with g = dy weight; added to `to`, or stored there.
template <typename T, typename W>
void norm_back_row(const T* dy, const T* x, const W* weight, T* to, int64_t size, float epsilon, bool add) {
  const float inverse = inverse_rms(x, size, epsilon);
  float both = 0;
#pragma omp simd reduction(+ : both)
  for (int64_t i = 0; i < size; ++i) both += widen(dy[i]) * widen(weight[i]) * widen(x[i]);
  const float pull = both / size * inverse * inverse;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float value = inverse * (widen(dy[i]) * widen(weight[i]) - widen(x[i]) * pull);
    to[i] = narrow<T>(add ? widen(to[i]) + value : value);
  }
}

template <typename T>
void norm_back_row(const T* dy, const T* x, const Norm<T>& norm, T* to, int64_t size, float epsilon, bool add) {
  if (norm.weight) return norm_back_row(dy, x, norm.weight, to, size, epsilon, add);
  norm_back_row(dy, x, norm.exact, to, size, epsilon, add);
}

template <typename T>
void norm_back(const T* dy, const T* x, const Norm<T>& norm, T* dx, int64_t rows, int64_t size, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    norm_back_row(dy + row * size, x + row * size, norm, dx + row * size, size, epsilon, true);
}

// One row's gradients; also computes its `silu_mul` again, into `gated`.
template <typename T>
void silu_mul_row_back(const T* gate, const T* dy, T* dgate, T* gated, int64_t size) {
  const T* up = gate + size;
  T* dup = dgate + size;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = widen(gate[i]), e = exp_below_zero(g < 0 ? g : -g), top = g < 0 ? e : 1.0f,
                sigmoid = top / (1.0f + e);
    dup[i] = narrow<T>(widen(dy[i]) * g * sigmoid);
    dgate[i] = narrow<T>(widen(dy[i]) * widen(up[i]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
  }
  silu_mul<T>(gate, gated, size);
}
#ifdef MINT_AVX512_BF16
template <>
void silu_mul_row_back<bf16>(const bf16* gate, const bf16* dy, bf16* dgate, bf16* gated, int64_t size) {
  const bf16* up = gate + size;
  bf16* dup = dgate + size;
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 mask = mask16(size - i);
    const __m512 g = load_wide(gate + i, mask), u = load_wide(up + i, mask), d = load_wide(dy + i, mask);
    const Silu both(g);
    const __m512 sigmoid = _mm512_div_ps(both.top, both.bottom);
    const __m512 slope = _mm512_fmadd_ps(g, _mm512_sub_ps(one, sigmoid), one);
    store_narrow(gated + i, _mm512_mul_ps(both.rounded(g), u), mask);
    store_narrow(dup + i, _mm512_mul_ps(_mm512_mul_ps(d, g), sigmoid), mask);
    store_narrow(dgate + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(d, u), sigmoid), slope), mask);
  }
}
#endif

template <typename T>
void gelu_mul_row_back(const T* gate, const T* dy, T* dgate, T* gated, int64_t size) {
  const T* up = gate + size;
  T* dup = dgate + size;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = widen(gate[i]), d = widen(dy[i]), part = sigmoid(gelu_twice(g));
    const float slope = part + g * part * (1.0f - part) * gelu_twice_slope(g);
    dup[i] = narrow<T>(d * g * part);
    dgate[i] = narrow<T>(d * widen(up[i]) * slope);
  }
  gelu_mul<T>(gate, up, gated, size);
}

template <typename T>
void clamped_mul_row_back(const T* gate, const T* dy, T* dgate, T* gated, int64_t size, float alpha, float limit) {
  const T* up = gate + size;
  T* dup = dgate + size;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float all = widen(gate[i]), g = all > limit ? limit : all, d = widen(dy[i]), part = sigmoid(g * alpha);
    const float given = widen(up[i]), u = given > limit ? limit : given < -limit ? -limit : given;
    const float slope = part + g * alpha * part * (1.0f - part);
    dup[i] = narrow<T>(given >= limit || given <= -limit ? 0.0f : d * g * part);  // as in torch: none at the limits
    dgate[i] = narrow<T>(all >= limit ? 0.0f : d * (u + 1.0f) * slope);
  }
  clamped_mul<T>(gate, up, gated, size, alpha, limit);
}

template <typename T>
void gate_mul_back(const T* gate_up, const T* dy, T* to, T* gated, int64_t rows, int64_t size, const Activation& by) {
  const auto back = by.kind == Activation::GELU ? gelu_mul_row_back<T> : silu_mul_row_back<T>;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T *gate = gate_up + row * 2 * size, *given = dy + row * size;
    T *found = to + row * 2 * size, *again = gated + row * size;
    if (by.kind == Activation::CLAMPED)
      clamped_mul_row_back<T>(gate, given, found, again, size, by.alpha, by.limit);
    else
      back(gate, given, found, again, size);
  }
}

template <typename T>
void rotate_heads(T* qkv, int64_t rows, int64_t heads, int64_t width, int64_t dim, const int64_t* positions,
                  const float* cos, const float* sin, int64_t half, bool pairs, float sign) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = 0; head < heads; ++head)
      rotate(qkv + row * width + head * dim, cos + positions[row] * half, sin + positions[row] * half, half, pairs,
             sign);
}

template <typename T>
void head_norm(T* qkv, int64_t rows, int64_t first, int64_t heads, int64_t width, int64_t dim, const Norm<T>& norm,
               float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = first; head < first + heads; ++head) {
      T* x = qkv + row * width + head * dim;
      normalize(x, x, norm, dim, epsilon);
    }
}

template <typename T>
void head_norm_back(T* dqkv, const T* raw, int64_t rows, int64_t first, int64_t heads, int64_t width, int64_t dim,
                    const Norm<T>& norm, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = first; head < first + heads; ++head) {
      const int64_t at = row * width + head * dim;
      norm_back_row(dqkv + at, raw + at, norm, dqkv + at, dim, epsilon, false);
    }
}

// Some columns of the gradient of a run's A, or of its B; later runs of the same policy add to the same sums.
struct ColumnBlock {
  int64_t run, first, columns;
  bool of_a;
};

// sum [rank, columns] += left [rows, rank]^T right [rows, columns], over a run's rows in order.
template <typename T>
void add_outer(const Middle<T>* left, int64_t pitch, int64_t rank, const T* right, int64_t ldr, int64_t rows,
               float* sum, int64_t lds, int64_t columns) {
  static thread_local Aligned<float> wider;
  wider.resize(rows * rank);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t r = 0; r < rank; ++r) wider[row * rank + r] = widen(left[row * pitch + r]);
  const int64_t whole = columns / LANES * LANES;
  gemm(rank, whole, rows, {wider.data(), 1, rank}, right, ldr, sum, lds, true);
  for (int64_t j = whole; j < columns; ++j)
    for (int64_t r = 0; r < rank; ++r)
      for (int64_t row = 0; row < rows; ++row)
        sum[r * lds + j] = __builtin_fmaf(wider[row * rank + r], widen(right[row * ldr + j]), sum[r * lds + j]);
}

#ifdef MINT_AMX
// The same with AMX, ROWS_AT_ONCE rows at a time so that their packed copies stay in the second-level cache.
template <>
void add_outer<bf16>(const bf16* left, int64_t pitch, int64_t rank, const bf16* right, int64_t ldr, int64_t rows,
                     float* sum, int64_t lds, int64_t columns) {
  constexpr int64_t ROWS_AT_ONCE = 128;
  static thread_local Aligned<bf16> transposed, pairs;
  static thread_local Aligned<float> sums;
  const TileConfig registers;
  const int64_t high = (rank + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS,
                wide = (columns + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS;
  transposed.assign(high * ROWS_AT_ONCE, bf16{0}), pairs.resize(ROWS_AT_ONCE * wide), sums.resize(high * wide);
  for (int64_t r = 0; r < rank; ++r) std::copy_n(sum + r * lds, columns, sums.data() + r * wide);
  for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
    const int64_t some = std::min(ROWS_AT_ONCE, rows - first), depth = padded_depth(some);
    for (int64_t row = 0; row < depth; ++row)
      for (int64_t r = 0; r < rank; ++r)
        transposed[r * ROWS_AT_ONCE + row] = row < some ? left[(first + row) * pitch + r] : bf16{0};
    pack_vnni(right + first * ldr, ldr, some, columns, pairs.data(), wide);
    amx_gemm(high, wide, depth, transposed.data(), ROWS_AT_ONCE, pairs.data(), wide, sums.data(), wide, true);
  }
  for (int64_t r = 0; r < rank; ++r) std::copy_n(sums.data() + r * wide, columns, sum + r * lds);
}
#endif

template <typename T>
void add_gradients(const T* x, const T* dy, int64_t in, int64_t out, const AdapterRun<T>* runs, int64_t count,
                   const Middle<T>* middles, const Middle<T>* backs) {
  constexpr int64_t COLUMNS = 256;
  std::vector<ColumnBlock> blocks;
  std::vector<int64_t> next(count, -1);  // the next run with the same gradients
  std::unordered_map<const float*, int64_t> last;
  for (int64_t at = 0; at < count; ++at) {
    const auto [before, first_of_it] = last.try_emplace(runs[at].a_gradient, at);
    if (!first_of_it) {
      next[std::exchange(before->second, at)] = at;
      continue;
    }
    for (const bool of_a : {true, false}) {
      const int64_t size = of_a ? in : runs[at].width;
      for (int64_t first = 0; first < size; first += COLUMNS)
        blocks.push_back({at, first, std::min(COLUMNS, size - first), of_a});
    }
  }
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t at = 0; at < blocks.size(); ++at) {
    const ColumnBlock& part = blocks[at];
    for (int64_t run = part.run; run >= 0; run = next[run]) {
      const AdapterRun<T>& own = runs[run];
      if (part.of_a)
        add_outer(backs + own.middle, own.pitch(), own.rank, x + own.first * in + part.first, in, own.rows,
                  own.a_gradient + part.first, in, part.columns);
      else
        add_outer(middles + own.middle, own.pitch(), own.rank, dy + own.first * out + own.column + part.first, out,
                  own.rows, own.b_gradient + part.first, own.width, part.columns);
    }
  }
}

// Tokens and their pairs with experts: pair j of token t is row back[t, j], or, from `pairs` on, another rank's.
// combined [size] = sum over a token's pairs of weight times row
template <typename T>
void combine(const T* rows, int64_t pairs, const int64_t* back, const float* weights, int64_t tokens, int64_t each,
             int64_t size, T* combined) {
#pragma omp parallel
  {
    Aligned<float> sum(size);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t j = t * each; j < (t + 1) * each; ++j) {
        if (back[j] >= pairs) continue;
        const T* row = rows + back[j] * size;
        const float weight = weights[j];
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) sum[i] += weight * widen(row[i]);
      }
      T* to = combined + t * size;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) to[i] = narrow<T>(sum[i]);
    }
  }
}

// The backward of `combine`: the gradient of each pair's row, and of its weight.
template <typename T>
void combine_back(const T* rows, int64_t pairs, const int64_t* back, const float* weights, int64_t tokens, int64_t each,
                  int64_t size, const T* given, T* spread, float* slopes) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t j = t * each; j < (t + 1) * each; ++j) {
      slopes[j] = 0;
      if (back[j] >= pairs) continue;
      const T *row = rows + back[j] * size, *from = given + t * size;
      T* to = spread + back[j] * size;
      const float weight = weights[j];
      float slope = 0;
#pragma omp simd reduction(+ : slope)
      for (int64_t i = 0; i < size; ++i) {
        slope += widen(row[i]) * widen(from[i]);
        to[i] = narrow<T>(weight * widen(from[i]));
      }
      slopes[j] = slope;
    }
}
}  // namespace

#define MINT_BACKWARD(T, NAME)                                                                                         \
  /* dx [rows, size] += the gradient through rms_norm(x) * weight */                                                   \
  extern "C" void mint_norm_back_##NAME(const T* dy, const T* x, const Norm<T>* norm, T* dx, int64_t rows,             \
                                        int64_t size, float epsilon) {                                                 \
    norm_back<T>(dy, x, *norm, dx, rows, size, epsilon);                                                               \
  }                                                                                                                    \
  /* gate_up [rows, 2 size], dy [rows, size] -> to [rows, 2 size]; and gated [rows, size], `gate_mul` again */         \
  extern "C" void mint_gate_mul_back_##NAME(const T* gate_up, const T* dy, T* to, T* gated, int64_t rows,              \
                                            int64_t size, const Activation* by) {                                      \
    gate_mul_back<T>(gate_up, dy, to, gated, rows, size, *by);                                                         \
  }                                                                                                                    \
  /* rotate the first `heads` heads of every row [width] by its position's angles, in place; sign -1: back */          \
  extern "C" void mint_rotate_heads_##NAME(T* qkv, int64_t rows, int64_t heads, int64_t width, int64_t dim,            \
                                   const int64_t* positions, const float* cos, const float* sin, int64_t half,         \
                                   int64_t pairs, float sign) {                                                        \
    rotate_heads<T>(qkv, rows, heads, width, dim, positions, cos, sin, half, pairs, sign);                             \
  }                                                                                                                    \
  /* rms_norm of `heads` heads of every row from `first` on, in place; and its gradient, from the input `raw` */       \
  extern "C" void mint_head_norm_##NAME(T* qkv, int64_t rows, int64_t first, int64_t heads, int64_t width,             \
                                        int64_t dim, const Norm<T>* norm, float epsilon) {                             \
    head_norm<T>(qkv, rows, first, heads, width, dim, *norm, epsilon);                                                 \
  }                                                                                                                    \
  extern "C" void mint_head_norm_back_##NAME(T* dqkv, const T* raw, int64_t rows, int64_t first, int64_t heads,        \
                                             int64_t width, int64_t dim, const Norm<T>* norm, float epsilon) {         \
    head_norm_back<T>(dqkv, raw, rows, first, heads, width, dim, *norm, epsilon);                                      \
  }                                                                                                                    \
  /* the gradients of A and B, from x [R, in], dy [R, out], x A^T scaling and dy B^T scaling (grouped_product.cpp) */  \
  extern "C" void mint_add_gradients_##NAME(const T* x, const T* dy, int64_t in, int64_t out,                          \
                                            const AdapterRun<T>* runs, int64_t count, const Middle<T>* middles,        \
                                            const Middle<T>* backs) {                                                  \
    add_gradients<T>(x, dy, in, out, runs, count, middles, backs);                                                     \
  }                                                                                                                    \
  /* rows [pairs, size], back and weights [tokens, each] -> combined [tokens, size] */                                 \
  extern "C" void mint_combine_##NAME(const T* rows, int64_t pairs, const int64_t* back, const float* weights,         \
                                  int64_t tokens, int64_t each, int64_t size, T* combined) {                           \
    combine<T>(rows, pairs, back, weights, tokens, each, size, combined);                                              \
  }                                                                                                                    \
  /* the same and given [tokens, size] -> spread [pairs, size], slopes [tokens, each] of the weights */                \
  extern "C" void mint_combine_back_##NAME(const T* rows, int64_t pairs, const int64_t* back, const float* weights,    \
                                       int64_t tokens, int64_t each, int64_t size, const T* given, T* spread,          \
                                       float* slopes) {                                                                \
    combine_back<T>(rows, pairs, back, weights, tokens, each, size, given, spread, slopes);                            \
  }
MINT_BACKWARD(bf16, bfloat16)
MINT_BACKWARD(float, float32)
