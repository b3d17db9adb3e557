"""Which rank holds which part of a base: shares of heads, inner sizes, experts and the vocabulary. Pure.

Linears that read the residual stream (q, k, v, gate, up, the head) are cut by outputs, those that write it (o, down)
by inputs, so that ranks meet twice per layer (Shoeybi et al. 2019, Megatron-LM, section 3). Shares need not be equal:
a key/value head stays with its query heads, so two ranks share 9 query heads over 3 key/value heads as 6 and 3. If
there are more ranks than key/value heads, several ranks hold the same one, each with its own query heads.

Routed experts are not cut; each rank holds some of them. All ranks hold the linears that compute latents (of
multi-head latent attention) and those that choose among tokens or experts: they are small, and all need their
results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from mint_contracts.cuts import VOCABULARY_UNIT, Cut, split, split_columns, split_heads, too_many
from mint_contracts.errors import UnsupportedBase
from mint_engine.adapters.adapter import Module


@dataclass(frozen=True)
class Runs:
    """Cuts of several linears fused in one, such as queries, keys and values: a rank holds them side by side."""

    cuts: tuple[Cut, ...]

    @property
    def size(self) -> int:
        """The total length of the cuts."""
        return sum(cut.size for cut in self.cuts)


class ModuleCut(NamedTuple):
    """The part of a linear that a rank holds: ranges of its inputs, outputs and experts; None means all of them."""

    inputs: Cut | None = None
    outputs: Cut | Runs | None = None
    experts: Cut | None = None

    @property
    def slices(self) -> tuple[slice, tuple[slice, ...], slice]:
        """The cut as slices to index by: of inputs, each run of outputs, of experts."""
        runs = self.outputs.cuts if isinstance(self.outputs, Runs) else (self.outputs,)
        return _slice(self.inputs), tuple(map(_slice, runs)), _slice(self.experts)


class Dimensions(NamedTuple):
    """The dimensions of a base that are split, beside inner sizes, which may differ from layer to layer."""

    heads: int
    kv_heads: int
    vocabulary: int
    experts: int = 0  # of a layer with routed experts
    wide_norms: bool = False  # queries are normed over all query heads, and keys over all key/value heads


@dataclass(frozen=True)
class Share:
    """What rank `rank` of `count` holds; the complete base if `count` is 1."""

    rank: int
    count: int
    whole: Dimensions
    heads: Cut
    kv_heads: Cut
    experts: Cut
    vocabularies: tuple[Cut, ...]  # every rank's

    @property
    def vocabulary(self) -> Cut:
        """The rank's own cut of the vocabulary."""
        return self.vocabularies[self.rank]

    @property
    def counts_keys(self) -> bool:
        """Whether it is the first of all ranks that hold the same key/value heads."""
        return self.rank % max(1, self.count // self.whole.kv_heads) == 0

    @property
    def most_queries(self) -> int:
        """The number of query heads per key/value head on the rank that has most."""
        return max(each.heads.size // each.kv_heads.size for each in share_out(self.whole, self.count))

    def of_norm(self, path: str, size: int) -> Cut | None:
        """Return the share of a norm over all heads; None for a norm that each rank holds completely."""
        by = _WIDE_NORMS.get(path.rpartition(".")[2]) if self.whole.wide_norms else None
        return self._part(by, size, path) if by is not None else None

    def of(self, module: Module) -> ModuleCut:
        """Return the share of a decoder layer's linear. Raises UnsupportedBase for one that cannot be split."""
        if module.experts:
            return ModuleCut(experts=self.experts)
        name = module.path.rpartition(".")[2]
        if name in _WHOLE:
            return ModuleCut()
        if name in _CUT_BY_OUTPUTS:
            by = _By.HEADS if module.path.endswith(_GATE_OF_HEADS) else _CUT_BY_OUTPUTS[name]
            return ModuleCut(outputs=self._part(by, module.out_features, module.path))
        if name in _CUT_BY_INPUTS:
            return ModuleCut(inputs=self._part(_CUT_BY_INPUTS[name], module.in_features, module.path))
        if name in _FUSED:
            return ModuleCut(outputs=self._runs(_FUSED[name], module.out_features, module.path))
        raise not_shared(module.path)

    def _runs(self, fused: Sequence["_By"], size: int, path: str) -> Runs:
        """Return the cuts of the `fused` linears' outputs, which lie one after another in one linear of `size`."""
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
            return split_columns(size, self.count, f"inner columns in {path}")[self.rank]
        own, every = (self.heads, self.whole.heads) if by is _By.HEADS else (self.kv_heads, self.whole.kv_heads)
        if size % every:
            raise not_shared(path)
        return own.times(size // every)


class _By(Enum):
    """The dimension that a linear's inputs or outputs are split by."""

    HEADS = auto()
    KV_HEADS = auto()
    INNER = auto()


_CUT_BY_OUTPUTS = {
    "q_proj": _By.HEADS, "q_b_proj": _By.HEADS, "kv_b_proj": _By.HEADS,
    "k_proj": _By.KV_HEADS, "v_proj": _By.KV_HEADS,
    "gate_proj": _By.INNER, "up_proj": _By.INNER,
}  # fmt: skip
_GATE_OF_HEADS = ".self_attn.gate_proj"  # AFMoE's: each head's output is multiplied by a gate
_FUSED = {"qkv_proj": (_By.HEADS, _By.KV_HEADS, _By.KV_HEADS), "gate_up_proj": (_By.INNER, _By.INNER)}  # Phi-3's
_CUT_BY_INPUTS = {"o_proj": _By.HEADS, "down_proj": _By.INNER}
_WIDE_NORMS = {"q_norm": _By.HEADS, "k_norm": _By.KV_HEADS}  # OLMo 2's
# Latent attention's way down, its indexer, Qwen2-MoE's gate of a shared expert, and Hunyuan's and AFMoE's routers.
_WHOLE = frozenset(
    {"q_a_proj", "kv_a_proj_with_mqa", "wq_b", "wk", "weights_proj", "shared_expert_gate", "wg", "gate"}
)


def share_out(of: Dimensions, count: int) -> tuple[Share, ...]:
    """Return every rank's share. Raises UnsupportedBase if there are too many ranks."""
    heads, keys = split_heads(of.heads, of.kv_heads, count)
    if of.vocabulary < count:
        raise too_many(count, f"{of.vocabulary} tokens")
    if 0 < of.experts < count:
        raise too_many(count, f"{of.experts} experts")
    vocabulary = split(of.vocabulary, count, VOCABULARY_UNIT)
    experts = split(of.experts, count)
    return tuple(Share(rank, count, of, heads[rank], keys[rank], experts[rank], vocabulary) for rank in range(count))


def is_shared(path: str) -> bool:
    """Whether each rank holds only a part of a decoder layer's linear."""
    return path.rpartition(".")[2] in _CUT_BY_OUTPUTS.keys() | _CUT_BY_INPUTS.keys() | _FUSED.keys()


def is_partial(path: str) -> bool:
    """Whether a decoder layer's linear yields only a partial sum on every rank."""
    return path.rpartition(".")[2] in _CUT_BY_INPUTS


def cuts_of(modules: Mapping[str, Module], share: Share) -> dict[str, ModuleCut]:
    """Return the rank's cut of each module that adapters may target. Raises UnsupportedBase for an unknown one."""
    return {path: share.of(module) for path, module in modules.items()}


def not_shared(path: str) -> UnsupportedBase:
    """Return the error for a base with a linear that cannot be split."""
    return UnsupportedBase(
        "tensorParallelSize",
        f"is more than 1, and the base has {path}, which cannot be split over ranks; set it to 1",
    )


def _slice(cut: Cut | None) -> slice:
    return slice(*cut) if cut else slice(None)
