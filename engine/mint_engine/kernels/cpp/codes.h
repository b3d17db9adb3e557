// Weights of routed experts that stay quantised: a number is its code's value, less its block's zero point, times its
// block's scale. A row is dequantised to the same numbers as if all were (mint_engine.model.dequantise): rounded once.
// No number is NaN: such a base is refused when it is loaded.
#pragma once
#include <algorithm>
#include <array>
#include <type_traits>
#include "lanes.h"
#include "bf16.h"
#include "prefetch.h"

// Numbered as in mint_engine.kernels.expert_structs, like the next two: bytes; half bytes, the lower one first.
enum Kind : int64_t { E4M3, INT8, E2M1, INT4 };
constexpr bool half_byte(Kind kind) { return kind == E2M1 || kind == INT4; }
enum ScaleKind : int64_t { SCALE_FLOAT, SCALE_BFLOAT16, SCALE_FLOAT16, SCALE_POWER, SCALE_E4M3 };
enum ZeroKind : int64_t { NO_ZEROS, ZERO_BYTES, ZERO_CODES };

// One linear of all experts: codes [E, out, pitch] in bytes; scales [E, rows, columns] of blocks of `block_rows`
// outputs by `block_columns` inputs; `expert_scales` [E]: a factor of each expert's scales; null: none. Zero points are
// one byte per scale, or codes, those of several outputs of a column in one word: [E, words, columns].
struct Codes {
  int64_t kind;
  const uint8_t* codes;
  int64_t pitch, out, scale_kind;
  const void* scales;
  int64_t rows, columns, block_rows, block_columns;
  const float* expert_scales;
  int64_t zero_kind;
  const void* zeros;
};

// A block's scale and zero point.
struct Scale {
  float factor, zero;
};

