"""Which rank holds what of a base: shares of heads, inner sizes, experts and the vocabulary. Pure.

Linears that read the residual stream (q, k, v, gate, up, the head) are cut by outputs, those that write it (o, down)
by inputs, so that ranks meet twice a layer (Shoeybi et al. 2019, Megatron-LM, section 3). Shares need not be equal: a
key/value head stays with its query heads, so 9 heads over 3 are shared 6 and 3 by two ranks. Where there are more
ranks than key/value heads, ranks hold the same one with query heads of their own.

Routed experts are held whole, some by each rank. What makes latents (of multi-head latent attention) and what chooses
among tokens or experts is held by all: it is small, and all of them need all that it says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
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


@dataclass(frozen=True)
class Runs:
    """Cuts of several linears that are one, as of queries, keys and values: a rank holds them side by side."""

    cuts: tuple[Cut, ...]

    @property
    def size(self) -> int:
        """How many in all."""
        return sum(cut.size for cut in self.cuts)


class ModuleCut(NamedTuple):
    """What of a linear a rank holds: of its inputs, of its outputs, of its experts, or all where there is None."""

    inputs: Cut | None = None
    outputs: Cut | Runs | None = None
    experts: Cut | None = None

    @property
    def slices(self) -> tuple[slice, tuple[slice, ...], slice]:
        """The same to index by: of inputs, each run of outputs, of experts."""
        runs = self.outputs.cuts if isinstance(self.outputs, Runs) else (self.outputs,)
        return _slice(self.inputs), tuple(map(_slice, runs)), _slice(self.experts)


class Dimensions(NamedTuple):
    """What of a base is shared out, beside the inner sizes of its networks, which may differ from layer to layer."""

    heads: int
    kv_heads: int
    vocabulary: int
    experts: int = 0  # of a layer that routes to some
    wide_norms: bool = False  # queries are normed over all heads at once, and keys over all of theirs


@dataclass(frozen=True)
class Share:
    """What rank `rank` of `count` holds; all of the base where it is alone."""

    rank: int
    count: int
    whole: Dimensions
    heads: Cut
    kv_heads: Cut
    experts: Cut
    vocabularies: tuple[Cut, ...]  # every rank's

    @property
    def vocabulary(self) -> Cut:
        """The rank's own."""
        return self.vocabularies[self.rank]

    @property
    def counts_keys(self) -> bool:
        """Whether it is the first of all ranks that hold the same key/value heads."""
        return self.rank % max(1, self.count // self.whole.kv_heads) == 0

    @property
    def most_queries(self) -> int:
        """Query heads over one key/value head, on the rank that holds the most of them."""
        return max(each.heads.size // each.kv_heads.size for each in share_out(self.whole, self.count))

    def of_norm(self, path: str, size: int) -> Cut | None:
        """The share of a norm over all heads; None for one that each rank holds all of."""
        by = _WIDE_NORMS.get(path.rpartition(".")[2]) if self.whole.wide_norms else None
        return self._part(by, size, path) if by is not None else None

    def of(self, module: Module) -> ModuleCut:
        """The share of a decoder layer's linear. Raises UnsupportedBase for one that is not shared out."""
        if module.experts:
            return ModuleCut(experts=self.experts)
        name = module.path.rpartition(".")[2]
        if name in _WHOLE:
            return ModuleCut()
        if name in _CUT_BY_OUTPUTS:
            return ModuleCut(outputs=self._part(_CUT_BY_OUTPUTS[name], module.out_features, module.path))
        if name in _CUT_BY_INPUTS:
            return ModuleCut(inputs=self._part(_CUT_BY_INPUTS[name], module.in_features, module.path))
        if name in _FUSED:
            return ModuleCut(outputs=self._runs(_FUSED[name], module.out_features, module.path))
        raise not_shared(module.path)

    def _runs(self, fused: Sequence["_By"], size: int, path: str) -> Runs:
        """Of several linears' outputs, one after another in a single linear of so many."""
        heads = {_By.HEADS: self.whole.heads, _By.KV_HEADS: self.whole.kv_heads, _By.INNER: 1}
        units, cuts, start = sum(heads[by] for by in fused), [], 0
        if size % units:
            raise not_shared(path)
        for by in fused:
            own = size // units * heads[by]
            cut = self._part(by, own, path)
            cuts.append(Cut(start + cut.start, start + cut.stop))
            start += own
        return Runs(tuple(cuts))

    def _part(self, by: "_By", size: int, path: str) -> Cut:
        if by is _By.INNER:
            if size < LEAST_UNIT * self.count:
                raise _too_many(self.count, f"{size} inner columns in {path}")
            unit = INNER_UNIT if size >= INNER_UNIT * self.count else LEAST_UNIT
            return split(size, self.count, unit)[self.rank]
        own, every = (self.heads, self.whole.heads) if by is _By.HEADS else (self.kv_heads, self.whole.kv_heads)
        if size % every:
            raise not_shared(path)
        return own.times(size // every)


class _By(Enum):
    """What a linear's inputs or outputs belong to."""

    HEADS = auto()
    KV_HEADS = auto()
    INNER = auto()


_CUT_BY_OUTPUTS = {
    "q_proj": _By.HEADS, "q_b_proj": _By.HEADS, "kv_b_proj": _By.HEADS,
    "k_proj": _By.KV_HEADS, "v_proj": _By.KV_HEADS,
    "gate_proj": _By.INNER, "up_proj": _By.INNER,
}  # fmt: skip
_FUSED = {"qkv_proj": (_By.HEADS, _By.KV_HEADS, _By.KV_HEADS), "gate_up_proj": (_By.INNER, _By.INNER)}  # Phi-3's
_CUT_BY_INPUTS = {"o_proj": _By.HEADS, "down_proj": _By.INNER}
_WIDE_NORMS = {"q_norm": _By.HEADS, "k_norm": _By.KV_HEADS}  # OLMo 2's
# Latent attention's way down, its indexer, Qwen2-MoE's gate of a shared expert, and Hunyuan's router.
_WHOLE = frozenset({"q_a_proj", "kv_a_proj_with_mqa", "wq_b", "wk", "weights_proj", "shared_expert_gate", "wg"})


def share_out(of: Dimensions, count: int) -> tuple[Share, ...]:
    """Every rank's share. Raises UnsupportedBase where there are too many ranks."""
    if of.kv_heads >= count:
        keys = split(of.kv_heads, count)
        group = of.heads // of.kv_heads
        heads = tuple(cut.times(group) for cut in keys)
    else:
        heads, keys = _split_groups(of, count)
    if of.vocabulary < count:
        raise _too_many(count, f"{of.vocabulary} tokens")
    if 0 < of.experts < count:
        raise _too_many(count, f"{of.experts} experts")
    vocabulary = split(of.vocabulary, count, VOCABULARY_UNIT)
    experts = split(of.experts, count) if of.experts else (Cut(0, 0),) * count
    return tuple(Share(rank, count, of, heads[rank], keys[rank], experts[rank], vocabulary) for rank in range(count))


def split(size: int, count: int, unit: int = 1) -> tuple[Cut, ...]:
    """Cut a dimension as evenly as its units allow, in smaller units where there are too few; the first get more."""
    while size < unit * count:
        unit //= 2
    units, rest = divmod(size, unit)
    ends = [-(-units * at // count) * unit for at in range(count + 1)]
    ends[-1] += rest
    return tuple(Cut(start, stop) for start, stop in pairwise(ends))


def is_shared(path: str) -> bool:
    """Whether ranks hold but a part of a decoder layer's linear each."""
    return path.rpartition(".")[2] in _CUT_BY_OUTPUTS.keys() | _CUT_BY_INPUTS.keys() | _FUSED.keys()


def is_partial(path: str) -> bool:
    """Whether what a decoder layer's linear gives is but a part of a sum on every rank."""
    return path.rpartition(".")[2] in _CUT_BY_INPUTS


def cuts_of(modules: Mapping[str, Module], share: Share) -> dict[str, ModuleCut]:
    """What of each module that adapters may target the rank holds. Raises UnsupportedBase for one not known here."""
    return {path: share.of(module) for path, module in modules.items()}


def not_shared(path: str) -> UnsupportedBase:
    """A base with a layer that is not shared out."""
    return UnsupportedBase(
        "tensorParallelSize",
        f"is more than 1, and the base has {path}, which cannot be split over ranks; set it to 1",
    )


def _slice(cut: Cut | None) -> slice:
    return slice(*cut) if cut else slice(None)


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
        "tensorParallelSize", f"is {count}, but {what} cannot be split over that many ranks; lower it"
    )
