"""Routed experts that stay in memory as a base's files have them, quantised; each is dequantised when it is used.

So a trillion parameters take a quarter or half of what they do in bfloat16. An expert is dequantised to what it would
be if all were: answers and gradients are the same, to the bit.

Letters in shapes: E experts, O outputs, I inputs.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedModel

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.stored import Stored

EXPERT = re.compile(r"\.experts\.(\d+)\.")
_STACKS = ("gate_up_proj", "down_proj")


@runtime_checkable
class Quantised(Stored, Protocol):
    """A tensor that is dequantised when it is read."""

    def held(self, device: torch.device) -> "Quantised":
        """The same, of what has been read into a device's memory as it lies in files."""
        ...


@runtime_checkable
class QuantisedStack(Stored, Protocol):
    """Such tensors of all experts in one."""

    def experts(self) -> Sequence[Quantised]:
        """Each by itself."""
        ...


@dataclass(frozen=True)
class Kept:
    """A tensor of files that is to stay quantised, expert by expert: of one of them, or of all."""

    experts: tuple[Quantised, ...]

    def get_shape(self) -> list[int]:
        """See `Stored`."""
        return [len(self.experts), *self.experts[0].get_shape()]

    def get_dtype(self) -> str:
        """See `Stored`."""
        return self.experts[0].get_dtype()

    def __getitem__(self, part: Any) -> torch.Tensor:
        return torch.stack([each[...] for each in self.experts])[part]

    def cut(self, held: slice) -> "Kept":
        """Of some experts alone."""
        return Kept(self.experts[held])


class Place(NamedTuple):
    """Where one expert's tensor belongs: to which stack of the model, and which of those that are put together."""

    stack: str  # e.g. "model.layers.0.mlp.experts.gate_up_proj"
    order: int


class KeptStack:
    """One linear of a layer's experts, for who takes an expert of [E, O, I] at a time. It never changes."""

    ndim = 3
    _is_hf_initialized = True  # so that transformers does not make numbers up for it

    def __init__(self, experts: Sequence[Sequence[Quantised]]) -> None:
        """Of each expert the linears that are one, whose outputs are one below another."""
        self._experts = experts

    @property
    def shape(self) -> torch.Size:
        """As that of a tensor: [E, O, I]."""
        return torch.Size((len(self._experts), *_shape(self._experts[0])))

    def __getitem__(self, expert: int | torch.Tensor) -> torch.Tensor:
        parts = self._experts[int(expert)]
        whole = parts[0][...] if len(parts) == 1 else torch.cat([each[...] for each in parts])
        return whole.contiguous()  # as a tensor of all of them has it: products round by how their inputs lie

    def __deepcopy__(self, _: Any) -> "KeptStack":
        return self  # as parameters that a model shares with its copy

    def cut(self, held: slice) -> "KeptStack":
        """Of some experts alone."""
        return KeptStack(self._experts[held])

    def to(self, device: torch.device) -> "KeptStack":
        """The same in a device's memory."""
        return KeptStack([[each.held(device) for each in parts] for parts in self._experts])


def keep_experts(tensors: Mapping[str, Stored], subject: str) -> dict[str, Stored]:
    """A base's tensors, those of quantised routed experts to be kept as they are. Raises UnsupportedBase for none."""
    found = {name: _kept(name, tensor) or tensor for name, tensor in tensors.items()}
    if not any(isinstance(each, Kept) for each in found.values()):
        raise nothing_to_keep(subject)
    return found


def nothing_to_keep(subject: str) -> UnsupportedBase:
    """A base without quantised experts, of which such are to be kept."""
    return UnsupportedBase(
        "quantisedExperts", f"is true, but {subject} has no quantised routed experts; leave it out"
    )


def _kept(name: str, tensor: Stored) -> Kept | None:
    if isinstance(tensor, QuantisedStack):
        return Kept(tuple(tensor.experts()))
    return Kept((tensor,)) if isinstance(tensor, Quantised) and EXPERT.search(name) else None


def put_stacks(model: PreTrainedModel, tensors: Iterable[tuple[str, Place, Kept]]) -> None:
    """Have a model's stacks be of kept tensors, by their names and places, which are read into the host's memory.

    What belongs to none of them is left alone, as layers that predict further tokens. Raises UnsupportedBase.
    """
    found: dict[str, dict[tuple[int, int], Quantised]] = defaultdict(dict)
    held = {f"{path}.{name}" for path, _ in model.named_modules() for name in _STACKS}
    for name, place, tensor in tensors:
        number = EXPERT.search(name)
        for at, each in enumerate(tensor.experts, int(number[1]) if number else 0):
            if place.stack in held:
                found[place.stack][at, place.order] = each.held(torch.device("cpu"))
    for path, parts in found.items():
        experts: dict[int, list[Quantised]] = defaultdict(list)
        for (at, _), each in sorted(parts.items(), key=lambda item: item[0]):
            experts[at].append(each)
        _put(model, path, list(experts.values()))


def _put(model: PreTrainedModel, path: str, experts: Sequence[Sequence[Quantised]]) -> None:
    parent, _, name = path.rpartition(".")
    module: Any = model.get_submodule(parent)
    count, *expected = getattr(module, name).shape
    odd = next((_shape(parts) for parts in experts if _shape(parts) != tuple(expected)), None)
    if odd is not None or len(experts) != count:
        told = f"has {len(experts)} experts of {list(odd or expected)}, and by its config.json {count} of {expected}"
        raise UnsupportedBase(path, f"{told}; get its files again")
    delattr(module, name)
    setattr(module, name, KeptStack(experts))


def _shape(parts: Sequence[Quantised]) -> tuple[int, int]:
    """Of one expert, [O, I]."""
    shapes = [each.get_shape() for each in parts]
    return sum(shape[0] for shape in shapes), shapes[0][1]


def move(model: nn.Module, device: torch.device) -> None:
    """Have all of a model in a device's memory."""
    nn.Module.to(model, device)
    for module in model.modules():
        for name in _STACKS:
            if isinstance(stack := getattr(module, name, None), KeptStack):
                setattr(module, name, stack.to(device))


def kept_weights(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every expert's weights that are kept quantised, by name, dequantised one after another."""
    for path, each in module.named_modules(prefix=prefix):
        for name in _STACKS:
            if isinstance(stack := getattr(each, name, None), KeptStack):
                for at in range(stack.shape[0]):
                    yield f"{path}.{name} of expert {at}", stack[at]