constexpr float E2M1_NUMBERS[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
constexpr float INT4_NUMBERS[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

inline float float_of(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline float float16_of(uint16_t bits) {
  return float_of((bits & 0x8000u) << 16 | (bits & 0x7fffu) << 13) * 0x1p112f;
}
inline float e4m3_of(uint8_t bits) {
  return float_of((bits & 0x80u) << 24 | (bits & 0x7fu) << 20) * 0x1p120f;
}
inline const std::array<float, 256>& e4m3_numbers() {
  static const std::array<float, 256> all = [] {
    std::array<float, 256> found;
    for (int code = 0; code < 256; ++code) found[code] = e4m3_of(uint8_t(code));
    return found;
  }();
  return all;
}

// One output's zero points, if they are codes.
inline void unpack_zeros(const Codes& of, int64_t expert, int64_t output, Scale* to) {
  const int bits = of.kind == INT4 ? 4 : 8, each = 32 / bits, least = 1 << (bits - 1);
  const int64_t words = (of.out + each - 1) / each, shift = output % each * bits;
  const uint32_t* from = (const uint32_t*)of.zeros + (expert * words + output / each) * of.columns;
  for (int64_t block = 0; block < of.columns; ++block)
    to[block].zero = float(int(from[block] >> shift & ((1u << bits) - 1)) - least);
}

// One output's scales and zero points [columns]. This thread's next call overwrites them.
inline const Scale* scales_of(const Codes& of, int64_t expert, int64_t output) {
  static thread_local Aligned<Scale> buffer;
  if (int64_t(buffer.size()) < of.columns) buffer.resize(of.columns);
  const int64_t first = (expert * of.rows + output / of.block_rows) * of.columns;
  const auto fill = [&](auto number, auto read) {
    const auto* from = (const decltype(number)*)of.scales + first;
    for (int64_t block = 0; block < of.columns; ++block) buffer[block] = {read(from[block]), 0};
  };
  switch (of.scale_kind) {
    case SCALE_FLOAT: fill(float(), [](float scale) { return scale; }); break;
    case SCALE_BFLOAT16: fill(bf16(), [](bf16 scale) { return widen(scale); }); break;
    case SCALE_FLOAT16: fill(uint16_t(), float16_of); break;
    case SCALE_POWER: fill(uint8_t(), [](uint32_t power) { return float_of(power ? power << 23 : 1 << 22); }); break;
    default: {
      const float* numbers = e4m3_numbers().data();
      fill(uint8_t(), [&](uint8_t code) { return numbers[code] * of.expert_scales[expert]; });
    }
  }
  if (of.zero_kind == ZERO_CODES) unpack_zeros(of, expert, output, buffer.data());
  if (of.zero_kind == ZERO_BYTES)
    for (int64_t block = 0; block < of.columns; ++block) buffer[block].zero = ((const int8_t*)of.zeros)[first + block];
  return buffer.data();
}

#ifdef __AVX2__
// Looks up 32 half-byte codes in a table of 16 numbers, by the numbers' lower bytes and by their upper bytes.
inline void look_up(const uint8_t* codes, const bf16* every, bf16* to) {
  const __m128i front = _mm_loadu_si128((const __m128i*)every), back = _mm_loadu_si128((const __m128i*)every + 1);
  const __m128i byte = _mm_set1_epi16(255), half = _mm_set1_epi8(15), all = _mm_loadu_si128((const __m128i*)codes);
  const __m128i lows = _mm_packus_epi16(_mm_and_si128(front, byte), _mm_and_si128(back, byte));
  const __m128i highs = _mm_packus_epi16(_mm_srli_epi16(front, 8), _mm_srli_epi16(back, 8));
  const __m128i even = _mm_and_si128(all, half), odd = _mm_and_si128(_mm_srli_epi16(all, 4), half);
  __m128i* out = (__m128i*)to;
  for (const __m128i some : {_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)}) {
    const __m128i low = _mm_shuffle_epi8(lows, some), high = _mm_shuffle_epi8(highs, some);
    _mm_storeu_si128(out++, _mm_unpacklo_epi8(low, high));
    _mm_storeu_si128(out++, _mm_unpackhi_epi8(low, high));
  }
}

// Eight codes of e4m3 as floats: read as 16-bit floats, their bits stand for numbers 2^8 times smaller.
inline void store_e4m3(const uint8_t* codes, float* to) {
  const __m128i wider = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)codes));
  const __m128i size = _mm_slli_epi16(_mm_and_si128(wider, _mm_set1_epi16(127)), 7);
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(wider, _mm_set1_epi16(128)), 8);
  _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(size, sign)), _mm256_set1_ps(256)));
}
#endif

// Dequantises columns `at` to `end`, which have one scale; works on every machine.
template <Kind KIND, typename T>
inline void dequantise_some(const uint8_t* codes, Scale scale, int64_t at, int64_t end, T* to) {
  if constexpr (half_byte(KIND)) {
    T every[16];
    for (int code = 0; code < 16; ++code)
      every[code] = narrow<T>(((KIND == E2M1 ? E2M1_NUMBERS : INT4_NUMBERS)[code] - scale.zero) * scale.factor);
    if (at % 2 && at < end) to[at] = every[codes[at / 2] >> 4], ++at;
#ifdef __AVX2__
    if constexpr (std::is_same_v<T, bf16>)
      for (; at + 32 <= end; at += 32) look_up(codes + at / 2, every, to + at);
#endif
    for (; at + 2 <= end; at += 2) to[at] = every[codes[at / 2] & 15], to[at + 1] = every[codes[at / 2] >> 4];
    if (at < end) to[at] = every[codes[at / 2] & 15];
  } else {
    const float* numbers = e4m3_numbers().data();
    for (float some[LANES]; at < end; at += LANES) {
      const int count = int(std::min<int64_t>(LANES, end - at));
      int done = 0;
#ifdef __AVX2__
      if (KIND == E4M3)
        for (; done + 8 <= count; done += 8) store_e4m3(codes + at + done, some + done);
#endif
      for (const uint8_t* from = codes + at; done < count; ++done)
        some[done] = KIND == E4M3 ? numbers[from[done]] : float(from[done]) - 128;
      for (int i = 0; i < count; ++i) to[at + i] = narrow<T>((some[i] - scale.zero) * scale.factor);
    }
  }
}

