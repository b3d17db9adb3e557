"""Bases as they are published in block float8 and in MXFP4, and naive references of what they hold.

References are written without thought of memory: a scale for each number of a weight, a loop over bytes.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
BLOCK = (16, 24)  # not square, and of no shape in the tiny bases a divisor
FLOAT8: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
MXFP4: dict[str, Any] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
_E4M3_MOST = 448.0
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def quantise_float8(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """[O, I] in e4m3, and the scale of every block in float32."""
    high, wide = block
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // high), -(-columns // wide))
    small = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i, row in enumerate(range(0, rows, high)):
        for j, column in enumerate(range(0, columns, wide)):
            part = weight[row : row + high, column : column + wide].float()
            scales[i, j] = part.abs().max() / _E4M3_MOST
            small[row : row + high, column : column + wide] = (part / scales[i, j]).to(small.dtype)
    return small, scales


def naive_float8(weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """[O, I] in float32."""
    rows, columns = weight.shape
    each = scales.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight.float() * each


def quantise_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of [E, I, O]: blocks [E, O, I/32, 16] and scales [E, O, I/32], as gpt-oss is published."""
    rows = weight.float().mT
    groups = rows.reshape(*rows.shape[:2], -1, 32)  # [E, O, I/32, 32]
    exponents = (groups.abs().amax(-1).clamp(min=1e-30) / 6.0).log2().ceil()
    distances = (groups / exponents.exp2().unsqueeze(-1)).unsqueeze(-1) - torch.tensor(_E2M1)
    codes = distances.abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents + 127).to(torch.uint8)


def naive_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """[E, I, O] in float32."""
    experts, outputs, groups, bytes_ = blocks.shape
    out = torch.empty(experts, groups * 2 * bytes_, outputs)
    for expert in range(experts):
        for row in range(outputs):
            numbers: list[float] = []
            for group, scale in zip(blocks[expert, row].tolist(), scales[expert, row].tolist(), strict=True):
                numbers += [
                    _E2M1[nibble] * 2.0 ** (scale - 127) for byte in group for nibble in (byte & 15, byte >> 4)
                ]
            out[expert, :, row] = torch.tensor(numbers)
    return out


def save_float8(plain: Path, folder: Path, block: tuple[int, int] = BLOCK) -> tuple[Path, Path]:
    """A base's copy with linears in float8, and another with what these hold, in float32."""

    def quantise(name: str, tensor: torch.Tensor) -> tuple[Tensors, Tensors]:
        linear = name.endswith(("_proj.weight", "_mqa.weight", "wq_b.weight", "wk.weight"))
        if not linear:
            return {name: tensor}, {name: tensor}
        weight, scales = quantise_float8(tensor, block)
        return {name: weight, f"{name}_scale_inv": scales}, {name: naive_float8(weight, scales, block)}

    return _save(plain, folder, FLOAT8 | {"weight_block_size": list(block)}, quantise)


def save_mxfp4(plain: Path, folder: Path) -> tuple[Path, Path]:
    """A gpt-oss's copy with experts in MXFP4, and another with what these hold, in float32."""

    def quantise(name: str, tensor: torch.Tensor) -> tuple[Tensors, Tensors]:
        if not name.endswith((".gate_up_proj", ".down_proj")):
            return {name: tensor}, {name: tensor}
        blocks, scales = quantise_mxfp4(tensor)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}, {name: naive_mxfp4(blocks, scales)}

    return _save(plain, folder, MXFP4, quantise)


def edit_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Change tensors where they are in a folder's shards, or leave them out, and mend the index."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name in changes.keys() & tensors.keys():
            tensor = changes[name]
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        save_file(tensors, file, {"format": "pt"})
    _index(folder)


def tensors_of(folder: Path) -> Tensors:
    """All that a folder's shards hold."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _save(
    plain: Path, folder: Path, told: dict[str, Any], quantise: Callable[[str, torch.Tensor], tuple[Tensors, Tensors]]
) -> tuple[Path, Path]:
    small, full = (
        Path(shutil.copytree(plain, folder / name, ignore=shutil.ignore_patterns("*.safetensors*")))
        for name in ("quantised", "dequantised")
    )
    shards: tuple[Tensors, Tensors] = {}, {}
    whole: Tensors = {}
    for name, tensor in sorted(tensors_of(plain).items()):
        stored, held = quantise(name, tensor)
        whole |= held
        for at, (key, each) in enumerate(stored.items()):  # what belongs together need not be in one shard
            shards[at][key] = each
    save_file(whole, full / "model.safetensors", {"format": "pt"})
    for at, shard in enumerate(shards):
        save_file(shard, small / f"model-{at + 1:05}-of-00002.safetensors", {"format": "pt"})
    _index(small)
    config = json.loads((plain / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    return small, full


def _index(folder: Path) -> None:
    places = {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
