"""Does an adapter fit this base? Pure decisions over its config, its safetensors header and the base's shapes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mint_contracts.errors import (
    CorruptFile,
    RankTooLarge,
    ShapeMismatch,
    UnknownTargetModules,
    UnsupportedAdapter,
    WrongBase,
)
from mint_engine.adapter import Module
from mint_engine.header import Header, TensorSpec
from mint_engine.peft_config import LoraConfig

_PREFIX = "base_model.model."
_HALVES = {".lora_A.weight": "A", ".lora_B.weight": "B"}
_LAYER = re.compile(r".*\.[^.]*\.(\d+)\.")  # as peft finds a layer's number when layers_pattern is not given


@dataclass(frozen=True)
class Fit:
    """What a base takes: its modules by path, the largest rank, and the names it is trained under (empty: any)."""

    modules: Mapping[str, Module]
    max_rank: int
    base_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One module's two tensors in the file, and the scaling of their product."""

    path: str
    a: TensorSpec  # [r, in]
    b: TensorSpec  # [out, r]
    scaling: float


def check_config(config: LoraConfig, fit: Fit, subject: str) -> None:
    """What the config alone shows. Raises WrongBase, RankTooLarge or UnknownTargetModules."""
    if fit.base_names and config.base_name not in fit.base_names:
        accepted = ", ".join(fit.base_names)
        raise WrongBase(subject, f"was trained on {config.base_name[:200]!r}; this base model takes {accepted}")
    if config.largest_rank > fit.max_rank:
        raise RankTooLarge(
            subject, f"has rank {config.largest_rank}; the base model takes up to {fit.max_rank} (adapters.maxRank)"
        )
    leaves = [f".{path}" for path in fit.modules]
    unknown = [name for name in config.targets or () if not any(leaf.endswith(f".{name}") for leaf in leaves)]
    if unknown:
        raise UnknownTargetModules(subject, _unknown(unknown, fit))


def check_tensors(config: LoraConfig, header: Header, fit: Fit, subject: str) -> tuple[Part, ...]:
    """The parts of the adapter, sorted by path.

    Raises UnknownTargetModules, UnsupportedAdapter, CorruptFile, RankTooLarge or ShapeMismatch.
    """
    halves = _halves(header, subject)
    unknown = sorted(path for path in halves if path not in fit.modules)
    if unknown:
        raise UnknownTargetModules(subject, _unknown(unknown, fit))
    parts = []
    for path, found in sorted(halves.items()):
        if len(found) != 2:
            raise CorruptFile(subject, f"has lora_{next(iter(found))} of {path} without its other half")
        _check_targeted(config, path, subject)
        part = Part(path, found["A"], found["B"], config.scaling_of(path))
        _check_shapes(part, fit.modules[path], config.rank_of(path), fit.max_rank, subject)
        parts.append(part)
    if not parts:
        raise CorruptFile(subject, "holds no LoRA tensors")
    return tuple(parts)


def _halves(header: Header, subject: str) -> dict[str, dict[str, TensorSpec]]:
    halves: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in header.tensors.items():
        suffix = next((each for each in _HALVES if name.endswith(each)), None)
        if suffix is None or not name.startswith(_PREFIX):
            raise UnsupportedAdapter(
                subject,
                f"holds the tensor {name[:200]!r}; only {_PREFIX}<module>.lora_A.weight and lora_B are served",
            )
        halves.setdefault(name.removeprefix(_PREFIX).removesuffix(suffix), {})[_HALVES[suffix]] = spec
    return halves


def _check_targeted(config: LoraConfig, path: str, subject: str) -> None:
    """PEFT ignores tensors of modules that the config does not target; such a file is not what it says."""
    if config.targets is not None and not any(f".{path}".endswith(f".{name}") for name in config.targets):
        raise CorruptFile(subject, f"holds tensors of {path}, which its target_modules do not name")
    layer = _LAYER.match(path)
    if config.layers is not None and (layer is None or int(layer[1]) not in config.layers):
        raise CorruptFile(subject, f"holds tensors of {path}, which its layers_to_transform do not name")


def _check_shapes(part: Part, module: Module, rank: int, max_rank: int, subject: str) -> None:
    if len(part.a.shape) == 2 and part.a.shape[0] > max_rank:
        raise RankTooLarge(
            subject, f"has rank {part.a.shape[0]} at {part.path}; the base model takes up to {max_rank}"
        )
    for spec, want in ((part.a, (rank, module.in_features)), (part.b, (module.out_features, rank))):
        if spec.shape != want:
            half = "lora_A" if spec is part.a else "lora_B"
            raise ShapeMismatch(
                subject,
                f"has {half} {list(spec.shape)} at {part.path} where the base model and rank need {list(want)}",
            )


def _unknown(names: list[str], fit: Fit) -> str:
    offered = sorted({path.rsplit(".", 1)[-1] for path in fit.modules})
    shown = ", ".join(name[:100] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"targets {shown}; the base model offers {', '.join(offered)}"