#ifdef MINT_AVX512_BF16
// Rounds sixteen numbers to bfloat16. The instruction that rounds to it is not used: it takes the smallest for zero.
inline __m256i rounded(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value), half = _mm512_set1_epi32(0x7fff);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, half), odd), 16));
}

// Thirty-two half-byte codes, each in the lowest four of 16 bits; the other bits are unspecified.
inline __m512i halves_at(const uint8_t* codes) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)codes));
  return _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
}

// Thirty-two byte codes as floats, in two halves; e4m3 codes are read as 16-bit floats, which are 2^8 times smaller.
template <Kind KIND>
inline void bytes_at(const uint8_t* codes, __m512& front, __m512& back) {
  const __m512i wider = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)codes));
  if constexpr (KIND == INT8) {
    const __m512i whole = _mm512_sub_epi16(wider, _mm512_set1_epi16(128));
    front = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(whole)));
    back = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(whole, 1)));
  } else {
    const __m512i size = _mm512_slli_epi16(_mm512_and_si512(wider, _mm512_set1_epi16(127)), 7);
    const __m512i all = _mm512_or_si512(size, _mm512_slli_epi16(_mm512_and_si512(wider, _mm512_set1_epi16(128)), 8));
    front = _mm512_cvtph_ps(_mm512_castsi512_si256(all)), back = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(all, 1));
  }
}

// The sixteen numbers that half-byte codes stand for under a scale, as bfloat16.
template <Kind KIND>
inline __m256i every_number(Scale scale) {
  const __m512 numbers = _mm512_loadu_ps(KIND == E2M1 ? E2M1_NUMBERS : INT4_NUMBERS);
  return rounded(_mm512_mul_ps(_mm512_sub_ps(numbers, _mm512_set1_ps(scale.zero)), _mm512_set1_ps(scale.factor)));
}

// Dequantises columns `at` to `end`, a multiple of 32, of half bytes with one scale.
template <Kind KIND>
inline void dequantise_halves(const uint8_t* codes, Scale scale, int64_t at, int64_t end, bf16* to) {
  const __m512i every = _mm512_broadcast_i64x4(every_number<KIND>(scale));  // twice, since the fifth bit may be either
  for (; at < end; at += 32)
    _mm512_storeu_si512(to + at, _mm512_permutexvar_epi16(halves_at(codes + (at >> 1)), every));
}

// Dequantises 32 columns of half bytes from `at` on, sixteen with one scale and sixteen with the next.
template <Kind KIND>
inline void dequantise_pair(const uint8_t* codes, const Scale* scales, int64_t at, bf16* to) {
  const __m512i second = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
  const __m512i every = _mm512_inserti64x4(_mm512_castsi256_si512(every_number<KIND>(scales[0])),
                                           every_number<KIND>(scales[1]), 1);
  const __m512i which = _mm512_or_si512(_mm512_and_si512(halves_at(codes + (at >> 1)), _mm512_set1_epi16(15)), second);
  _mm512_storeu_si512(to + at, _mm512_permutexvar_epi16(which, every));
}

