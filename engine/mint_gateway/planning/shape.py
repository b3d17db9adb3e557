"""A base's shape: what its parameters, a token's cache and an adapter come to, as the engine lays them out."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Kind = Literal["attention", "network", "expert"]
Targets = Literal["attention", "dense", "all"]

# Which linears adapters target: attention alone, all but routed experts, or every one.
KINDS: dict[Targets, tuple[Kind, ...]] = {
    "attention": ("attention",),
    "dense": ("attention", "network"),
    "all": ("attention", "network", "expert"),
}


class Linear(msgspec.Struct, frozen=True):
    """A linear map that adapters may target, and how many of it the base has over layers and experts."""

    name: str
    wide: int  # in
    high: int  # out
    count: int
    kind: Kind
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Of all of them."""
        return self.count * (self.wide * self.high + (self.high if self.bias else 0))


class BaseShape(msgspec.Struct, frozen=True):
    """A whole base. `other_parameters` are embeddings, norms, routers and what else no adapter targets."""

    model_type: str
    linears: tuple[Linear, ...]
    other_parameters: int
    cache_elements: int  # of one token, over all layers
    context_length: int

    @property
    def parameters(self) -> int:
        """All of the base's parameters."""
        return self.other_parameters + sum(linear.parameters for linear in self.linears)

    @property
    def experts(self) -> bool:
        """Whether it routes tokens to experts."""
        return any(linear.kind == "expert" for linear in self.linears)

    def adapter_elements(self, rank: int, targets: Targets) -> int:
        """Elements of an adapter in its slot: A [r, in] and B [r, out] of each linear."""
        return rank * sum(each.count * (each.wide + each.high) for each in self._targeted(targets))

    def adapter_tensors(self, targets: Targets) -> int:
        """Tensors of such an adapter in PEFT's files, two for each linear and expert."""
        return 2 * sum(each.count for each in self._targeted(targets))

    def _targeted(self, targets: Targets) -> Iterable[Linear]:
        return (each for each in self.linears if each.kind in KINDS[targets])
