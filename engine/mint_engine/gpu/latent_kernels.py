"""The programs of `mint_engine.gpu.latent`, in Triton's language. Letters in shapes are explained there."""

import triton
import triton.language as tl

from mint_engine.gpu.attend_kernels import finish


# A step's lists lie one after another, so where each begins is aligned in one step and not in the next.
@triton.jit(do_not_specialize=["programs"], do_not_specialize_on_alignment=["items", "tables"])
def attend_latents(
    query, out, pool, items, tables, chosen, partial, weights, scale, programs,
    queries: tl.constexpr, group: tl.constexpr, latent: tl.constexpr, rotated: tl.constexpr, width: tl.constexpr,
    most: tl.constexpr, tokens: tl.constexpr, padded_latent: tl.constexpr, padded_rotated: tl.constexpr,
    page_tokens: tl.constexpr, step: tl.constexpr, split_tokens: tl.constexpr, most_splits: tl.constexpr,
    sparse: tl.constexpr, split: tl.constexpr,
):  # fmt: skip
    """Attention of some of an item's tokens, for `group` heads, over their past or one split of it.

    If it is sparse, a program has one token, and its past is what was chosen.
    """
    item = (tl.program_id(0) // programs).to(tl.int64)
    told, skipped = items + item * 5, tl.program_id(0) % programs * tokens
    first, position = tl.load(told) + skipped, tl.load(told + 2) + skipped
    count = tl.maximum(tl.minimum(tl.load(told + 1) - skipped, tokens), 0)
    table = tables + tl.load(told + 3)
    m, c, e = tl.arange(0, tokens * group), tl.arange(0, padded_latent), tl.arange(0, padded_rotated)
    token, head = m // group, tl.program_id(1) * group + m % group
    real, row = (token < count) & (head < queries), (first + token) * queries + head
    at = query + row[:, None] * (latent + rotated)
    rows = tl.load(at + c[None], mask=real[:, None] & (c < latent)[None], other=0.0)
    turned = tl.load(at + latent + e[None], mask=real[:, None] & (e < rotated)[None], other=0.0)
    seen = position + token  # the last position that each row sees
    begin, end = position * 0, tl.where(count > 0, position + count, 0)
    if sparse:
        end = tl.minimum(end, most)
    if split:
        tokens_each = (end + split_tokens * most_splits - 1) // (split_tokens * most_splits) * split_tokens
        begin = tl.load(told + 4) * tokens_each
        end = tl.minimum(end, begin + tokens_each)
    peak = tl.full([tokens * group], float("-inf"), tl.float32)
    weight = tl.zeros([tokens * group], tl.float32)
    total = tl.zeros([tokens * group, padded_latent], tl.float32)
    for start in range(begin, end, step):
        n = start + tl.arange(0, step)
        given = n < end
        if sparse:
            n = tl.load(chosen + first * most + n, mask=given, other=0)
        place = (tl.load(table + n // page_tokens, mask=given, other=0) * page_tokens + n % page_tokens) * width
        past = tl.load(pool + place[:, None] + c[None], mask=given[:, None] & (c < latent)[None], other=0.0)
        turned_at = pool + latent + place[None] + e[:, None]
        past_turned = tl.load(turned_at, mask=given[None] & (e < rotated)[:, None], other=0.0)
        scores = tl.dot(turned, past_turned, input_precision="ieee")
        scores = tl.dot(rows, tl.trans(past), scores, input_precision="ieee") * scale
        scores = tl.where(given[None] & (n[None] <= seen[:, None]), scores, float("-inf"))
        highest = tl.maximum(peak, tl.max(scores, 1))
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        part, ratio = tl.exp(scores - shift[:, None]), tl.exp(peak - shift)
        weight = weight * ratio + tl.sum(part, 1)
        total = tl.dot(part.to(past.dtype), past, total * ratio[:, None], input_precision="ieee")
        peak = highest
    if split:
        cell = item * queries + head
        tl.store(partial + cell[:, None] * latent + c[None], total, mask=real[:, None] & (c < latent)[None])
        tl.store(weights + cell * 2, peak, mask=real)
        tl.store(weights + cell * 2 + 1, weight, mask=real)
    else:
        found = finish(total, peak, weight, tl.full([tokens * group], float("-inf"), tl.float32))
        into = out + row[:, None] * latent + c[None]
        tl.store(into, found.to(out.dtype.element_ty), mask=real[:, None] & (c < latent)[None])


# So do the weights of rows that are scored together; their queries are of whole heads, and aligned anywhere.
@triton.jit(do_not_specialize=["length"], do_not_specialize_on_alignment=["weights", "pasts", "tables"])
def score(
    query, weights, out, length, pool, pasts, tables,
    heads: tl.constexpr, size: tl.constexpr, width: tl.constexpr, padded_heads: tl.constexpr,
    padded_size: tl.constexpr, page_tokens: tl.constexpr, tokens: tl.constexpr,
):  # fmt: skip
    """An indexer's scores, out [rows, length], of some tokens of a row's past; -inf for what it does not see."""
    row, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * tokens + tl.arange(0, tokens)
    seen, table = tl.load(pasts + row * 2), tables + tl.load(pasts + row * 2 + 1)
    visible = n <= seen
    total = tl.full([tokens], float("-inf"), tl.float32)
    if tl.program_id(1) * tokens <= seen:
        j, d = tl.arange(0, padded_heads), tl.arange(0, padded_size)
        at = query + (row * heads + j)[:, None] * size + d[None]
        own = tl.load(at, mask=(j < heads)[:, None] & (d < size)[None], other=0.0)
        weight = tl.load(weights + row * heads + j, mask=j < heads, other=0.0)
        place = (tl.load(table + n // page_tokens, mask=visible, other=0) * page_tokens + n % page_tokens) * width
        keys = tl.load(pool + place[None] + d[:, None], mask=visible[None] & (d < size)[:, None], other=0.0)
        scores = tl.maximum(tl.dot(own, keys, input_precision="ieee"), 0.0)
        total = tl.where(visible, tl.sum(scores * weight[:, None], 0), float("-inf"))
    tl.store(out + row * length + n, total, mask=n < length)
