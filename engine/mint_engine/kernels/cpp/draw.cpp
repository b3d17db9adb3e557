// Draws a token from a row of logits: temperature, then top-k, top-p and min-p, then the distribution inverted at a
// given number. Sums are double. Thresholds are found among the largest weights, with a histogram of their leading
// bits, which sort as the weights do, so that only one bucket is ever sorted.
#include <algorithm>
#include <functional>
#include <vector>

#include "aligned.h"
#include "scores.h"

namespace {
constexpr int SHIFT = 20;                             // sign, exponent and three bits of the fraction remain
constexpr int BUCKETS = (0x3f800000 >> SHIFT) + 1;    // weights are at most 1
constexpr float SMALLEST = -103.0f;                   // what is e^103 times less likely than the peak weighs nothing

inline int bucket_of(float weight) {
  uint32_t bits;
  std::memcpy(&bits, &weight, 4);
  return int(bits >> SHIFT);
}

// e^((logit - peak) / temperature), 1 for the likeliest.
template <typename T>
void weigh_row(const T* logits, int64_t size, float temperature, float* weights) {
  const float peak = row_max(logits, size);
  int64_t i = 0;
#ifdef MINT_AVX512_BF16
  for (; i + 16 <= size; i += 16) {
    __m512 x = _mm512_sub_ps(load_wide(logits + i, 0xffff), _mm512_set1_ps(peak));
    if (temperature != 1.0f) x = _mm512_div_ps(x, _mm512_set1_ps(temperature));
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(SMALLEST), _CMP_GE_OQ);
    _mm512_storeu_ps(weights + i, _mm512_maskz_mov_ps(kept, exp_below_zero(x)));
  }
#endif
  for (; i < size; ++i) {
    const float x = (widen(logits[i]) - peak) / temperature;
    weights[i] = x >= SMALLEST ? std::exp(x) : 0.0f;
  }
}

struct Histogram {
  int64_t counts[BUCKETS] = {};
  double sums[BUCKETS] = {};

  Histogram(const float* weights, int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
      const int bucket = bucket_of(weights[i]);
      ++counts[bucket];
      sums[bucket] += weights[i];
    }
  }
};

// The members of one bucket, largest first.
std::vector<float> members(const float* weights, int64_t size, int bucket) {
  std::vector<float> found;
  for (int64_t i = 0; i < size; ++i)
    if (bucket_of(weights[i]) == bucket) found.push_back(weights[i]);
  std::sort(found.begin(), found.end(), std::greater<float>());
  return found;
}

// The k-th largest weight.
float kth(const Histogram& histogram, const float* weights, int64_t size, int64_t k) {
  int bucket = BUCKETS - 1;
  for (; k > histogram.counts[bucket]; --bucket) k -= histogram.counts[bucket];
  return members(weights, size, bucket)[k - 1];
}

// The smallest of the fewest weights that together reach `target`, of those of at least `least`.
float nucleus(const Histogram& histogram, const float* weights, int64_t size, double target, float least) {
  double reached = 0;
  for (int bucket = BUCKETS - 1; bucket >= bucket_of(least); --bucket) {
    if (reached + histogram.sums[bucket] < target) {
      reached += histogram.sums[bucket];
      continue;
    }
    for (const float weight : members(weights, size, bucket)) {
      if (weight < least) return least;
      reached += weight;
      if (reached >= target) return weight;
    }
  }
  return least;
}

// The sum of a block's weights of at least `least`, as several sums, so that none waits for another.
double mass_of(const float* weights, int64_t count, float least) {
  constexpr int64_t SUMS = 8;
  double sums[SUMS] = {};
  int64_t i = 0;
#ifdef MINT_AVX512_BF16
  __m512d own[4] = {};
  for (; i + 4 * SUMS <= count; i += 4 * SUMS)
    for (int64_t s = 0; s < 4; ++s) {
      const __m256 all = _mm256_loadu_ps(weights + i + SUMS * s);
      const __mmask8 counted = _mm256_cmp_ps_mask(all, _mm256_set1_ps(least), _CMP_GE_OQ);
      own[s] = _mm512_add_pd(own[s], _mm512_maskz_cvtps_pd(counted, all));
    }
  _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_add_pd(own[0], own[1]), _mm512_add_pd(own[2], own[3])));
#endif
  for (; i + SUMS <= count; i += SUMS)
#pragma omp simd
    for (int64_t lane = 0; lane < SUMS; ++lane) {
      const float weight = weights[i + lane];
      sums[lane] += weight >= least ? weight : 0.0f;
    }
  for (; i < count; ++i) sums[0] += weights[i] >= least ? weights[i] : 0.0f;
  double mass = 0;
  for (const double sum : sums) mass += sum;
  return mass;
}

