"""A base's shape: the sizes of its parameters, a token's cache and an adapter, as the engine lays them out.

A rank's share of a base is a shape too (see `ranks`).
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from mint_contracts.errors import UnsupportedBase
from mint_contracts.layer_groups import PAGE_TOKENS, group_layers, most_pages
from mint_contracts.quantisation import (
    MXFP4_BYTES,
    MXFP4_GROUP,
    MXFP8,
    NVFP4_GROUP,
    WORD,
    Float8,
    Integers,
    Mxfp4,
    Nvfp4,
    Quantisation,
)

Kind = Literal["attention", "network", "expert"]
Targets = Literal["attention", "dense", "all"]
# How ranks split a linear: each holds all of it, some outputs, some inputs, or some of the experts.
Side = Literal["whole", "outputs", "inputs", "experts"]
# What its outputs or inputs consist of: heads, which are not split, or single columns of a network.
Of = Literal["columns", "heads", "kv_heads"]

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

# Which linears adapters target: attention alone, all but routed experts, or every one.
KINDS: dict[Targets, tuple[Kind, ...]] = {
    "attention": ("attention",),
    "dense": ("attention", "network"),
    "all": ("attention", "network", "expert"),
}


class Linear(msgspec.Struct, frozen=True):
    """A linear that adapters may target, and how many of it the base has over layers and experts."""

    name: str
    inputs: int
    outputs: int
    count: int
    kind: Kind
    bias: bool = False
    side: Side = "whole"
    of: tuple[Of, ...] = ("columns",)  # several: linears fused side by side
    within: str = ""  # the part of its path before the name, for a network or an indexer
    plain: int = 0  # how many of `count` are in two bytes per parameter in files where others are quantised

    @property
    def parameters(self) -> int:
        """The parameters of all of them."""
        return self.count * (self.inputs * self.outputs + (self.outputs if self.bias else 0))

    def bytes_in(self, files: Quantisation | None, size: int = 2) -> int:
        """Return the bytes of all of them in such files; biases and unquantised parameters take `size` bytes each."""
        biases, plain = size * self.outputs * self.count if self.bias else 0, size * self.inputs * self.outputs
        if isinstance(files, Float8):
            across = -(-self.inputs // (files.columns or self.inputs))
            blocks = across * -(-self.outputs // (files.rows or self.outputs))
            weights = self.inputs * self.outputs + blocks * (1 if files == MXFP8 else 4)
        elif isinstance(files, Mxfp4) and self.kind == "expert":
            weights = self.outputs * -(-self.inputs // MXFP4_GROUP) * (MXFP4_BYTES + 1)  # and a scale
        elif isinstance(files, Nvfp4):  # an upper bound for a mixture: which are in float8 is unknown
            small = not files.mixed or self.kind == "expert"
            weights = self.outputs * self.inputs // 2 + self.outputs * self.inputs // NVFP4_GROUP + 4
            weights = weights if small else self.outputs * self.inputs + 4
        elif isinstance(files, Integers):
            weights = self._packed_bytes(files)
        else:
            weights = plain
        return self.plain * plain + (self.count - self.plain) * weights + biases

    def _packed_bytes(self, files: Integers) -> int:
        """Return the bytes of one in integers: words along a row, two-byte scales, and two eight-byte sizes."""
        each = WORD // files.bits
        rows = -(-self.outputs // (files.rows or self.outputs))
        groups = -(-self.inputs // (files.columns or self.inputs))
        zeros = 0 if files.symmetric else 4 * -(-rows // each) * groups if files.rows else rows * groups
        order = 4 * self.inputs if files.reordered else 0
        return self.outputs * -(-self.inputs // each) * 4 + 2 * rows * groups + 16 + zeros + order


class BaseShape(msgspec.Struct, frozen=True):
    """A complete base, or one rank's share of it."""

    model_type: str
    linears: tuple[Linear, ...]
    hidden: int
    vocabulary: int
    head_rows: int  # of the head that makes logits; 0 if it is the embedding
    heads: int
    kv_heads: int
    experts: int  # per layer that routes to experts; 0: no layer does
    small_parameters: int  # norms, routers, vision models: no adapter targets them, and every rank holds them
    query_parameters: int  # per query head, besides linears
    key_parameters: int  # per key/value head, besides linears
    key_elements: int  # of one token's cache, per key/value head
    latent_elements: int  # of one token's cache, independent of the heads
    route_bytes: int  # of one token's experts, which the first rank of a training engine keeps with its cache
    context_length: int
    unserved: str  # the attention feature that engines refuse, or ""
    predicting: int  # multi-token prediction layers, which are in the files and not served
    lean: bool  # whether own kernels compute it on CPUs
    head_norms: bool  # norms of queries and keys, per head
    output_norms: bool  # norms of the outputs of attention and networks
    routes: int  # experts of a token, over all layers
    float32_parameters: int  # kept in float32 by transformers whatever the dtype; every rank holds all of them
    wide_in_float16: int  # kept in float32 only if the dtype is float16
    windows: tuple[int | None, ...]  # tokens that each layer's attention sees, including the newest; None: all
    indexer_top_k: int  # tokens that an indexer chooses for each row; 0: there is none
    shared_choices: int  # indexers whose choice the next layer shares
    narrowest: int | None  # the fewest tokens that any layer may see, even if the config does not say which
    files: Quantisation | None = None  # the weights' format in the files; None: two bytes per parameter
    keeps_quantised_experts: bool = False  # routed experts stay in memory in the files' format
    beside: tuple[Linear, ...] = ()  # linears among the other parameters that files may quantise: heads and routers
    unread: str = ""  # why engines cannot read the files, or ""

    @property
    def other_parameters(self) -> int:
        """All parameters except the linears that adapters may target."""
        rows = self.vocabulary + self.head_rows
        beside = self.heads * self.query_parameters + self.kv_heads * self.key_parameters
        return rows * self.hidden + self.small_parameters + beside

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.other_parameters + sum(linear.parameters for linear in self.linears)

    def packed_parameters(self, context: int) -> int:
        """Return the parameters of which own kernels keep a packed copy, for requests of at most `context` tokens.

        They are the head and all linears except experts', and except indexers' that have nothing to choose.
        """
        rows, sparse = self.head_rows or self.vocabulary, self.is_sparse(context)
        packed = (each for each in self.linears if each.kind != "expert" and (sparse or each.within != "indexer"))
        return rows * self.hidden + sum(each.parameters for each in packed)

    def resident_bytes(self, dtype: str) -> int:
        """Return the weights' bytes in memory, in `dtype` except what stays in float32 and experts kept quantised."""
        size = DTYPE_BYTES[dtype]
        wide = self.float32_parameters + (self.wide_in_float16 if dtype == "float16" else 0)
        beside = size * self.other_parameters + (4 - size) * wide
        return beside + sum(self._resident(linear, size) for linear in self.linears)

    def layer_bytes(self, size: int) -> int:
        """Return an upper bound of one decoder layer's linears in bytes: one of each, and all experts of a layer."""
        held = (each for each in self.linears if each.count)
        many = {"expert": self.experts}
        return sum(self._resident(each, size) * many.get(each.kind, 1) // each.count for each in held)

    def _resident(self, linear: Linear, size: int) -> int:
        return linear.bytes_in(self.files if self.keeps_quantised_experts and linear.kind == "expert" else None, size)

    @property
    def cache_elements(self) -> int:
        """The cache's elements for one token, over all layers."""
        return self.kv_heads * self.key_elements + self.latent_elements

    def cache_of(self, tokens: int, *, whole: bool) -> tuple[int, int]:
        """Return the cache places of a decoding request of `tokens` tokens, and the elements of each place.

        A place is for one token in one group of layers; tokens behind a group's window have none. `whole`: one group
        keeps all tokens, since the tokens' experts are stored with its places.
        """
        kept = tuple(None if each is None or each >= tokens else each for each in self.windows)
        if not any(kept) or (whole and None not in kept):
            return tokens, self.cache_elements
        groups = group_layers(kept)
        most = [tokens if each is None else PAGE_TOKENS * most_pages(each, 1) for each in groups.windows]
        places = sum(min(tokens, each) for each in most)
        return places, self.cache_elements // len(kept) * groups.size

    def is_sparse(self, context: int) -> bool:
        """Return whether an indexer has something to choose in requests of at most `context` tokens."""
        return 0 < self.indexer_top_k < context

    def is_lean(self, context: int) -> bool:
        """Return whether own kernels compute it on CPUs for requests of at most `context` tokens.

        They do not beyond a window if the config does not say which layers have it.
        """
        return self.lean and (self.narrowest is None or context <= self.narrowest or self.narrowest in self.windows)

    def trains_lean(self, context: int) -> bool:
        """Return whether own kernels train it on CPUs with `context` tokens: not if experts stay quantised."""
        return self.is_lean(context) and not self.keeps_quantised_experts

    def kept_elements(self, *, lean: bool) -> int:
        """Return the elements per row that training keeps from the forward pass for the backward pass.

        Own kernels (`lean`) keep what is costly to recompute (`mint_engine.training.lean_pass`); of a layer computed
        by transformers only the input is kept, and the rest is recomputed (`generic_pass`).
        """
        layers = sum(each.count for each in self.linears if each.name == "o_proj")
        if not lean:
            return layers * self.hidden
        turned = 2 if self.head_norms or self.key_parameters else 1  # both before and after norms, if there are any
        sizes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), turned)
        sizes |= dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "q_a_proj", "kv_a_proj_with_mqa"), 1)
        outputs, experts = 0, 0
        for each in self.linears:
            if each.kind == "expert":
                experts += each.outputs  # two of the inner size, and the output
            else:
                one = each.inputs if each.name == "o_proj" else each.outputs * sizes.get(each.name, 0)
                outputs += each.count * one
        return (4 if self.output_norms else 2) * layers * self.hidden + outputs + self.routes * experts

    def choice_bytes(self, context: int) -> int:
        """Return the bytes per row that own kernels keep in training of an indexer's choice: one bit per token."""
        if not self.is_sparse(context):
            return 0
        choosing = sum(each.count for each in self.linears if each.within == "indexer" and each.name == "wq_b")
        return choosing * -(-context // 8)

    def mask_bytes(self, context: int) -> int:
        """Return the bytes of indexers' choices that transformers' modules have in training: one per pair of tokens.

        They are those of the layer in progress, and shared ones.
        """
        return (1 + self.shared_choices) * context**2 if self.is_sparse(context) else 0

    @property
    def layer_outputs(self) -> int:
        """The outputs of a layer's linears except routed experts', in the layer that has most of them."""
        outputs = Counter[str]()
        for each in self.linears:
            if each.count:
                outputs["attention" if each.kind == "attention" else each.within] += each.outputs
        del outputs["experts"]
        return outputs.pop("attention") + max(outputs.values(), default=0)

    def bytes_in(self, files: Quantisation | None) -> int:
        """Return the weights' bytes with linears, also those `beside`, in this format and the rest in two bytes."""
        smaller = sum(each.bytes_in(None) - each.bytes_in(files) for each in self.beside)
        return 2 * self.other_parameters - smaller + sum(linear.bytes_in(files) for linear in self.linears)

    @property
    def files_bytes(self) -> int:
        """The bytes of the published weights, including multi-token prediction layers with embedding and head again.

        As in DeepSeek-V3's README_WEIGHTS.md: 671 billion parameters, and 14 billion of one such layer.
        """
        each = 2 * self.vocabulary * self.hidden + 2 * self.hidden**2  # and the projection that joins two states
        beside = each + 5 * self.hidden + self.experts * self.hidden  # norms, and a router
        layer = sum(self._one_layer(linear).bytes_in(self.files) for linear in self.linears)
        return self.bytes_in(self.files) + self.predicting * (layer + 2 * beside)

    def _one_layer(self, linear: Linear) -> Linear:
        """Return the part of a linear that one layer with routed experts has."""
        many = self.experts if linear.kind == "expert" else min(1, linear.count)
        count = 0 if linear.within == "mlp" and self.experts else many
        plain = count * linear.plain // max(1, linear.count)
        return msgspec.structs.replace(linear, count=count, plain=plain)

    def adapter_elements(self, rank: int, targets: Targets) -> int:
        """Return the elements of an adapter in its slot: A [r, in] and B [r, out] of each linear."""
        return rank * sum(each.count * (each.inputs + each.outputs) for each in self._targeted(targets))

    def policy_elements(self, rank: int, targets: Targets) -> int:
        """Return the elements of such an adapter that are trained: not an indexer's, whose choice has no gradient."""
        learning = (each for each in self._targeted(targets) if each.within != "indexer")
        return rank * sum(each.count * (each.inputs + each.outputs) for each in learning)

    def adapter_tensors(self, targets: Targets) -> int:
        """Return the number of tensors of such an adapter in PEFT's files: two for each linear and expert."""
        return 2 * sum(each.count for each in self._targeted(targets))

    def adapter_parts(self, targets: Targets) -> int:
        """Return the number of modules of such an adapter, counting a layer's experts as one."""
        held = self._targeted(targets)
        return sum(each.count // (self.experts if each.kind == "expert" else 1) for each in held)

    def target_modules(self, targets: Targets) -> tuple[str, ...]:
        """Return the targetModules of a BaseModel that target exactly these; empty if that is all of them."""
        held = [each for each in self.linears if each.count]
        beside = {each.name for each in held if each.kind not in KINDS[targets]}
        names = {
            f"{each.within}.{each.name}" if each.name in beside else each.name for each in self._targeted(targets)
        }
        return tuple(sorted(names)) if beside else ()

    def _targeted(self, targets: Targets) -> Iterable[Linear]:
        return (each for each in self.linears if each.count and each.kind in KINDS[targets])


def keep_experts(shape: BaseShape, subject: str) -> BaseShape:
    """Return the base with routed experts that stay quantised, see `mint_engine.model.quantised_experts`.

    Raises UnsupportedBase about `subject` if it has no quantised experts.
    """
    if not can_keep_experts(shape):
        raise UnsupportedBase(subject, "has no quantised routed experts; leave out --quantised-experts")
    reordered = isinstance(shape.files, Integers) and shape.files.reordered  # which own kernels do not read
    return msgspec.structs.replace(shape, keeps_quantised_experts=True, lean=shape.lean and not reordered)


def can_keep_experts(shape: BaseShape) -> bool:
    """Return whether a base's files have quantised routed experts."""
    experts = [each for each in shape.linears if each.kind == "expert" and each.count]
    return any(each.bytes_in(shape.files) != each.bytes_in(None) for each in experts)
