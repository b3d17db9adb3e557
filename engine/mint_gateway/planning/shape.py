"""A base's shape: what its parameters, a token's cache and an adapter come to, as the engine lays them out.

A rank's share of a base is a shape too (see `ranks`).
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

Kind = Literal["attention", "network", "expert"]
Targets = Literal["attention", "dense", "all"]
# How ranks share a linear: each holds all of it, some outputs, some inputs, or some of the experts.
Side = Literal["whole", "outputs", "inputs", "experts"]
# What its outputs or inputs are made of: heads that stay whole, or single columns of a network.
Of = Literal["columns", "heads", "kv_heads"]

# Which linears adapters target: attention alone, all but routed experts, or every one.
KINDS: dict[Targets, tuple[Kind, ...]] = {
    "attention": ("attention",),
    "dense": ("attention", "network"),
    "all": ("attention", "network", "expert"),
}
FLOAT8_BLOCK = 128  # rows and columns that have one float32 scale (DeepSeek-V3, arXiv 2412.19437, section 3.3.2)


class Linear(msgspec.Struct, frozen=True):
    """A linear map that adapters may target, and how many of it the base has over layers and experts."""

    name: str
    wide: int  # in
    high: int  # out
    count: int
    kind: Kind
    bias: bool = False
    side: Side = "whole"
    of: Of = "columns"

    @property
    def parameters(self) -> int:
        """Of all of them."""
        return self.count * (self.wide * self.high + (self.high if self.bias else 0))

    @property
    def float8_bytes(self) -> int:
        """Of all of them, a byte each weight and a scale each block; biases stay in two bytes."""
        blocks = -(-self.wide // FLOAT8_BLOCK) * -(-self.high // FLOAT8_BLOCK)
        return self.count * (self.wide * self.high + 4 * blocks + (2 * self.high if self.bias else 0))


class BaseShape(msgspec.Struct, frozen=True):
    """A whole base, or one rank's share of it."""

    model_type: str
    linears: tuple[Linear, ...]
    hidden: int
    vocabulary: int
    head_rows: int  # of the head that makes logits; none where it is the embedding
    heads: int
    kv_heads: int
    experts: int  # that a layer routes to; 0: none does
    small_parameters: int  # norms, routers: what no adapter targets and every rank holds
    query_parameters: int  # of every query head beside linears
    key_elements: int  # of one token's cache, for every key/value head
    latent_elements: int  # of one token's cache, whatever the heads
    context_length: int
    quantised: bool = False  # in its published files

    @property
    def other_parameters(self) -> int:
        """All but the linears that adapters may target."""
        rows = self.vocabulary + self.head_rows
        return rows * self.hidden + self.small_parameters + self.heads * self.query_parameters

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.other_parameters + sum(linear.parameters for linear in self.linears)

    @property
    def cache_elements(self) -> int:
        """Of one token, over all layers."""
        return self.kv_heads * self.key_elements + self.latent_elements

    @property
    def float8_bytes(self) -> int:
        """The weights with linears in float8 and all else in two bytes, as DeepSeek-V3 and Kimi-K2 are published."""
        return 2 * self.other_parameters + sum(linear.float8_bytes for linear in self.linears)

    def adapter_elements(self, rank: int, targets: Targets) -> int:
        """Elements of an adapter in its slot: A [r, in] and B [r, out] of each linear."""
        return rank * sum(each.count * (each.wide + each.high) for each in self._targeted(targets))

    def adapter_tensors(self, targets: Targets) -> int:
        """Tensors of such an adapter in PEFT's files, two for each linear and expert."""
        return 2 * sum(each.count for each in self._targeted(targets))

    def _targeted(self, targets: Targets) -> Iterable[Linear]:
        return (each for each in self.linears if each.kind in KINDS[targets])
