"""Which rank holds what of a base: shares of heads, of the network's inner size, of the vocabulary. Pure.

Linears that read the residual stream (q, k, v, gate, up, the head) are cut by outputs, those that write it (o, down)
by inputs, so that ranks meet twice a layer (Shoeybi et al. 2019, Megatron-LM, section 3). Shares need not be equal: a
key/value head stays with its query heads, so 9 heads over 3 are shared 6 and 3 by two ranks. Where there are more
ranks than key/value heads, ranks hold the same one with query heads of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from mint_contracts.errors import UnsupportedBase
from mint_engine.adapters.adapter import Module

VOCABULARY_UNIT = 48  # of the kernels' panels of outputs
INNER_UNIT = 16  # half a cache line of bfloat16, so that slices begin where loads do; less where that is too coarse
LEAST_UNIT = 2  # kernels take inputs by twos


class Cut(NamedTuple):
    """From `start` to before `stop` of one dimension."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many."""
        return self.stop - self.start

    def times(self, each: int) -> "Cut":
        """The same, of elements of which there are so `each`."""
        return Cut(self.start * each, self.stop * each)


class ModuleCut(NamedTuple):
    """What of a linear a rank holds: of its inputs, of its outputs, or all where there is None."""

    inputs: Cut | None = None
    outputs: Cut | None = None


class Dimensions(NamedTuple):
    """What of a base is shared out."""

    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int


@dataclass(frozen=True)
class Share:
    """What rank `rank` of `count` holds; all of the base where it is alone."""

    rank: int
    count: int
    heads: Cut
    kv_heads: Cut
    head_dim: int
    inner: Cut
    vocabulary: Cut

    def of_linear(self, name: str) -> ModuleCut | None:
        """The share of a decoder layer's linear by its last name; None for one that is not known here."""
        queries, keys = self.heads.times(self.head_dim), self.kv_heads.times(self.head_dim)
        return {
            "q_proj": ModuleCut(outputs=queries),
            "k_proj": ModuleCut(outputs=keys),
            "v_proj": ModuleCut(outputs=keys),
            "o_proj": ModuleCut(inputs=queries),
            "gate_proj": ModuleCut(outputs=self.inner),
            "up_proj": ModuleCut(outputs=self.inner),
            "down_proj": ModuleCut(inputs=self.inner),
        }.get(name)


def share_out(of: Dimensions, count: int) -> tuple[Share, ...]:
    """Every rank's share. Raises UnsupportedBase where there are too many ranks."""
    if of.kv_heads >= count:
        keys = split(of.kv_heads, count)
        group = of.heads // of.kv_heads
        heads = tuple(cut.times(group) for cut in keys)
    else:
        heads, keys = _split_groups(of, count)
    unit = INNER_UNIT if of.inner >= INNER_UNIT * count else LEAST_UNIT
    if of.inner < unit * count or of.vocabulary < count:
        raise _too_many(count, f"{of.inner} inner columns and {of.vocabulary} tokens")
    inner, vocabulary = split(of.inner, count, unit), split(of.vocabulary, count, VOCABULARY_UNIT)
    return tuple(
        Share(rank, count, heads[rank], keys[rank], of.head_dim, inner[rank], vocabulary[rank])
        for rank in range(count)
    )


def split(size: int, count: int, unit: int = 1) -> tuple[Cut, ...]:
    """Cut a dimension as evenly as its units allow, in smaller units where there are too few; the first get more."""
    while size < unit * count:
        unit //= 2
    units, rest = divmod(size, unit)
    ends = [-(-units * at // count) * unit for at in range(count + 1)]
    ends[-1] += rest
    return tuple(Cut(start, stop) for start, stop in pairwise(ends))


def cuts_of(modules: Mapping[str, Module], share: Share) -> dict[str, ModuleCut]:
    """What of each module that adapters may target the rank holds. Raises UnsupportedBase for one not known here."""
    found: dict[str, ModuleCut] = {}
    for path, module in modules.items():
        cut = share.of_linear(path.rpartition(".")[2])
        if cut is None or module.experts:
            raise not_shared(path)
        found[path] = cut
    return found


def not_shared(path: str) -> UnsupportedBase:
    """A base with a layer that is not shared out."""
    return UnsupportedBase(
        "tensorParallelSize", f"is more than 1, and the base has {path}, which is not shared out; set it to 1"
    )


def _split_groups(of: Dimensions, count: int) -> tuple[tuple[Cut, ...], tuple[Cut, ...]]:
    """Several ranks a key/value head: its query heads are shared out between them."""
    sharers, group = count // of.kv_heads, of.heads // of.kv_heads
    if count % of.kv_heads or sharers > group:
        raise _too_many(count, f"{of.heads} query heads over {of.kv_heads} key/value heads")
    own = split(group, sharers)
    heads = [Cut(kv * group + cut.start, kv * group + cut.stop) for kv in range(of.kv_heads) for cut in own]
    keys = [Cut(kv, kv + 1) for kv in range(of.kv_heads) for _ in own]
    return tuple(heads), tuple(keys)


def _too_many(count: int, what: str) -> UnsupportedBase:
    return UnsupportedBase(
        "tensorParallelSize", f"is {count}, and the base has {what}, which so many ranks can not share; lower it"
    )
