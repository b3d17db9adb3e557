"""Tensors in a base's files, read when they are asked for, whole or in part; and models that are filled from them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from safetensors import safe_open
from transformers import PreTrainedModel


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


# Which tensors fill a model that has no memory yet, of those in the files; also told is how transformers loads it.
Choose = Callable[[PreTrainedModel, dict[str, Stored], Any], Mapping[str, Stored]]


def open_tensors(files: Iterable[str]) -> dict[str, Stored]:
    """Every tensor of safetensors files by its name."""
    found: dict[str, Stored] = {}
    for file in files:
        opened: Any = safe_open(file, framework="pt")
        found |= {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    return found


def filled_from(whole: type[PreTrainedModel], choose: Choose) -> type[PreTrainedModel]:
    """A kind of model whose `from_pretrained` reads what `choose` leaves of its files.

    transformers makes a model without memory and fills it from tensors that are read one after another; these are
    chosen, and the model may be cut, in between.
    """

    def load(model: Any, state: Any, files: list[str], config: Any, **options: Any) -> Any:
        chosen = choose(model, open_tensors(files), config)
        return whole._load_pretrained_model(model, dict(chosen), files, config, **options)

    changes = {"_load_pretrained_model": staticmethod(load), "__module__": whole.__module__}
    return type(whole.__name__, (whole,), changes)
