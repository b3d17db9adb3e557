"""The programs of `mint_engine.gpu.attend`, in Triton's language. Letters in shapes are explained there."""

import triton
import triton.language as tl


@triton.jit
def finish(total, peak, weight, sink):
    """Return a softmax's weighted sum [m, D] with one more score, the sink [m], that contributes nothing."""
    highest = tl.maximum(peak, sink)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    ratio = tl.exp(peak - highest)
    below = weight * ratio + tl.exp(sink - highest)
    return total * (ratio / tl.where(below == 0.0, 1.0, below))[:, None]  # rows that are padding see nothing


@triton.jit
def _visible(scores, n, seen, end, cap, window, capped: tl.constexpr, windowed: tl.constexpr):
    """Return the scores of rows that see up to positions `seen` [m, 1], -inf for other positions of n [1, N]."""
    if capped:
        scores = cap * (1.0 - 2.0 / (tl.exp(2.0 * scores / cap) + 1.0))  # tanh
    visible = (n <= seen) & (n < end)
    if windowed:
        visible = visible & (n > seen - window)
    return tl.where(visible, scores, float("-inf"))


# A step's lists lie one after another, so where each begins is aligned in one step and not in the next.
@triton.jit(do_not_specialize_on_alignment=["items", "tables"])
def attend(
    query, query_head, query_row, out, out_head, out_row, pool, items, tables, sinks, partial, weights,
    scale, cap, window, keys,
    queries: tl.constexpr, group: tl.constexpr, size: tl.constexpr, tokens: tl.constexpr, programs: tl.constexpr,
    padded_group: tl.constexpr, padded_size: tl.constexpr, page_tokens: tl.constexpr, step: tl.constexpr,
    split_tokens: tl.constexpr, capped: tl.constexpr, windowed: tl.constexpr, sunk: tl.constexpr,
    split: tl.constexpr,
):  # fmt: skip
    """Attention of some of an item's tokens, for the query heads of one key head, over their past or one split."""
    item, head = (tl.program_id(0) // programs).to(tl.int64), tl.program_id(1)
    told, skipped = items + item * 5, tl.program_id(0) % programs * tokens
    first, position = tl.load(told) + skipped, tl.load(told + 2) + skipped
    count = tl.maximum(tl.minimum(tl.load(told + 1) - skipped, tokens), 0)
    table = tables + tl.load(told + 3)
    m, d = tl.arange(0, tokens * padded_group), tl.arange(0, padded_size)
    token, member = m // padded_group, m % padded_group
    real, query_of = (token < count) & (member < group), head * group + member
    at = query + query_of[:, None] * query_head + (first + token)[:, None] * query_row + d[None]
    rows = tl.load(at, mask=real[:, None] & (d < size)[None], other=0.0)
    seen = position + token  # the last position that each row sees
    begin, end = position * 0, tl.where(count > 0, position + count, 0)
    if windowed:
        begin = tl.maximum(position - window + 1, 0) // step * step
    if split:
        number = tl.load(told + 4)
        begin = tl.maximum(begin, number * split_tokens)
        end = tl.minimum(end, (number + 1) * split_tokens)
    peak = tl.full([tokens * padded_group], float("-inf"), tl.float32)
    weight = tl.zeros([tokens * padded_group], tl.float32)
    total = tl.zeros([tokens * padded_group, padded_size], tl.float32)
    block = page_tokens * size  # of a page: the keys of one head, or its values
    for start in range(begin, end, step):
        n = start + tl.arange(0, step)
        page = tl.load(table + n // page_tokens, mask=n < end, other=0)
        place = page * (2 * keys * block) + head * block + n % page_tokens * size
        key = tl.load(pool + place[None] + d[:, None], mask=(n < end)[None] & (d < size)[:, None], other=0.0)
        scores = tl.dot(rows, key, input_precision="ieee") * scale
        scores = _visible(scores, n[None], seen[:, None], end, cap, window, capped, windowed)
        highest = tl.maximum(peak, tl.max(scores, 1))
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        given, ratio = tl.exp(scores - shift[:, None]), tl.exp(peak - shift)
        value = tl.load(
            pool + keys * block + place[:, None] + d[None], mask=(n < end)[:, None] & (d < size)[None], other=0.0
        )
        weight = weight * ratio + tl.sum(given, 1)
        total = tl.dot(given.to(value.dtype), value, total * ratio[:, None], input_precision="ieee")
        peak = highest
    if split:  # one token
        cell = item * queries + query_of
        tl.store(partial + cell[:, None] * size + d[None], total, mask=real[:, None] & (d < size)[None])
        tl.store(weights + cell * 2, peak, mask=real)
        tl.store(weights + cell * 2 + 1, weight, mask=real)
    else:
        if sunk:
            sink = tl.load(sinks + query_of, mask=real, other=0.0).to(tl.float32)
        else:
            sink = tl.full([tokens * padded_group], float("-inf"), tl.float32)
        into = out + query_of[:, None] * out_head + (first + token)[:, None] * out_row + d[None]
        found = finish(total, peak, weight, sink)
        tl.store(into, found.to(out.dtype.element_ty), mask=real[:, None] & (d < size)[None])


@triton.jit(do_not_specialize_on_alignment=["decoding"])
def combine(
    out, out_head, out_row, decoding, sinks, partial, weights,
    queries: tl.constexpr, size: tl.constexpr, padded_size: tl.constexpr, sunk: tl.constexpr,
):  # fmt: skip
    """Combine the splits of one row and query head, in order."""
    told, head = decoding + tl.program_id(0).to(tl.int64) * 3, tl.program_id(1)
    row, first, splits = tl.load(told), tl.load(told + 1), tl.load(told + 2)
    d = tl.arange(0, padded_size)
    peak = tl.full([1], float("-inf"), tl.float32)
    weight = tl.zeros([1], tl.float32)
    total = tl.zeros([1, padded_size], tl.float32)
    for number in range(splits):
        cell = (first + number) * queries + head
        own = tl.load(weights + cell * 2)
        some = tl.load(partial + cell * size + d, mask=d < size, other=0.0)
        highest = tl.maximum(peak, own)
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        ratio, given = tl.exp(peak - shift), tl.exp(own - shift)
        weight = weight * ratio + tl.load(weights + cell * 2 + 1) * given
        total = total * ratio[:, None] + (some[None] * given[:, None])
        peak = highest
    if sunk:
        sink = tl.zeros([1], tl.float32) + tl.load(sinks + head).to(tl.float32)
    else:
        sink = tl.full([1], float("-inf"), tl.float32)
    into = out + head * out_head + row * out_row + d[None]
    tl.store(into, finish(total, peak, weight, sink).to(out.dtype.element_ty), mask=(d < size)[None])
