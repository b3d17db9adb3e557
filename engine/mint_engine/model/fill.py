"""Models that are filled from a base's tensors, as transformers loads them."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

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
from mint_engine.model.kept import EXPERT, Kept, Place, kind_of, put_stacks
from mint_engine.model.stored import Stored, open_tensors

# Reads a base's tensors into a model that has no memory yet, as `fill` does; also told is how transformers loads it.
Fill = Callable[[PreTrainedModel, dict[str, Stored], Any], LoadStateDictInfo]

# What keeps experts in their order and does nothing else between them or within one linear of theirs.
_HARMLESS = (MergeModulelist, Concatenate)


class Naming:
    """What tensors in a base's files are called in its model, by how transformers loads it."""

    def __init__(self, model: PreTrainedModel, loading: Any) -> None:
        steps = loading.weight_mapping or ()
        self._renamings = [each for each in steps if isinstance(each, WeightRenaming)]
        self._converters = [each for each in steps if isinstance(each, WeightConverter)]
        self._prefix, self._names = model.base_model_prefix, model.state_dict()

    def of(self, key: str) -> str:
        """The tensor's own name, before it is put together with others."""
        return self._renamed(key, [])[0]

    def whole(self, key: str) -> str:
        """What it is, or becomes a part of."""
        return self._renamed(key, self._converters)[0]

    def place(self, key: str) -> Place:
        """Where the tensor of one or all routed experts goes. Raises UnsupportedBase where it does not as it is."""
        whole, pattern = self._renamed(key, self._converters)
        if pattern is None:
            return Place(whole, 0)
        if not self.keeps(key):
            told = f"is true, but {key} is changed before it is used; leave it out"
            raise UnsupportedBase("quantisedExperts", told)
        return Place(whole, self._converter_of(pattern).source_patterns.index(pattern))

    def keeps(self, key: str) -> bool:
        """Whether the tensor is put together with others, one after another, and nothing else is done with it."""
        _, pattern = self._renamed(key, self._converters)
        return pattern is None or all(isinstance(each, _HARMLESS) for each in self._converter_of(pattern).operations)

    def _converter_of(self, pattern: str) -> WeightConverter:
        return next(each for each in self._converters if pattern in each.source_patterns)

    def _renamed(self, key: str, converters: list[WeightConverter]) -> tuple[str, str | None]:
        return rename_source_key(key, self._renamings, converters, self._prefix, self._names)


def fill(model: PreTrainedModel, tensors: Mapping[str, Stored], loading: Any) -> LoadStateDictInfo:
    """Read tensors into a model, put together as it has them; returns what of it these do not fill.

    Raises UnsupportedBase for experts that can not be kept as they are.
    """
    if not any(isinstance(each, Kept) for each in tensors.values()):
        return _convert(model, tensors, loading)
    naming = Naming(model, loading)
    kept, others = _divide(tensors, naming)
    put_stacks(model, [(naming.of(key), naming.place(key), tensor) for key, tensor in kept.items()])
    return _convert(model, others, loading)


def _divide(tensors: Mapping[str, Stored], naming: Naming) -> tuple[dict[str, Kept], dict[str, Stored]]:
    """What stays quantised, and all else: also of experts whose stack is quantised in part alone, or in more ways."""
    plain = {key for key, tensor in tensors.items() if EXPERT.search(key) and not isinstance(tensor, Kept)}
    mixed = {naming.whole(key) for key in plain}
    kinds: dict[Place, Hashable] = {}
    for key, tensor in tensors.items():
        if isinstance(tensor, Kept) and naming.keeps(key):
            place, kind = naming.place(key), kind_of(tensor.experts[0])
            if kinds.setdefault(place, kind) != kind:
                mixed.add(place.stack)
    kept, others = dict[str, Kept](), dict[str, Stored]()
    for key, tensor in tensors.items():
        if not isinstance(tensor, Kept):
            others[key] = tensor
        elif naming.whole(key) in mixed:
            (others[key],) = tensor.experts
        else:
            kept[key] = tensor
    return kept, others


def _convert(model: PreTrainedModel, tensors: Mapping[str, Stored], loading: Any) -> LoadStateDictInfo:
    info: LoadStateDictInfo = convert_and_load_state_dict_in_model(model, dict(tensors), loading)[0]
    return info


def filled_from(whole: type[PreTrainedModel], by: Fill) -> type[PreTrainedModel]:
    """A kind of model whose `from_pretrained` has its files' tensors read by `by`.

    transformers makes a model without memory and fills it from tensors that are read one after another; these are
    chosen, and the model may be cut, in between.
    """

    def load(model: Any, _: Any, files: list[str], loading: Any, **__: Any) -> Any:
        return by(model, open_tensors(files), loading), None

    changes = {"_load_pretrained_model": staticmethod(load), "__module__": whole.__module__}
    return type(whole.__name__, (whole,), changes)
