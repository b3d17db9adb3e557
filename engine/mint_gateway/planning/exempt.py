"""Which linears files hold in plain numbers though others are packed, as compressed-tensors' config.json says."""

import re
from collections.abc import Callable, Sequence

from mint_contracts.quantisation import Integers
from mint_gateway.planning.shape import Linear

_EVERY, _PATTERN = "Linear", "re:"  # a kind of modules, and what begins a pattern of their paths
_BEFORE = ("model.", "model.language_model.", "language_model.model.")  # of models for text alone, and for images too
_HEADS = ("lm_head", "language_model.lm_head")
_WITHIN = {
    "": "self_attn", "indexer": "self_attn.indexer", "mlp": "mlp", "shared_experts": "mlp.shared_experts",
    "experts": "mlp.experts.0",
}  # fmt: skip


def plain_layers(linear: Linear, layers: Sequence[int], files: Integers) -> int:
    """In how many of these layers, all that have such a linear, it is in plain numbers.

    Of experts the first tells of all. Raises ValueError for a pattern that is none.
    """
    path = f"{_WITHIN[linear.within]}.{linear.name}"
    return sum(_is_plain([f"{before}layers.{layer}.{path}" for before in _BEFORE], files) for layer in layers)


def head_is_plain(files: Integers) -> bool:
    """Whether the head that makes logits is in plain numbers. Raises ValueError as `plain_layers` does."""
    return _is_plain(_HEADS, files)


def _is_plain(paths: Sequence[str], files: Integers) -> bool:
    """Whether a linear is that may have any of these paths."""
    try:
        targeted, ignored = _named(files.targets), _named(files.ignored)
    except re.error as error:
        raise ValueError(f"the pattern {error.pattern!r} is none") from None
    return any(map(ignored, paths)) or not any(map(targeted, paths))


def _named(told: Sequence[str]) -> Callable[[str], bool]:
    """Whether a module of such a path is among what is told."""
    names = {each for each in told if not each.startswith(_PATTERN)}
    patterns = [re.compile(each.removeprefix(_PATTERN)) for each in told if each.startswith(_PATTERN)]
    return lambda path: _EVERY in names or path in names or any(each.match(path) for each in patterns)
