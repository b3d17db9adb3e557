"""Loads a base's tensors into models, the way transformers does."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.device import HOST
from mint_engine.model.quantised_experts import EXPERT, Place, QuantisedExperts, kind_of, put_stacks
from mint_engine.model.stored import Stored, open_tensors

# Reads tensors into a model without memory, like `load_weights`; the last argument says how transformers loads it.
LoadWeights = Callable[[PreTrainedModel, dict[str, Stored], Any], LoadStateDictInfo]

# Operations that keep experts in order and do nothing else between them or within one of their linears.
_HARMLESS = (MergeModulelist, Concatenate)
# Routers add it to the scores by which they choose. Its values may differ by less than rounding: all of a layer's are
# about 7 in GLM-5.2, where bfloat16's steps are 1/32. Some of transformers' classes do not keep it (MiniMax-M2's).
_KEPT_IN_FLOAT32 = "e_score_correction_bias"


class Name(NamedTuple):
    """The name in its model of a tensor in a base's files."""

    own: str  # before it is merged with others
    whole: str  # of the parameter that it is, or becomes a part of
    order: int  # its index among the tensors that are merged
    keeps: bool  # whether merging puts tensors one after another and does nothing else


class Naming:
    """Finds the names in a model of tensors in a base's files, by how transformers loads it."""

    def __init__(self, model: PreTrainedModel, loading: Any) -> None:
        steps = loading.weight_mapping or ()
        self._renamings = [each for each in steps if isinstance(each, WeightRenaming)]
        self._converters = [each for each in steps if isinstance(each, WeightConverter)]
        self._prefix, self._names = model.base_model_prefix, model.state_dict()

    def of(self, key: str) -> Name:
        """Return one tensor's name. A base has up to a million, and each is matched with dozens of patterns."""
        renamed, _ = rename_source_key(key, self._renamings, [])
        own, _ = rename_source_key(renamed, [], [], self._prefix, self._names)
        whole, pattern = rename_source_key(renamed, [], self._converters, self._prefix, self._names)
        if pattern is None:
            return Name(own, whole, 0, keeps=True)
        converter = next(each for each in self._converters if pattern in each.source_patterns)
        keeps = all(isinstance(each, _HARMLESS) for each in converter.operations)
        return Name(own, whole, converter.source_patterns.index(pattern), keeps)

    def of_all(self, keys: Iterable[str]) -> dict[str, Name]:
        """Return each tensor's name."""
        return {key: self.of(key) for key in keys}


def load_weights(
    model: PreTrainedModel,
    tensors: Mapping[str, Stored],
    loading: Any,
    names: Mapping[str, Name] | None = None,
    mixed: Set[str] | None = None,
    device: torch.device = HOST,
) -> LoadStateDictInfo:
    """Read tensors into a model, merged as the model needs; return what of the model they do not fill.

    Each tensor is put on the `device` as it is read, and merged there: host memory then holds only the few that are
    being read. `names` are found if not given, as are the `mixed` stacks; pass `mixed` if not all of a stack's
    tensors are here. Raises UnsupportedBase for experts that cannot be kept quantised, and OutOfMemoryError.
    """
    if not any(isinstance(each, QuantisedExperts) for each in tensors.values()):
        return _convert(model, tensors, loading, device)
    known = Naming(model, loading).of_all(tensors) if names is None else names
    kept, others = _divide(tensors, known, find_mixed(tensors, known) if mixed is None else mixed)
    put_stacks(model, [(known[key].own, _place(key, known[key]), tensor) for key, tensor in kept.items()], device)
    return _convert(model, others, loading, device)


def _place(key: str, name: Name) -> Place:
    """Return where a tensor of one or all routed experts goes. Raises UnsupportedBase if it is changed first."""
    if not name.keeps:
        message = f"is true, but {key} is changed before it is used; leave it out"
        raise UnsupportedBase("quantisedExperts", message)
    return Place(name.whole, name.order)


def find_mixed(tensors: Mapping[str, Stored], names: Mapping[str, Name]) -> Set[str]:
    """Return stacks of experts that are only partly quantised, or in several ways: these do not stay quantised."""
    mixed, kinds = set[str](), dict[tuple[str, int], Hashable]()
    for key, tensor in tensors.items():
        if isinstance(tensor, QuantisedExperts):
            kind = kind_of(tensor.experts[0])
            if kinds.setdefault((names[key].whole, names[key].order), kind) != kind:
                mixed.add(names[key].whole)
        elif EXPERT.search(key):
            mixed.add(names[key].whole)
    return mixed


def _divide(
    tensors: Mapping[str, Stored], names: Mapping[str, Name], mixed: Set[str]
) -> tuple[dict[str, QuantisedExperts], dict[str, Stored]]:
    """Split tensors into those that stay quantised and the others."""
    kept, others = dict[str, QuantisedExperts](), dict[str, Stored]()
    for key, tensor in tensors.items():
        if not isinstance(tensor, QuantisedExperts):
            others[key] = tensor
        elif names[key].whole in mixed:
            (others[key],) = tensor.experts
        else:
            kept[key] = tensor
    return kept, others


def _convert(
    model: PreTrainedModel, tensors: Mapping[str, Stored], loading: Any, device: torch.device
) -> LoadStateDictInfo:
    placed = replace(loading, device_map={"": device}) if device != HOST else loading
    info: LoadStateDictInfo = convert_and_load_state_dict_in_model(model, dict(tensors), placed)[0]
    for problem in info.conversion_errors.values():  # where transformers puts what merging raised
        if "out of memory" in problem:
            raise torch.OutOfMemoryError(problem)
    return info


def with_loader(whole: type[PreTrainedModel], by: LoadWeights) -> type[PreTrainedModel]:
    """Return a model class whose `from_pretrained` reads its files' tensors with `by`.

    transformers creates a model without memory and fills it with tensors that are read one by one; `by` chooses
    these, and may cut the model before. transformers would also add an adapter that lies beside them, if PEFT is
    installed; it is left out, being no part of the base. Tensors of a GGUF file are those that transformers finds.
    What corrects the choice of experts stays in float32 in every family.
    """
    read: list[LoadStateDictInfo] = []

    def load(model: Any, found: Any, files: list[str], loading: Any, **__: Any) -> Any:
        read.append(by(model, open_tensors(files) if found is None else found, loading))
        return read[-1], None

    def leave_adapter(*_: Any, **__: Any) -> LoadStateDictInfo:
        return read[-1]

    kept = {*(whole._keep_in_fp32_modules_strict or ()), _KEPT_IN_FLOAT32}
    changes = {
        "_load_pretrained_model": staticmethod(load), "load_adapter": leave_adapter, "__module__": whole.__module__,
        "_keep_in_fp32_modules_strict": kept,
    }  # fmt: skip
    return type(whole.__name__, (whole,), changes)
