"""A packed adapter as PEFT's two files again: the values it holds by PEFT's names, and the config that it came with.

It holds them in the dtype of the base that it was packed for. What PEFT wrote in float32 for a base of bfloat16 was
rounded when it was read, and stays so here.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mint_contracts.errors import InvalidRequest
from mint_contracts.targets import is_targeted
from mint_engine.adapters.check import PREFIX, expert_path
from mint_engine.adapters.packed import Packed, halves
from mint_engine.adapters.peft_config import parse
from mint_engine.sources.copying import publish, sync
from mint_engine.sources.fetch import CONFIG, WEIGHTS


def peft_tensors(packed: Packed) -> dict[str, torch.Tensor]:
    """Its tensors by PEFT's names: A [r, in] and B [out, r] of each module, and of each expert of a stacked one."""
    tensors: dict[str, torch.Tensor] = {}
    for place, a, b in halves(packed.header.layout, packed.run):
        for expert in range(max(place.experts, 1)):
            name = PREFIX + (expert_path(place.path, expert) if place.experts else place.path)
            tensors[f"{name}.lora_A.weight"] = a[expert]
            tensors[f"{name}.lora_B.weight"] = b[expert].t().contiguous()
    return tensors


def peft_config(packed: Packed) -> dict[str, Any]:
    """The config that it came with. Where that targets stacked experts as one parameter, it names each instead.

    Their tensors are written expert by expert (`peft_tensors`), which says the same of every expert's A and B.
    """
    config: dict[str, Any] = json.loads(packed.header.config)
    if not config.get("target_parameters"):
        return config
    told = parse(packed.header.config, f"revision {packed.revision}")
    ranks, alphas, targets = {}, {}, list(told.targets or ())
    for place in packed.header.layout.places:
        head, _, leaf = place.path.rpartition(".")
        whole = f"{head}.{'gate_up_proj' if leaf in ('gate_proj', 'up_proj') else leaf}"
        if place.experts and is_targeted(whole, told.parameters):
            pattern = rf"{re.escape(head)}\.[0-9]+\.{leaf}"
            ranks[pattern], alphas[pattern] = place.rank, told.alpha_of(whole)
            targets += [leaf] if leaf not in targets else []
    return config | {
        "target_parameters": None,
        "target_modules": targets,
        "rank_pattern": ranks | (config.get("rank_pattern") or {}),
        "alpha_pattern": alphas | (config.get("alpha_pattern") or {}),
    }


def export(packed: Packed, folder: Path) -> None:
    """Write PEFT's files into a new folder, all or nothing. Raises InvalidRequest if it exists."""
    if folder.exists():
        raise InvalidRequest(f"folder {folder}", "exists already; name one that does not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as temporary:
        partial = Path(temporary) / "files"
        partial.mkdir()
        save_file(peft_tensors(packed), partial / WEIGHTS, metadata={"format": "pt"})
        (partial / CONFIG).write_text(json.dumps(peft_config(packed), indent=2) + "\n")
        for name in (WEIGHTS, CONFIG):
            sync(partial / name)
        publish(partial, folder)
