// The shape of attention over trees of rows, the same for all heads.
#pragma once
#include <cstdint>
#include "attention_variant.h"

struct TreeShape {
  int64_t heads, kv_heads, dim;
  float scale;
  AttentionVariant variant;
  int64_t group() const { return heads / kv_heads; }
  int64_t width() const { return (heads + 2 * kv_heads) * dim; }
};
