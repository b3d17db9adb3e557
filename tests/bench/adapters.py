"""Random bfloat16 adapters of one rank in PEFT's layout, on all given linear layers; made once and cached."""

import hashlib
import json
import math
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.bench.places import bench_cache, made_once
from tests.bench.shapes import Shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_A_STD, _B_STD = 0.04, 0.02  # enough to change the base's output, too little to break it
MADE = 128  # adapters per rank; a benchmark takes as many as it needs
_POOL = 1 << 21  # more numbers than any one tensor has
_FORMAT = 2  # change it to make all adapters again


def make_adapters(base_key: str, shapes: Shapes, rank: int, count: int) -> Path:
    """Return a folder of `count` adapters, no two alike, named by `names(rank, count)`."""

    def make(folder: Path) -> None:
        for index, name in enumerate(names(rank, count)):
            (folder / name).mkdir(parents=True)
            write_weights(folder / name, shapes, rank, seed=index)
            write_config(folder / name, shapes, rank, alpha=2.0 * rank)

    return made_once(bench_cache() / "adapters" / f"{_key(base_key, shapes)}-r{rank}-{count}", make)


def make_many(base_key: str, shapes: Shapes, rank: int, count: int) -> Path:
    """Return a folder of `count` adapters that share `MADE` files of weights by hard links.

    Each has its own scaling in its own config and is therefore a separate revision, which an engine must hold, load,
    pack and key its caches by separately. Only the source files share disk space.
    """
    few = make_adapters(base_key, shapes, rank, MADE)

    def make(folder: Path) -> None:
        for index, name in enumerate(names(rank, count)):
            (folder / name).mkdir(parents=True)
            os.link(few / names(rank, MADE)[index % MADE] / WEIGHTS, folder / name / WEIGHTS)
            write_config(folder / name, shapes, rank, alpha=2.0 * rank * (1 + index / count))

    return made_once(bench_cache() / "adapters" / f"{_key(base_key, shapes)}-r{rank}-{count}-of-{MADE}", make)


def names(rank: int, count: int) -> list[str]:
    """Return the names of `count` adapters."""
    return [f"bench/r{rank}-{index:05}" for index in range(count)]


def write_weights(folder: Path, shapes: Shapes, rank: int, seed: int) -> None:
    """Write one adapter's tensors, random by `seed`: each is the next stretch of one pool of random numbers."""
    chance = torch.Generator().manual_seed(1000 * rank + seed)
    pool, at = torch.randn(_POOL, generator=chance).to(torch.bfloat16), 0
    tensors = {}
    for path, (wide, high) in shapes.items():
        for name, shape, size in (("lora_A", (rank, wide), _A_STD), ("lora_B", (high, rank), _B_STD)):
            count = math.prod(shape)
            at = at if at + count <= _POOL else at % 997
            tensors[f"base_model.model.{path}.{name}.weight"] = pool[at : at + count].view(shape) * size
            at += count
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def write_config(folder: Path, shapes: Shapes, rank: int, alpha: float) -> None:
    """Write the fields of PEFT's config that matter for one adapter."""
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
