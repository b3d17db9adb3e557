// Frozen weights for training products: packed one part of a panel at a time, and then multiplied by many rows.
#pragma once
#include "product.h"
#include "transpose.h"

// The direction in which a weight [out, in] is applied: from inputs to outputs, or from outputs' gradients to inputs'.
enum class Direction { FORWARD, BACKWARD };

// Packs some outputs and inputs of a weight, from `weight` on, into a panel [depth / GROUP, WIDTH, GROUP]; missing
// numbers are zero.
template <Direction DIRECTION, typename T>
void pack_panel(const T* weight, int64_t ld, int64_t depth, int64_t width, T* to) {
  constexpr int64_t G = GROUP<T>;
  int64_t done = 0;  // inputs
#if defined(__AVX512F__)
  if constexpr (DIRECTION == Direction::FORWARD && G * sizeof(T) == sizeof(float))
    if (width >= WIDTH && ld % G == 0)
      for (; done + 16 * G <= depth; done += 16 * G)
        for (int64_t o = 0; o < WIDTH; o += 16)
          transpose((const float*)(weight + o * ld + done), ld / G, (float*)(to + done * WIDTH) + o, WIDTH);
#endif
#ifdef MINT_AVX512_BF16
  if constexpr (DIRECTION == Direction::BACKWARD && G == 2)
    for (; done + G <= depth; done += G)
      for (int64_t o = 0; o < WIDTH; o += 16) {
        const __mmask16 mask = o < width ? mask16(width - o) : __mmask16(0);
        const T* from = weight + done * ld + o;
        _mm512_storeu_si512(to + (done * WIDTH + o * G), interleave(from, mask, from + ld, mask));
      }
#endif
  for (; done < depth; done += G)
    for (int64_t g = 0; g < G; ++g)
      for (int64_t o = 0; o < WIDTH; ++o) {
        const int64_t i = done + g;
        to[done * WIDTH + o * G + g] = o >= width || i >= depth          ? narrow<T>(0.0f)
                                       : DIRECTION == Direction::FORWARD ? weight[o * ld + i]
                                                                         : weight[i * ld + o];
      }
}
