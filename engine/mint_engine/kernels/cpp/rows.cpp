// The row-wise kernels, each over many rows; and the likeliest token of each row of logits.
#include "activation.h"

#include <limits>

// The digest of the sources that the library was made from (compile.py); never called, only searched for in the file.
extern "C" const char mint_sources[];
extern "C" const char mint_sources[] = MINT_SOURCES;

namespace {
template <typename T>
void argmax(const T* logits, int64_t rows, int64_t size, int64_t* tokens, float* peaks) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = logits + row * size;
    constexpr int64_t BLOCK = 256;
    float best = -std::numeric_limits<float>::infinity();
    int64_t found = 0;
    bool broken = false;
    for (int64_t at = 0; at < size; at += BLOCK) {
      const int64_t stop = std::min(at + BLOCK, size);
      float peak = -std::numeric_limits<float>::infinity();
      int bad = 0;
#pragma omp simd reduction(max : peak) reduction(| : bad)
      for (int64_t i = at; i < stop; ++i) {
        const float value = widen(from[i]);
        peak = value > peak ? value : peak;
        bad |= value != value;
      }
      broken |= bad != 0;
      if (peak > best) {
        best = peak;
        for (int64_t i = at; i < stop; ++i)
          if (widen(from[i]) == peak) {
            found = i;
            break;
          }
      }
    }
    tokens[row] = found;
    peaks[row] = broken ? std::numeric_limits<float>::quiet_NaN() : best;
  }
}

template <typename T>
void add_norms(T* hidden, const T* delta, const Norm<T>& norm, T* out, int64_t rows, int64_t size, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row)
    add_norm<T>(hidden + row * size, delta ? delta + row * size : nullptr, norm, out + row * size, size, epsilon);
}

template <typename T>
void ropes(T* qkv, int64_t rows, const Heads<T>& of, const int64_t* positions, const int64_t* places, T* pool) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    T* own = qkv + row * of.width();
    rope<T>(own, of, positions[row], places[row], pool, of.joint() ? squares_of(own, of) : SquareSums{});
  }
}

template <typename T>
void gate_muls(const T* gate_up, T* out, int64_t rows, int64_t size, const Activation& by) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) gate_mul<T>(by, gate_up + row * 2 * size, out + row * size, size);
}
}  // namespace

#define MINT_ROWS(T, NAME)                                                                                             \
  /* hidden, delta (null: nothing), out [rows, size] */                                                                \
  extern "C" void mint_add_norm_##NAME(T* hidden, const T* delta, const Norm<T>* norm, T* out, int64_t rows,           \
                                       int64_t size, float epsilon) {                                                  \
    add_norms<T>(hidden, delta, *norm, out, rows, size, epsilon);                                                      \
  }                                                                                                                    \
  /* qkv [rows, (heads + 2 kv_heads) dim]; positions and places [rows] */                                              \
  extern "C" void mint_rope_##NAME(T* qkv, int64_t rows, const Heads<T>* of, const int64_t* positions,                 \
                                   const int64_t* places, T* pool) {                                                   \
    ropes<T>(qkv, rows, *of, positions, places, pool);                                                                 \
  }                                                                                                                    \
  /* gate_up [rows, 2 size] -> out [rows, size] */                                                                     \
  extern "C" void mint_gate_mul_##NAME(const T* gate_up, T* out, int64_t rows, int64_t size, const Activation* by) {   \
    gate_muls<T>(gate_up, out, rows, size, *by);                                                                       \
  }                                                                                                                    \
  /* logits [rows, size] -> the first largest of each row and its value, NaN if the row holds NaN */                   \
  extern "C" void mint_argmax_##NAME(const T* logits, int64_t rows, int64_t size, int64_t* tokens, float* peaks) {     \
    argmax<T>(logits, rows, size, tokens, peaks);                                                                      \
  }
MINT_ROWS(bf16, bfloat16)
MINT_ROWS(float, float32)