// Dequantises columns `at` to `end`, a multiple of 32, of bytes with one scale.
template <Kind KIND>
inline void dequantise_bytes(const uint8_t* codes, Scale scale, int64_t at, int64_t end, bf16* to) {
  // Below, e4m3 codes meet 256 times their scale, which must not be infinite.
  if (KIND == E4M3 && !(std::fabs(scale.factor) < 0x1p119f)) return dequantise_some<KIND>(codes, scale, at, end, to);
  const __m512 by = _mm512_set1_ps(KIND == E4M3 ? scale.factor * 256 : scale.factor), zero = _mm512_set1_ps(scale.zero);
  const bool small = std::fabs(scale.factor) < 1e-30f;  // the instruction that rounds may take its products for zero
  for (; at < end; at += 32) {
    __m512 front, back;
    bytes_at<KIND>(codes + at, front, back);
    front = _mm512_mul_ps(_mm512_sub_ps(front, zero), by), back = _mm512_mul_ps(_mm512_sub_ps(back, zero), by);
    _mm512_storeu_si512(to + at, small ? _mm512_inserti64x4(_mm512_castsi256_si512(rounded(front)), rounded(back), 1)
                                       : (__m512i)_mm512_cvtne2ps_pbh(back, front));
  }
}

// Dequantises columns of a row if its blocks, or pairs of them, are multiples of 32; returns the first column left.
template <Kind KIND>
inline int64_t dequantise_blocks(const uint8_t* codes, const Scale* scales, int64_t block_columns, int64_t in,
                                 bf16* to) {
  int64_t at = 0, end = in / 32 * 32;
  if (block_columns % 32 == 0 || block_columns >= in) {
    for (; at < end; ++scales) {
      const int64_t next = std::min(at + block_columns, end);
      if constexpr (half_byte(KIND))
        dequantise_halves<KIND>(codes, *scales, at, next, to);
      else dequantise_bytes<KIND>(codes, *scales, at, next, to);
      at = next;
    }
  } else if (half_byte(KIND) && block_columns == 16) {
    for (; at < end; at += 32, scales += 2) dequantise_pair<KIND>(codes, scales, at, to);
  }
  return at;
}
#endif

// Dequantises one output's row -> to [in].
template <Kind KIND, typename T>
void dequantise_row(const Codes& of, int64_t expert, int64_t output, int64_t in, T* to) {
  const uint8_t* codes = of.codes + (expert * of.out + output) * of.pitch;
  const Scale* scales = scales_of(of, expert, output);
  int64_t at = 0;
#ifdef MINT_AVX512_BF16
  if constexpr (std::is_same_v<T, bf16>) at = dequantise_blocks<KIND>(codes, scales, of.block_columns, in, to);
#endif
  while (at < in) {
    const int64_t block = at / of.block_columns, end = std::min((block + 1) * of.block_columns, in);
    dequantise_some<KIND>(codes, scales[block], at, end, to);
    at = end;
  }
}

template <typename T>
void dequantise_row(const Codes& of, int64_t expert, int64_t output, int64_t in, T* to) {
  switch (of.kind) {
    case E4M3: return dequantise_row<E4M3>(of, expert, output, in, to);
    case INT8: return dequantise_row<INT8>(of, expert, output, in, to);
    case E2M1: return dequantise_row<E2M1>(of, expert, output, in, to);
    default: return dequantise_row<INT4>(of, expert, output, in, to);
  }
}

// Dequantises rows `first` to `last` of an expert, over linears whose outputs are stacked one below another. This
// thread's next call overwrites them.
template <typename T>
const T* dequantised(const Codes* codes, int64_t expert, int64_t first, int64_t last, int64_t in) {
  static thread_local Aligned<T> buffer;
  if (int64_t(buffer.size()) < (last - first) * in) buffer.resize((last - first) * in);
  int64_t above = 0;
  for (int64_t output = first; output < last; ++output) {
    while (output - above >= codes->out) above += (codes++)->out;
    dequantise_row(*codes, expert, output - above, in, buffer.data() + (output - first) * in);
  }
  return buffer.data();
}

// The memory of those rows' codes, except those of a further linear, to be prefetched `lines` at a time.
inline PrefetchRange codes_range(const Codes* codes, int64_t expert, int64_t first, int64_t last, int lines) {
  for (; first >= codes->out; ++codes) first -= codes->out, last -= codes->out;
  const char* all = (const char*)codes->codes + expert * codes->out * codes->pitch;
  return {all + first * codes->pitch, all + std::min(last, codes->out) * codes->pitch, lines};
}
