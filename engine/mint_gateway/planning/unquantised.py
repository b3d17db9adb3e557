"""Which linears a quantised base's files hold unquantised ("plain"), according to its config.json.

compressed-tensors and NVIDIA's ModelOpt name all of them. Other formats leave heads and routers unquantised, and name
at most those.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from mint_contracts.quantisation import quantisation_config
from mint_gateway.planning.shape import Linear

_EVERY, _PATTERN = "Linear", "re:"  # the class of all linears, and the prefix of a pattern of paths
_BEFORE = ("model.", "model.language_model.", "language_model.model.")  # path prefixes, without and with vision
_HEADS = ("lm_head", "language_model.lm_head")
_WITHIN = {
    "": "self_attn", "indexer": "self_attn.indexer", "mlp": "mlp", "shared_experts": "mlp.shared_experts",
    "shared_mlp": "mlp.shared_mlp",
    "experts": "mlp.experts.0",
}  # fmt: skip
# Other names in the files of Mixtral and models like it.
_ELSEWHERE = {
    "mlp.gate": "block_sparse_moe.gate", "mlp.experts.0.gate_proj": "block_sparse_moe.experts.0.w1",
    "mlp.experts.0.up_proj": "block_sparse_moe.experts.0.w3",
    "mlp.experts.0.down_proj": "block_sparse_moe.experts.0.w2",
}  # fmt: skip


class Chosen(msgspec.Struct, frozen=True):
    """Which linears are quantised: module classes, paths, or "re:" and a pattern of paths."""

    targets: tuple[str, ...] = (_EVERY,)
    ignored: tuple[str, ...] = ()


def read_chosen(config: Mapping[str, Any]) -> Chosen | None:
    """Return which linears a config.json names as quantised; None if it names none.

    `read_quantisation` must have accepted the config. Raises ValueError for an invalid list of names.
    """
    quantisation = quantisation_config(config) or {}
    if quantisation.get("quant_method") == "compressed-tensors":
        groups = [each for each in quantisation["config_groups"].values() if each.get("weights")]
        targets = [name for each in groups for name in each.get("targets", ())]
        return Chosen(_names(targets), _names(quantisation.get("ignore")))
    if quantisation.get("quant_method") != "modelopt":
        return None
    if layers := quantisation.get("quantized_layers"):
        return Chosen(_names(list(layers)))
    ignored = quantisation.get("ignore", quantisation.get("exclude_modules"))
    return None if ignored is None else Chosen(ignored=tuple(map(_wildcard, _names(ignored))))


def plain_layers(linear: Linear, layers: Sequence[int], chosen: Chosen) -> int:
    """Return in how many of `layers`, which must be all that have the linear, it is not quantised.

    The first expert stands for all. Raises ValueError for an invalid pattern.
    """
    path = f"{_WITHIN[linear.within]}.{linear.name}"
    paths = [path, _ELSEWHERE[path]] if path in _ELSEWHERE else [path]
    return sum(
        _is_plain([f"{before}layers.{layer}.{each}" for before in _BEFORE for each in paths], chosen)
        for layer in layers
    )


def head_is_plain(chosen: Chosen) -> bool:
    """Return whether the head that makes logits is not quantised. Raises ValueError as `plain_layers` does."""
    return _is_plain(_HEADS, chosen)


def _is_plain(paths: Sequence[str], chosen: Chosen) -> bool:
    """Return whether a linear that may have any of these paths is not quantised."""
    try:
        targeted, ignored = _named(chosen.targets), _named(chosen.ignored)
    except re.error as error:
        raise ValueError(f"the pattern {error.pattern!r} is not a valid regular expression") from None
    return any(map(ignored, paths)) or not any(map(targeted, paths))


def _named(entries: Sequence[str]) -> Callable[[str], bool]:
    """Return a predicate: whether a module path matches any of these entries."""
    names = {each for each in entries if not each.startswith(_PATTERN)}
    patterns = [re.compile(each.removeprefix(_PATTERN)) for each in entries if each.startswith(_PATTERN)]
    return lambda path: _EVERY in names or path in names or any(each.match(path) for each in patterns)


def _names(listed: Any) -> tuple[str, ...]:
    return tuple(msgspec.convert(listed or (), tuple[str, ...]))


def _wildcard(name: str) -> str:
    """Convert a ModelOpt path, in which a star matches anything, to a pattern."""
    return _PATTERN + fnmatch.translate(name)