// Copies the weights of at least `floor`, in their order, and returns how many they are.
int64_t gather(const float* weights, int64_t size, float floor, float* found) {
  int64_t count = 0, i = 0;
#ifdef MINT_AVX512_BF16
  for (; i + 16 <= size; i += 16) {
    const __m512 all = _mm512_loadu_ps(weights + i);
    const __mmask16 kept = _mm512_cmp_ps_mask(all, _mm512_set1_ps(floor), _CMP_GE_OQ);
    if (!kept) continue;
    _mm512_mask_compressstoreu_ps(found + count, kept, all);
    count += __builtin_popcount(kept);
  }
#endif
  for (; i < size; ++i) {  // without a branch, which would often be guessed wrongly
    found[count] = weights[i];
    count += weights[i] >= floor;
  }
  return count;
}

// The least weight that top-k and then top-p keep. It is sought among the largest first, which seldom are many: a
// histogram of all weights takes ten times as long as everything else here. `found` has room for all.
float least_kept(const float* weights, int64_t size, int64_t top_k, float top_p, float* found) {
  const bool counted = top_k > 0 && top_k < size;
  const double mass = counted ? 0 : mass_of(weights, size, 0);
  for (const float floor : {0x1p-7f, 0x1p-14f, 0.0f}) {
    const int64_t count = gather(weights, size, floor, found);
    // Rounding must not keep the fewest from reaching their share before the floor.
    if (floor > 0 && (counted ? count < top_k : mass_of(found, count, 0) * (1 - 1e-9) < top_p * mass)) continue;
    const Histogram histogram(found, count);
    const float least = counted ? kth(histogram, found, count, top_k) : 0;
    if (top_p >= 1) return least;
    const double target = top_p * (counted ? mass_of(found, count, least) : mass);
    return std::max(least, nucleus(histogram, found, count, target, least));
  }
  return 0;  // never reached: nothing is below the last floor
}

// Index of the first of weights `at` to `end` whose running sum exceeds `sought`, or else of the last nonzero one.
int64_t place_in(const float* weights, int64_t at, int64_t end, float least, double sought) {
  int64_t last = at;
  double within = 0;
  for (; at < end; ++at) {
    if (weights[at] < least || weights[at] == 0) continue;
    last = at;
    within += weights[at];
    if (within > sought) return at;
  }
  return last;
}

template <typename T>
int64_t draw_row(const T* logits, int64_t size, float temperature, int64_t top_k, float top_p, float min_p,
                 double number, float* weights, float* found) {
  weigh_row(logits, size, temperature, weights);
  float least = min_p;  // the likeliest weighs 1
  if ((top_k > 0 && top_k < size) || top_p < 1)
    least = std::max(least, least_kept(weights, size, top_k, top_p, found));
  constexpr int64_t BLOCK = 256;
  std::vector<double> masses((size + BLOCK - 1) / BLOCK);
  double total = 0;
  for (int64_t at = 0; at < size; at += BLOCK) {
    masses[at / BLOCK] = mass_of(weights + at, std::min(BLOCK, size - at), least);
    total += masses[at / BLOCK];
  }
  const double sought = number * total;
  double running = 0;
  int64_t last = 0;  // the last block that weighs anything: rounding must not lead past it
  for (int64_t at = 0; at < size; at += BLOCK) {
    if (masses[at / BLOCK] == 0) continue;
    if (running + masses[at / BLOCK] <= sought) {
      running += masses[at / BLOCK];
      last = at;
      continue;
    }
    return place_in(weights, at, std::min(at + BLOCK, size), least, sought - running);
  }
  return place_in(weights, last, std::min(last + BLOCK, size), least, total);
}

template <typename T>
void draw(const T* logits, int64_t rows, int64_t size, const float* temperatures, const int64_t* top_k,
          const float* top_p, const float* min_p, const double* numbers, int64_t* tokens) {
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t row = 0; row < rows; ++row) {
    static thread_local Aligned<float> weights, found;
    weights.resize(size);
    found.resize(size);
    tokens[row] = draw_row(logits + row * size, size, temperatures[row], top_k[row], top_p[row], min_p[row],
                           numbers[row], weights.data(), found.data());
  }
}
}  // namespace

// logits [rows, size], finite at their peaks; each row's temperature above 0, top_k (0: off), top_p (1: off), min_p
// (0: off) and number in [0, 1) -> its token.
#define MINT_DRAW(NAME, T)                                                                                             \
  extern "C" void NAME(const T* logits, int64_t rows, int64_t size, const float* temperatures, const int64_t* top_k,   \
                       const float* top_p, const float* min_p, const double* numbers, int64_t* tokens) {               \
    draw<T>(logits, rows, size, temperatures, top_k, top_p, min_p, numbers, tokens);                                   \
  }
MINT_DRAW(mint_draw_bfloat16, bf16)
MINT_DRAW(mint_draw_float32, float)
