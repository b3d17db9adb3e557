// Attention as a kernel of its own.
#include "attend.h"

namespace {
template <typename T>
void attend(const T* qkv, T* out, int64_t heads, int64_t kv_heads, int64_t dim, const Chunk* chunks, int64_t count,
            const int32_t* tables, const T* pool, float scale, const AttentionVariant& variant) {
  const int64_t width = (heads + 2 * kv_heads) * dim;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) {
    const Chunk& each = chunks[i];
    attend_block<T>(qkv + each.row * width, width, heads / kv_heads, int(each.tokens), each.position,
                    tables + each.table, pool, kv_heads, 0, kv_heads, dim, scale, variant, out + each.row * heads * dim,
                    heads * dim);
  }
}
}  // namespace

// qkv as `mint_rope` left it; out [rows, heads dim]; chunks [n, 4]; pool: one layer's pages
// [pages, 2, kv_heads, 16 dim], keys before values.
#define MINT_ATTEND(NAME, T)                                                                                           \
  extern "C" void NAME(const T* qkv, T* out, int64_t heads, int64_t kv_heads, int64_t dim, const Chunk* chunks,        \
                       int64_t count, const int32_t* tables, const T* pool, float scale,                               \
                       const AttentionVariant* variant) {                                                              \
    attend<T>(qkv, out, heads, kv_heads, dim, chunks, count, tables, pool, scale, *variant);                           \
  }
MINT_ATTEND(mint_attend_bfloat16, bf16)
MINT_ATTEND(mint_attend_float32, float)
