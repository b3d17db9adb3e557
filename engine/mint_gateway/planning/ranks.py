"""Computing what each rank of a tensor-parallel engine holds of a base.

Attention heads, the columns of networks, experts and the output head's rows are split; the embedding, norms, routers,
the low-rank projections of latent attention with their compressed cache, and indexers are on every rank. A key/value
head whose query heads are on several ranks is on each of them. Shares need not be equal; they are those of
`mint_engine.parallel`, which a test ensures.
"""

from functools import cache
from itertools import pairwise

import msgspec

from mint_contracts.errors import UnsupportedBase
from mint_gateway.planning.shape import BaseShape, Linear

_VOCABULARY_UNIT = 48
_COLUMNS_UNIT = 16
_LEAST_UNIT = 2


@cache
def share_out(shape: BaseShape, count: int) -> tuple[BaseShape, ...]:
    """Return every rank's share. Raises UnsupportedBase if there are too many ranks."""
    if count == 1:
        return (shape,)
    heads, kv_heads = _heads(shape, count)
    if 0 < shape.experts < count:
        raise _too_many(count, f"{shape.experts} experts")
    experts = _split(shape.experts, count)
    rows = _split(shape.vocabulary, count, _VOCABULARY_UNIT)
    shares = []
    for rank in range(count):
        own = msgspec.structs.replace(
            shape,
            head_rows=rows[rank],
            heads=heads[rank],
            kv_heads=kv_heads[rank],
            experts=experts[rank],
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
    return sum(_inner(each, linear, rank, count) if of == "columns" else each * held[of] for of in linear.of)


def _inner(size: int, linear: Linear, rank: int, count: int) -> int:
    unit = _COLUMNS_UNIT if size >= _COLUMNS_UNIT * count else _LEAST_UNIT
    if size < unit * count:
        raise _too_many(count, f"{size} columns in {linear.name}")
    return _split(size, count, unit)[rank]


def _heads(shape: BaseShape, count: int) -> tuple[list[int], list[int]]:
    """Return each rank's numbers of query and key/value heads; heads of one group stay together."""
    group = shape.heads // shape.kv_heads
    if shape.kv_heads >= count:
        keys = _split(shape.kv_heads, count)
        return [group * each for each in keys], keys
    sharers = count // shape.kv_heads
    if count % shape.kv_heads or sharers > group:
        raise _too_many(count, f"{shape.heads} query heads over {shape.kv_heads} key/value heads")
    return _split(group, sharers) * shape.kv_heads, [1] * count


def _split(size: int, count: int, unit: int = 1) -> list[int]:
    """Split as evenly as units allow, halving them if there are too few; the last part gets the remainder."""
    while unit > 1 and size < unit * count:
        unit //= 2
    units, rest = divmod(size, unit)
    ends = [-(-units * at // count) * unit for at in range(count + 1)]
    ends[-1] += rest
    return [stop - start for start, stop in pairwise(ends)]


def _too_many(count: int, what: str) -> UnsupportedBase:
    message = f"is {count}, but {what} cannot be split over that many ranks; lower it"
    return UnsupportedBase("tensorParallelSize", message)
