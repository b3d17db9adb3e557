"""What one rank reads of a base's files: its slices of shared tensors, its own experts, and what all ranks hold.

The model is cut before it has memory, and the tensors that fill it are cut in the same way, so that no more than the
rank's share is ever in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.loading_report import LoadStateDictInfo

from mint_engine.adapters.adapter import Module
from mint_engine.model.base import Check
from mint_engine.model.device import HOST
from mint_engine.model.modules import find_modules, layers_prefix
from mint_engine.model.quantised_experts import EXPERT, QuantisedExperts, every_weight
from mint_engine.model.stored import Stored
from mint_engine.model.weight_loader import Naming, find_mixed, load_weights
from mint_engine.parallel.shard import STACKED, shard, share_of
from mint_engine.parallel.shares import Share, is_partial, is_shared

_Part = tuple[slice, ...]  # a part of a tensor: a slice for each of its first dimensions
_ALL: list[_Part] = [()]


class Part:
    """A rank's part of a base: first cuts the model, then fills it from the files."""

    def __init__(
        self, rank: int, count: int, target_modules: Iterable[str] = (), device: torch.device = HOST
    ) -> None:
        """On the `device` is put what is read, unless it has to be cut first."""
        self._rank, self._count, self._targets, self._device = rank, count, tuple(target_modules), device
        self.share: Share | None = None
        self.modules: Mapping[str, Module] = {}  # that adapters may target, uncut

    def cut(self, model: PreTrainedModel) -> Share:
        """Cut an uncut model to the rank's share and return that; a second call only returns it.

        Raises UnsupportedBase.
        """
        if self.share is None:
            share = share_of(model, self._rank, self._count)
            self.modules = find_modules(model, self._targets)
            shard(model, share)
            self.share = share
        return self.share

    def load_weights(self, model: PreTrainedModel, tensors: dict[str, Stored], loading: Any) -> LoadStateDictInfo:
        """Read the base's tensors that fill this part, or all of them if the part cannot be told apart beforehand."""
        names, prefix = Naming(model, loading).of_all(tensors), layers_prefix(model)
        inside = {key: name.own for key, name in names.items() if name.whole.startswith(prefix)}
        if not all(names[key].keeps for key in inside):
            return load_weights(model, tensors, loading, names)
        mixed = find_mixed(tensors, names)  # over all experts: another rank's may make a stack mixed
        return load_weights(model, _select(tensors, inside, self.cut(model)), loading, names, mixed, self._device)

    def finish(self, model: PreTrainedModel, check: Check) -> None:
        """Do nothing: everything has been read."""

    def unchecked(self, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
        """See `model.base.Part`."""
        return every_weight(model)


class _Slice:
    """Parts of a tensor in a file, concatenated along the first dimension; read when indexed."""

    def __init__(self, tensor: Stored, parts: Sequence[_Part]) -> None:
        self._tensor, self._parts = tensor, parts

    def get_shape(self) -> list[int]:
        shape = self._tensor.get_shape()
        cuts = [[len(range(size)[cut]) for size, cut in zip(shape, part, strict=False)] for part in self._parts]
        return [sum(cut[0] for cut in cuts), *cuts[0][1:], *shape[len(cuts[0]) :]]

    def get_dtype(self) -> str:
        return self._tensor.get_dtype()

    def __getitem__(self, _: Any) -> torch.Tensor:
        return torch.cat([self._tensor[part] for part in self._parts])


def _select(tensors: Mapping[str, Stored], inside: Mapping[str, str], share: Share) -> dict[str, Stored]:
    """Return what the rank reads: its parts of tensors `inside` decoder layers (key -> own name), all of others."""
    found: dict[str, Stored] = {}
    for key, tensor in tensors.items():
        parts = parts_of(inside[key], tensor.get_shape, share) if key in inside else _ALL
        if parts:
            found[key] = tensor if parts == _ALL else _part_of(tensor, parts)
    return found


def _part_of(tensor: Stored, parts: Sequence[_Part]) -> Stored:
    if isinstance(tensor, QuantisedExperts):
        ((experts,),) = parts
        return tensor.cut(experts)
    return _Slice(tensor, parts)


def parts_of(key: str, get_shape: Callable[[], Sequence[int]], share: Share) -> list[_Part]:
    """Return the parts that the rank reads of a decoder layer's tensor of that name; it concatenates them by rows.

    Getting a shape may read the file, and there may be very many experts: `get_shape` is only called if needed.
    """
    if expert := EXPERT.search(key):
        return _ALL if int(expert[1]) in range(*share.experts) else []
    path, _, kind = key.rpartition(".")
    if kind in STACKED and path.endswith(".experts"):
        return [(slice(*share.experts),)]
    if kind == "sinks":
        return [(slice(*share.heads),)]
    shape = get_shape()
    high, wide = (*shape, 0, 0)[:2]
    if norm := share.of_norm(path, high):
        return [(slice(*norm),)]
    if not is_shared(path):
        return _ALL
    if kind == "bias" and is_partial(path):
        return _ALL if share.rank == 0 else []
    inputs, outputs, _ = share.of(Module(path, wide, high)).slices
    return [(run, inputs)[: len(shape)] for run in outputs]
