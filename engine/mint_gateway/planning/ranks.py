"""Computing what each rank of a tensor-parallel engine holds of a base.

Attention heads, the columns of networks, experts and the output head's rows are split; the embedding, norms, routers,
the low-rank projections of latent attention with their compressed cache, and indexers are on every rank. A key/value
head whose query heads are on several ranks is on each of them. Shares need not be equal; they are those of
`mint_engine.parallel`, by the same cuts, which a test ensures.
"""

from functools import cache

import msgspec

from mint_contracts.cuts import VOCABULARY_UNIT, split, split_columns, split_heads, too_many
from mint_gateway.planning.shape import BaseShape, Linear


@cache
def share_out(shape: BaseShape, count: int) -> tuple[BaseShape, ...]:
    """Return every rank's share. Raises UnsupportedBase if there are too many ranks."""
    if count == 1:
        return (shape,)
    heads, kv_heads = split_heads(shape.heads, shape.kv_heads, count)
    if 0 < shape.experts < count:
        raise too_many(count, f"{shape.experts} experts")
    experts = split(shape.experts, count)
    rows = split(shape.vocabulary, count, VOCABULARY_UNIT)
    shares = []
    for rank in range(count):
        own = msgspec.structs.replace(
            shape,
            head_rows=rows[rank].size,
            heads=heads[rank].size,
            kv_heads=kv_heads[rank].size,
            experts=experts[rank].size,
        )
        linears = tuple(_part(linear, shape, own, rank, count) for linear in shape.linears)
        shares.append(msgspec.structs.replace(own, linears=linears))
    return tuple(shares)


def _part(linear: Linear, whole: BaseShape, own: BaseShape, rank: int, count: int) -> Linear:
    if linear.side == "whole":
        return linear
    if linear.side == "experts":
        return msgspec.structs.replace(linear, count=linear.count // whole.experts * own.experts)
    if linear.side == "outputs":
        return msgspec.structs.replace(linear, outputs=_columns(linear.outputs, linear, whole, own, rank, count))
    inputs = _columns(linear.inputs, linear, whole, own, rank, count)
    return msgspec.structs.replace(linear, inputs=inputs, bias=linear.bias and rank == 0)  # a bias is added once


def _columns(size: int, linear: Linear, whole: BaseShape, own: BaseShape, rank: int, count: int) -> int:
    """Return the rank's part of `size` inputs or outputs; each of several fused linears is split by itself."""
    units = {"heads": whole.heads, "kv_heads": whole.kv_heads, "columns": 1}
    held = {"heads": own.heads, "kv_heads": own.kv_heads}
    each = size // sum(units[of] for of in linear.of)
    return sum(
        split_columns(each, count, f"columns in {linear.name}")[rank].size if of == "columns" else each * held[of]
        for of in linear.of
    )
