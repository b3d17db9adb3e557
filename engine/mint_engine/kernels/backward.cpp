// The backward of what a decoder layer does row by row between its products, and the gradients of A and B. Inner sums
// are in float; what goes out is rounded once.
#include <algorithm>
#include <vector>
#include "tiles.h"

namespace {
template <typename T>
float inverse_rms(const T* row, int64_t size, float epsilon) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += wide(row[i]) * wide(row[i]);
  return 1.0f / std::sqrt(sum / size + epsilon);
}

// dx = inv (g - x inv^2 mean(g x)) with g = dy weight; added to `to` or put there.
template <typename T>
void norm_back_row(const T* dy, const T* x, const T* weight, T* to, int64_t size, float epsilon, bool add) {
  const float inverse = inverse_rms(x, size, epsilon);
  float both = 0;
#pragma omp simd reduction(+ : both)
  for (int64_t i = 0; i < size; ++i) both += wide(dy[i]) * wide(weight[i]) * wide(x[i]);
  const float pull = both / size * inverse * inverse;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float value = inverse * (wide(dy[i]) * wide(weight[i]) - wide(x[i]) * pull);
    to[i] = narrow<T>(add ? wide(to[i]) + value : value);
  }
}

template <typename T>
void norm_back(const T* dy, const T* x, const T* weight, T* dx, int64_t rows, int64_t size, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    norm_back_row(dy + row * size, x + row * size, weight, dx + row * size, size, epsilon, true);
}

template <typename T>
void silu_mul_back(const T* gate_up, const T* dy, T* to, int64_t rows, int64_t size) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T *gate = gate_up + row * 2 * size, *up = gate + size, *d = dy + row * size;
    T *dgate = to + row * 2 * size, *dup = dgate + size;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float g = wide(gate[i]), e = exp_down(g < 0 ? g : -g), top = g < 0 ? e : 1.0f, sigmoid = top / (1.0f + e);
      dup[i] = narrow<T>(wide(d[i]) * g * sigmoid);
      dgate[i] = narrow<T>(wide(d[i]) * wide(up[i]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
    }
  }
}

// Halves (x1, x2) of a head -> (x1 cos - x2 sin, x2 cos + x1 sin); what lies beyond `half` pairs stays.
template <typename T>
void turn_head(T* head, const float* cos, const float* sin, int64_t half, float sign) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float one = wide(head[i]), two = wide(head[i + half]), s = sin[i] * sign;
    head[i] = narrow<T>(one * cos[i] - two * s);
    head[i + half] = narrow<T>(two * cos[i] + one * s);
  }
}

template <typename T>
void turn(T* qkv, int64_t rows, int64_t turned, int64_t width, int64_t dim, const int64_t* positions, const float* cos,
          const float* sin, int64_t half, float sign) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = 0; head < turned; ++head)
      turn_head(qkv + row * width + head * dim, cos + positions[row] * half, sin + positions[row] * half, half, sign);
}

template <typename T>
void head_norm(T* qkv, int64_t rows, int64_t first, int64_t heads, int64_t width, int64_t dim, const T* weight,
               float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = first; head < first + heads; ++head) {
      T* x = qkv + row * width + head * dim;
      const float inverse = inverse_rms(x, dim, epsilon);
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) x[i] = narrow<T>(wide(weight[i]) * wide(narrow<T>(wide(x[i]) * inverse)));
    }
}

template <typename T>
void head_norm_back(T* dqkv, const T* raw, int64_t rows, int64_t first, int64_t heads, int64_t width, int64_t dim,
                    const T* weight, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t head = first; head < first + heads; ++head) {
      const int64_t at = row * width + head * dim;
      norm_back_row(dqkv + at, raw + at, weight, dqkv + at, dim, epsilon, false);
    }
}

// sum[r, j] += over rows of left[row, r] right[row, j].
template <typename T>
void outer(const T* left, int64_t ldl, const T* right, int64_t ldr, float* sum, int64_t rows, int64_t rank,
           int64_t size) {
  std::vector<float> wide_left(rows * rank);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t r = 0; r < rank; ++r) wide_left[row * rank + r] = wide(left[row * ldl + r]);
  constexpr int64_t STRIPE = 64;
#pragma omp parallel for schedule(static)
  for (int64_t at = 0; at < size / STRIPE * STRIPE; at += STRIPE)
    multiply(rank, STRIPE, rows, {wide_left.data(), 1, rank}, right + at, ldr, sum + at, size, true);
  for (int64_t j = size / STRIPE * STRIPE; j < size; ++j)  // what is left beyond whole stripes
    for (int64_t r = 0; r < rank; ++r)
      for (int64_t row = 0; row < rows; ++row)
        sum[r * size + j] = __builtin_fmaf(wide_left[row * rank + r], wide(right[row * ldr + j]), sum[r * size + j]);
}
}  // namespace

#define MINT_BACKWARD(T, NAME)                                                                                         \
  /* dx [rows, size] += the gradient through rms_norm(x) * weight */                                                   \
  extern "C" void mint_norm_back_##NAME(const T* dy, const T* x, const T* weight, T* dx, int64_t rows, int64_t size,   \
                                        float epsilon) {                                                               \
    norm_back<T>(dy, x, weight, dx, rows, size, epsilon);                                                              \
  }                                                                                                                    \
  /* gate_up [rows, 2 size], dy [rows, size] -> to [rows, 2 size] */                                                   \
  extern "C" void mint_silu_mul_back_##NAME(const T* gate_up, const T* dy, T* to, int64_t rows, int64_t size) {        \
    silu_mul_back<T>(gate_up, dy, to, rows, size);                                                                     \
  }                                                                                                                    \
  /* turn the first `turned` heads of every row [width] by its position's angles, in place; sign -1: back */           \
  extern "C" void mint_turn_##NAME(T* qkv, int64_t rows, int64_t turned, int64_t width, int64_t dim,                   \
                                   const int64_t* positions, const float* cos, const float* sin, int64_t half,         \
                                   float sign) {                                                                       \
    turn<T>(qkv, rows, turned, width, dim, positions, cos, sin, half, sign);                                           \
  }                                                                                                                    \
  /* rms_norm of `heads` heads of every row from head `first` on, in place; and its gradient, `raw` as it was before */\
  extern "C" void mint_head_norm_##NAME(T* qkv, int64_t rows, int64_t first, int64_t heads, int64_t width,             \
                                        int64_t dim, const T* weight, float epsilon) {                                 \
    head_norm<T>(qkv, rows, first, heads, width, dim, weight, epsilon);                                                \
  }                                                                                                                    \
  extern "C" void mint_head_norm_back_##NAME(T* dqkv, const T* raw, int64_t rows, int64_t first, int64_t heads,        \
                                             int64_t width, int64_t dim, const T* weight, float epsilon) {             \
    head_norm_back<T>(dqkv, raw, rows, first, heads, width, dim, weight, epsilon);                                     \
  }                                                                                                                    \
  /* left [rows, rank], right [rows, size] -> sum [rank, size] float += left^T right */                                \
  extern "C" void mint_outer_##NAME(const T* left, int64_t ldl, const T* right, int64_t ldr, float* sum, int64_t rows, \
                                    int64_t rank, int64_t size) {                                                      \
    outer<T>(left, ldl, right, ldr, sum, rows, rank, size);                                                            \
  }
MINT_BACKWARD(bf16, bfloat16)
MINT_BACKWARD(float, float32)
