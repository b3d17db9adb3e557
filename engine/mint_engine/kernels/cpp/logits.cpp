// Log-probabilities of rows of logits, and the gradient of a loss over some tokens' log-probabilities with respect to
// the logits, in their place: there is never a second array of that size. A row's numbers depend on nothing but itself.
#include "scores.h"
#include "float_gemm.h"

namespace {
// The log-sum-exp of a row; NaN if it holds NaN.
template <typename T>
float log_sum(const T* row, int64_t size) {
  const float peak = row_max(row, size);
  float sum = 0;
  int64_t i = 0;
#ifdef MINT_AVX512_BF16
  constexpr int64_t SUMS = 4;
  __m512 sums[SUMS];
  for (__m512& each : sums) each = _mm512_setzero_ps();
  for (; i + 16 * SUMS <= size; i += 16 * SUMS)
    for (int64_t s = 0; s < SUMS; ++s) {
      const __m512 x = _mm512_sub_ps(load_wide(row + i + 16 * s, 0xffff), _mm512_set1_ps(peak));
      sums[s] = _mm512_add_ps(sums[s], exp_below_zero(x));
    }
  sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
#endif
#pragma omp simd reduction(+ : sum)
  for (int64_t at = i; at < size; ++at) sum += exp_below_zero(widen(row[at]) - peak);
  return peak + std::log(sum);
}

template <typename T>
void log_sums(const T* logits, int64_t rows, int64_t size, float* sums) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) sums[row] = log_sum(logits + row * size, size);
}

// d log p(target) / d logits is one at the target, minus the probabilities. A target outside these columns is another
// rank's, and counts only in the row's total.
template <typename T>
void back_row(T* row, int64_t size, float sum, const int64_t* targets, const float* given, const float* slopes,
              int64_t count) {
  float total = 0;
  for (int64_t e = 0; e < count; ++e) total += slopes[e];
  int64_t whole = 0;
#ifdef MINT_AVX512_BF16
  for (; whole + 16 <= size; whole += 16) {
    const __m512 x = _mm512_sub_ps(load_wide(row + whole, 0xffff), _mm512_set1_ps(sum));
    store_narrow(row + whole, _mm512_mul_ps(_mm512_set1_ps(-total), exp_below_zero(x)), 0xffff);
  }
#endif
#pragma omp simd
  for (int64_t i = whole; i < size; ++i) row[i] = narrow<T>(-total * exp_below_zero(widen(row[i]) - sum));
  for (int64_t e = 0; e < count; ++e) {
    if (targets[e] < 0 || targets[e] >= size) continue;
    float value = -total * exp_below_zero(given[e] - sum);
    for (int64_t other = 0; other < count; ++other)
      if (targets[other] == targets[e]) value += slopes[other];
    row[targets[e]] = narrow<T>(value);
  }
}

template <typename T>
void logits_back(T* logits, int64_t rows, int64_t size, const float* sums, const int64_t* starts,
                 const int64_t* targets, const float* given, const float* slopes) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = starts[row];
    back_row(logits + row * size, size, sums[row], targets + at, given + at, slopes + at, starts[row + 1] - at);
  }
}
}  // namespace

#define MINT_LOGITS(T, NAME)                                                                                           \
  /* logits [rows, size] -> sums [rows] */                                                                             \
  extern "C" void mint_log_sums_##NAME(const T* logits, int64_t rows, int64_t size, float* sums) {                     \
    log_sums<T>(logits, rows, size, sums);                                                                             \
  }                                                                                                                    \
  /* logits become their gradient; row i's tokens are starts[i] to starts[i + 1] of targets, given (their logits) and  \
     slopes (the loss's gradient to their log-probabilities) */                                                        \
  extern "C" void mint_logits_back_##NAME(T* logits, int64_t rows, int64_t size, const float* sums,                    \
                                          const int64_t* starts, const int64_t* targets, const float* given,           \
                                          const float* slopes) {                                                       \
    logits_back<T>(logits, rows, size, sums, starts, targets, given, slopes);                                          \
  }
MINT_LOGITS(bf16, bfloat16)
MINT_LOGITS(float, float32)
