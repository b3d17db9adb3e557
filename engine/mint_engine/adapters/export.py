"""Exports a packed adapter as PEFT's two files: its values, under the names by which PEFT finds them.

A packed adapter has the dtype of the base that it was packed for. Values that PEFT wrote in float32 for a bfloat16
base were rounded when they were read, and stay rounded.

If the base stacks its experts, only `target_parameters` lets PEFT adapt them in every model family (see `fused`): it
knows linears of single experts in some families only, and there takes `up_proj` and the like for experts' wherever
they are. So adapters on experts, and on the shared networks beside them, are written as parameters, whatever they
were read from; experts without an adapter are zeros there.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mint_contracts.durable import publish, sync
from mint_contracts.errors import InvalidRequest, UnsupportedAdapter
from mint_contracts.targets import is_targeted, is_within
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit, check_packed, expert_path
from mint_engine.adapters.fused import SINCE, stack, tensor_paths, weight_of
from mint_engine.adapters.packed import Packed, halves
from mint_engine.adapters.peft_config import PREFIX, LoraConfig, parse
from mint_engine.sources.fetch import CONFIG, WEIGHTS

ANY_RANK = 1 << 30
_ERRNO = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True, eq=False)
class _Stacked:
    """One module's part of a stacked parameter: A [E, r, in] and B transposed [E, r, out]."""

    module: Module
    a: torch.Tensor
    b: torch.Tensor
    scaling: float


@dataclass(frozen=True, eq=False)
class Part:
    """One of PEFT's pairs: A [r, in] and B [out, r], or those of a stacked parameter."""

    target: str  # its name in the base and in patterns
    tensors: str  # the prefix of its tensors' names
    a: torch.Tensor
    b: torch.Tensor
    rank: int
    scaling: float
    parameter: bool = False

    def alpha(self, *, rslora: bool) -> float:
        """Return the alpha from which PEFT computes this scaling."""
        return self.scaling * (math.sqrt(self.rank) if rslora else self.rank)


def export(packed: Packed, folder: Path, modules: Mapping[str, Module]) -> None:
    """Write PEFT's files for a base with these modules into a new folder, atomically.

    Raises InvalidRequest if the folder exists, UnsupportedAdapter for what PEFT cannot represent, the errors of
    `check_packed` if the adapter does not fit the base, and OSError.
    """
    subject = f"revision {packed.revision}"
    check_packed(packed.header, Fit(modules, ANY_RANK), subject)
    if folder.exists():
        raise InvalidRequest(f"folder {folder}", "already exists; choose a new folder")
    parts = _parts(packed, modules, subject)
    config: dict[str, Any] = json.loads(packed.header.config)
    lora = parse(packed.header.config, subject)
    if any(module.part_of for module in modules.values()):
        config |= _targeting(parts, lora, modules, config)
    elif lora.targets:
        named = [part.target for part in parts if not lora.names(weight_of(part.target))]
        config["target_modules"] += _unnamed(lora.targets, named)
    tensors = {}
    for part in parts:
        tensors[f"{PREFIX}{part.tensors}.lora_A.weight"] = part.a
        tensors[f"{PREFIX}{part.tensors}.lora_B.weight"] = part.b
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as temporary:
        partial = Path(temporary) / "files"
        partial.mkdir()
        _save(tensors, partial / WEIGHTS)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        for name in (WEIGHTS, CONFIG):
            sync(partial / name)
        publish(partial, folder)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # that of a full disk, too, names it only in its text
        if (found := _ERRNO.search(str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def _parts(packed: Packed, modules: Mapping[str, Module], subject: str) -> list[Part]:
    """Return the parts in the order of the base's modules, stacked parameters last."""
    stacks: dict[str, list[_Stacked]] = {}
    parts = []
    beside = {module.leaf for module in modules.values() if module.part_of}
    for (place, a, b), scaling in zip(halves(packed.header.layout, packed.run), packed.header.scalings, strict=True):
        module = modules[place.path]
        if module.part_of:
            stacks.setdefault(module.part_of, []).append(_Stacked(module, a, b, scaling))
            continue
        parameter = module.leaf in beside
        for expert in range(max(place.experts, 1)):
            if place.experts and not (a[expert].any() or b[expert].any()):
                continue  # as if it had no tensors
            path = expert_path(place.path, expert) if place.experts else place.path
            target = weight_of(path) if parameter else path
            whole = b[expert].t().contiguous()
            parts.append(Part(target, path, a[expert], whole, place.rank, scaling, parameter=parameter))
    names = {path: name for name, path in tensor_paths(stacks).items()}
    for path, own in stacks.items():
        outputs = sum(module.out_features for module in modules.values() if module.part_of == path)
        parts.append(_joined(path, names[path], own, outputs, subject))
    return parts


def _joined(path: str, tensors: str, own: Sequence[_Stacked], outputs: int, subject: str) -> Part:
    first = own[0]
    if any(each.scaling != first.scaling for each in own):
        raise UnsupportedAdapter(
            subject,
            f"scales gate and up of {path} differently, which PEFT cannot store: to it they are one parameter",
        )
    a, b = stack([(each.module, each.a, each.b) for each in own], outputs)
    return Part(path, tensors, a, b, a.shape[0] // first.module.experts, first.scaling, parameter=True)


def _targeting(
    parts: Sequence[Part], lora: LoraConfig, modules: Mapping[str, Module], config: dict[str, Any]
) -> dict[str, Any]:
    """Return the config's fields that select modules, ranks and scalings, for a base with stacked experts."""
    linears = [part.target for part in parts if not part.parameter]
    parameters = [part.target for part in parts if part.parameter]
    offered = {module.part_of or weight_of(path) for path, module in modules.items()}
    if {each for each in offered if lora.names(each)} == set(parameters):
        parameters = list(lora.parameters)
    targets = lora.targets or frozenset()
    matching = [name for name in targets if any(is_within(path, name) for path in linears)]
    in_layers = lora.layers is not None and bool(linears)  # elsewhere PEFT refuses either field
    ranks, alphas = {}, {}
    for part in parts:
        alpha, pattern = part.alpha(rslora=lora.rslora), re.escape(part.target)
        if lora.rank_of(part.target) != part.rank:
            ranks[pattern] = part.rank
        if not math.isclose(lora.alpha_of(part.target), alpha, rel_tol=1e-12):
            alphas[pattern] = alpha
    return {
        "target_modules": sorted([*matching, *_unnamed(targets, linears)]),
        "target_parameters": parameters or None,
        "layers_to_transform": sorted(lora.layers or ()) if in_layers else None,
        "layers_pattern": config.get("layers_pattern") if in_layers else None,
        "init_lora_weights": True,  # PEFT cannot initialise parameters in all ways; the files' values replace these
        "rank_pattern": _before(ranks, config.get("rank_pattern")),
        "alpha_pattern": _before(alphas, config.get("alpha_pattern")),
        "lora_dropout": 0.0,  # PEFT accepts only this with parameters
        "peft_version": ".".join(map(str, SINCE)),  # the layout's: what wrote the adapter may have had another
    }


def _unnamed(targets: Collection[str], linears: Sequence[str]) -> list[str]:
    """Return the linears that no target names as the base does: PEFT finds them by that alone."""
    return [path for path in linears if not is_targeted(path, targets)]


def _before(own: dict[str, Any], others: dict[str, Any] | None) -> dict[str, Any]:
    """Put our patterns before the config's, because the first that matches counts."""
    return own | {pattern: value for pattern, value in (others or {}).items() if pattern not in own}
