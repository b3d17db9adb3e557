"""A packed adapter as PEFT's two files again: the same values by PEFT's names, and the config that it came with."""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from mint_contracts.errors import InvalidRequest
from mint_engine.check import PREFIX, expert_path
from mint_engine.copying import publish, sync
from mint_engine.fetch import CONFIG, WEIGHTS
from mint_engine.packed import Packed, halves


def peft_tensors(packed: Packed) -> dict[str, torch.Tensor]:
    """Its tensors by PEFT's names: A [r, in] and B [out, r] of each module, and of each expert of a stacked one."""
    tensors: dict[str, torch.Tensor] = {}
    for place, a, b in halves(packed.header.layout, packed.run):
        for expert in range(max(place.experts, 1)):
            name = PREFIX + (expert_path(place.path, expert) if place.experts else place.path)
            tensors[f"{name}.lora_A.weight"] = a[expert]
            tensors[f"{name}.lora_B.weight"] = b[expert].t().contiguous()
    return tensors


def export(packed: Packed, folder: Path) -> None:
    """Write PEFT's files into a new folder, all or nothing. Raises InvalidRequest if it exists."""
    if folder.exists():
        raise InvalidRequest(f"folder {folder}", "exists already; name one that does not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as temporary:
        partial = Path(temporary) / "files"
        partial.mkdir()
        save_file(peft_tensors(packed), partial / WEIGHTS, metadata={"format": "pt"})
        (partial / CONFIG).write_text(json.dumps(json.loads(packed.header.config), indent=2) + "\n")
        for name in (WEIGHTS, CONFIG):
            sync(partial / name)
        publish(partial, folder)
