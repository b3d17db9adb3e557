"""Random adapters in PEFT's layout, made once: of one rank, on all seven projections, in bfloat16."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.bench.places import bench_cache, made_once

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_A_STD, _B_STD = 0.04, 0.02  # enough to change what the base says, too little to break it
_FORMAT = 1  # another number makes all adapters anew

Shapes = Mapping[str, tuple[int, int]]


def make_adapters(base_key: str, shapes: Shapes, rank: int, count: int) -> Path:
    """A folder of `count` adapters, no two alike, named by `names(rank, count)`."""

    def make(folder: Path) -> None:
        for index, name in enumerate(names(rank, count)):
            (folder / name).mkdir(parents=True)
            write_weights(folder / name, shapes, rank, seed=index)
            write_config(folder / name, shapes, rank, alpha=2.0 * rank)

    return made_once(bench_cache() / "adapters" / f"{_key(base_key, shapes)}-r{rank}-{count}", make)


def make_many(base_key: str, shapes: Shapes, rank: int, count: int, distinct: int) -> Path:
    """A folder of `count` adapters that share `distinct` files of weights by hard links.

    Each has its own scaling in a config of its own, so each is a revision of its own, which an engine must hold, load
    and key its caches by itself; and what it packs for each is a file of its own. Only the sources share disk.
    """
    few = make_adapters(base_key, shapes, rank, distinct)

    def make(folder: Path) -> None:
        for index, name in enumerate(names(rank, count)):
            (folder / name).mkdir(parents=True)
            os.link(few / names(rank, distinct)[index % distinct] / WEIGHTS, folder / name / WEIGHTS)
            write_config(folder / name, shapes, rank, alpha=2.0 * rank * (1 + index / count))

    return made_once(bench_cache() / "adapters" / f"{_key(base_key, shapes)}-r{rank}-{count}-of-{distinct}", make)


def names(rank: int, count: int) -> list[str]:
    """The names of so many adapters."""
    return [f"bench/r{rank}-{index:05}" for index in range(count)]


def write_weights(folder: Path, shapes: Shapes, rank: int, seed: int) -> None:
    """One adapter's tensors, random by `seed`."""
    chance = torch.Generator().manual_seed(1000 * rank + seed)
    tensors = {}
    for path, (wide, high) in shapes.items():
        a = torch.randn(rank, wide, generator=chance) * _A_STD
        b = torch.randn(high, rank, generator=chance) * _B_STD
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.to(torch.bfloat16)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_config(folder: Path, shapes: Shapes, rank: int, alpha: float) -> None:
    """One adapter's config as PEFT writes it, as far as it matters."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({path.rsplit(".", 1)[-1] for path in shapes}),
    }
    (folder / CONFIG).write_text(json.dumps(config))


def _key(base_key: str, shapes: Shapes) -> str:
    told = json.dumps([_FORMAT, base_key, sorted(shapes.items())])
    return hashlib.sha256(told.encode()).hexdigest()[:12]
