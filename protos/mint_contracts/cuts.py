"""How an engine's ranks cut the dimensions of a base: engines hold such parts, and `mint plan` plans with them."""

from itertools import pairwise
from typing import NamedTuple

from mint_contracts.errors import UnsupportedBase

VOCABULARY_UNIT = 48  # the kernels' panels of outputs
INNER_UNIT = 16  # half a cache line of bfloat16, so that slices are aligned for loads; less if that is too coarse
LEAST_UNIT = 2  # kernels read inputs in pairs


class Cut(NamedTuple):
    """The range from `start` to before `stop` of one dimension."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """The length of the range."""
        return self.stop - self.start

    def times(self, each: int) -> "Cut":
        """Return the range in elements, if each index stands for `each` of them, as a head does."""
        return Cut(self.start * each, self.stop * each)


def split(size: int, count: int, unit: int = 1) -> tuple[Cut, ...]:
    """Cut a dimension as evenly as its units allow, in smaller units if there are too few; the first get more."""
    while unit > 1 and size < unit * count:
        unit //= 2
    units, rest = divmod(size, unit)
    ends = [-(-units * at // count) * unit for at in range(count + 1)]
    ends[-1] += rest
    return tuple(Cut(start, stop) for start, stop in pairwise(ends))


def split_heads(heads: int, kv_heads: int, count: int) -> tuple[tuple[Cut, ...], tuple[Cut, ...]]:
    """Return each rank's query heads and key/value heads, which ranks share if there are more of these than of those.

    Query heads of one group stay together where they can. Raises UnsupportedBase if there are too many ranks.
    """
    group = heads // kv_heads
    if kv_heads >= count:
        keys = split(kv_heads, count)
        return tuple(cut.times(group) for cut in keys), keys
    sharers = count // kv_heads
    if count % kv_heads or sharers > group:
        raise too_many(count, f"{heads} query heads over {kv_heads} key/value heads")
    own = split(group, sharers)
    queries = [Cut(kv * group + cut.start, kv * group + cut.stop) for kv in range(kv_heads) for cut in own]
    return tuple(queries), tuple(Cut(kv, kv + 1) for kv in range(kv_heads) for _ in own)


def split_columns(size: int, count: int, what: str) -> tuple[Cut, ...]:
    """Cut a network's columns. Raises UnsupportedBase, which says `what` they are, if there are too many ranks."""
    if size < LEAST_UNIT * count:
        raise too_many(count, f"{size} {what}")
    return split(size, count, INNER_UNIT if size >= INNER_UNIT * count else LEAST_UNIT)


def too_many(count: int, what: str) -> UnsupportedBase:
    """Return the error for more ranks than `what` can be split over."""
    return UnsupportedBase(
        "tensorParallelSize", f"is {count}, but {what} cannot be split over that many ranks; lower it"
    )
