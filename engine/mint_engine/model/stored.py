"""Tensors in a base's files, read when they are asked for, whole or in part; and models that are filled from them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo


class Stored(Protocol):
    """A tensor of which nothing is read yet."""

    def get_shape(self) -> Sequence[int]:
        """Its sizes, from the file's header."""
        ...

    def get_dtype(self) -> str:
        """As safetensors names it, e.g. BF16 or F8_E4M3."""
        ...

    def __getitem__(self, part: Any) -> torch.Tensor:
        """Read all of it, by `...`, or a part, by a slice for each of its first dimensions."""
        ...


# Reads a base's tensors into a model that has no memory yet, as `fill` does; also told is how transformers loads it.
Fill = Callable[[PreTrainedModel, dict[str, Stored], Any], LoadStateDictInfo]


def open_tensors(files: Iterable[str]) -> dict[str, Stored]:
    """Every tensor of safetensors files by its name."""
    found: dict[str, Stored] = {}
    for file in files:
        opened: Any = safe_open(file, framework="pt")
        found |= {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    return found


class Naming:
    """What tensors in a base's files are called in its model, by how transformers loads it."""

    def __init__(self, model: PreTrainedModel, loading: Any) -> None:
        steps = loading.weight_mapping or ()
        self._renamings = [each for each in steps if isinstance(each, WeightRenaming)]
        self._converters = [each for each in steps if isinstance(each, WeightConverter)]
        self._prefix, self._names = model.base_model_prefix, model.state_dict()

    def of(self, key: str) -> str:
        """The tensor's own name, before it is put together with others."""
        return self._rename(key, [])

    def whole(self, key: str) -> str:
        """What it is, or becomes a part of."""
        return self._rename(key, self._converters)

    def _rename(self, key: str, converters: list[WeightConverter]) -> str:
        return rename_source_key(key, self._renamings, converters, self._prefix, self._names)[0]


def fill(model: PreTrainedModel, tensors: Mapping[str, Stored], loading: Any) -> LoadStateDictInfo:
    """Read tensors into a model, put together as it has them; returns what of it these do not fill."""
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
