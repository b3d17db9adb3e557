"""Adapters that must be refused. Each starts as a copy of a good one and has exactly one thing wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from e2e.samples.catalog import BROKEN

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
RANK_TOO_HIGH: Final = 65
OTHER_HIDDEN: Final = 512
Tensors = dict[str, torch.Tensor]


def write_broken(good: Path, root: Path) -> None:
    """Write every adapter of `BROKEN` below `root`, each from the good adapter in `good`."""
    for adapter in BROKEN:
        folder = root / adapter.name
        shutil.copytree(good, folder)
        _FAULTS[adapter.name](folder)


def _wrong_base(folder: Path) -> None:
    _edit_config(folder, base_model_name_or_path="Qwen/Qwen3-0.6B")


def _wrong_shapes(folder: Path) -> None:
    def narrow(tensors: Tensors) -> Tensors:
        return {n: t[:, :OTHER_HIDDEN].contiguous() if "lora_A" in n else t for n, t in tensors.items()}

    _edit_weights(folder, narrow)


def _rank_too_high(folder: Path) -> None:
    def grow(tensors: Tensors) -> Tensors:
        return {
            n: t.new_full((RANK_TOO_HIGH, t.shape[1]) if "lora_A" in n else (t.shape[0], RANK_TOO_HIGH), 0.001)
            for n, t in tensors.items()
        }

    _edit_config(folder, r=RANK_TOO_HIGH, lora_alpha=RANK_TOO_HIGH)
    _edit_weights(folder, grow)


def _unknown_module(folder: Path) -> None:
    targets = json.loads((folder / CONFIG).read_text())["target_modules"]
    _edit_config(folder, target_modules=sorted("w_qkv" if name == "q_proj" else name for name in targets))
    _edit_weights(folder, lambda tensors: {n.replace("q_proj", "w_qkv"): t for n, t in tensors.items()})


def _nan_weights(folder: Path) -> None:
    def poison(tensors: Tensors) -> Tensors:
        victim = next(n for n in sorted(tensors) if "lora_B" in n)
        tensors[victim][0, 0] = float("nan")
        return tensors

    _edit_weights(folder, poison)


def _truncated(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def _pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def _missing_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def _bad_config(folder: Path) -> None:
    (folder / CONFIG).write_text('{"peft_type": "LORA", "r": 4,')


_FAULTS: Final[dict[str, Callable[[Path], None]]] = {
    "wrong-base": _wrong_base,
    "wrong-shapes": _wrong_shapes,
    "rank-too-high": _rank_too_high,
    "unknown-module": _unknown_module,
    "nan-weights": _nan_weights,
    "truncated": _truncated,
    "pickle-only": _pickle_only,
    "missing-config": _missing_config,
    "bad-config": _bad_config,
}


def _edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes, indent=2))


def _edit_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
