"""Bases as published in float8, MXFP8, MXFP4 and NVFP4, and naive references of the weights they hold.

The references ignore memory use: a scale for each number of a weight, a loop over bytes.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.engine.copies import digest, put
from tests.engine.saved_families import save_base

Tensors = dict[str, torch.Tensor]
BLOCK = (16, 24)  # not square, and dividing no shape in the tiny bases
MXFP4: dict[str, Any] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
_E4M3_MOST = 448.0
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@dataclass(frozen=True)
class Float8Layout:
    """How a base is published in float8: its configuration, and its tensors beside X.weight and X.bias."""

    told: Mapping[str, Any]  # quantization_config, or all of `file`
    block: tuple[int | None, int | None]  # outputs and inputs that share one scale; None: all
    scale: str = "weight_scale"
    dtype: torch.dtype = torch.float32  # of scales; uint8: exponents
    shape: Callable[[int, int], tuple[int, ...]] = lambda rows, columns: (rows, columns)  # of scales, by block counts
    beside: Mapping[str, torch.Tensor] = field(default_factory=dict)  # further tensors, by the end of their names
    file: str = "config.json"


def compressed(**weights: Any) -> dict[str, Any]:
    """compressed-tensors' config of linears in float8, as RedHat's bases have it."""
    plain = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "group_size": None}
    group = {"targets": ["Linear"], "output_activations": None, "weights": plain | weights}
    return {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "kv_cache_scheme": None, "config_groups": {"group_0": group},
        "sparsity_config": {}, "transform_config": {},
    }  # fmt: skip


def none(rows: int, columns: int) -> tuple[int, ...]:
    """The shape of a single number."""
    assert rows == columns == 1
    return ()


def one(rows: int, columns: int) -> tuple[int, ...]:
    """The shape of a single number as a vector."""
    assert rows == columns == 1
    return (1,)


HALF = torch.tensor(0.5)
FP8: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
DEEPSEEK = Float8Layout(FP8 | {"weight_block_size": list(BLOCK)}, BLOCK, "weight_scale_inv")
LAYOUTS = {
    "deepseek": DEEPSEEK,
    "minimax": Float8Layout(
        FP8 | {"fmt": "float8_e4m3fn", "weight_block_size": list(BLOCK)}, BLOCK, "weight_scale_inv"
    ),
    "mistral": Float8Layout(
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}, (None, None),
        "weight_scale_inv", torch.bfloat16, none, {"activation_scale": HALF.bfloat16()},
    ),
    "autofp8": Float8Layout(
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, (None, None),
        shape=none, beside={"input_scale": HALF},
    ),
    "fbgemm": Float8Layout(
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        (1, None), beside={"input_scale_ub": torch.tensor([1200.0])},
    ),
    "compressed_tensor": Float8Layout(
        compressed(strategy="tensor"), (None, None), dtype=torch.bfloat16, shape=one,
        beside={"input_scale": HALF.bfloat16().view(1)},
    ),
    "compressed_channel": Float8Layout(compressed(strategy="channel"), (1, None), dtype=torch.bfloat16),
    "compressed_block": Float8Layout(compressed(strategy="block", block_structure=list(BLOCK)), BLOCK),
    "compressed_mxfp8": Float8Layout(
        compressed(strategy="group", group_size=32, scale_dtype="torch.uint8") | {"format": "mxfp8-quantized"},
        (1, 32), dtype=torch.uint8,
    ),
    "modelopt": Float8Layout(
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
        (None, None), shape=none, beside={"input_scale": HALF, "k_proj.k_scale": HALF, "v_proj.v_scale": HALF},
        file="hf_quant_config.json",
    ),
    "modelopt_channel": Float8Layout(
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, (1, None),
        shape=lambda rows, _: (rows,),
    ),
    "modelopt_blocks": Float8Layout(
        {"quant_method": "modelopt", "quant_algo": "fp8_pb_wo"}, (128, 128),
        shape=lambda rows, columns: (rows, 1, columns, 1),
    ),
    "modelopt_mxfp8": Float8Layout({"quant_method": "modelopt", "quant_algo": "MXFP8"}, (1, 32), dtype=torch.uint8),
}  # fmt: skip


def quantise_float8(
    weight: torch.Tensor, block: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise [O, I] to e4m3 with a scale for every block; scales are exponents if `dtype` is uint8."""
    high, wide = block
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // high), -(-columns // wide))
    small = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i, row in enumerate(range(0, rows, high)):
        for j, column in enumerate(range(0, columns, wide)):
            part = weight[row : row + high, column : column + wide].float()
            scales[i, j] = part.abs().max() / _E4M3_MOST
            if dtype == torch.uint8:
                scales[i, j] = scales[i, j].log2().ceil().exp2()
            small[row : row + high, column : column + wide] = (part / scales[i, j]).to(small.dtype)
    return small, (scales.log2() + 127).to(dtype) if dtype == torch.uint8 else scales.to(dtype)


def naive_float8(weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The weight [O, I] in float32."""
    rows, columns = weight.shape
    scales = 2.0 ** (scales.float() - 127) if scales.dtype == torch.uint8 else scales.float()
    each = scales.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return weight.float() * each


def quantise_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise [E, I, O] to blocks [E, O, I/32, 16] and scales [E, O, I/32], as gpt-oss is published."""
    rows = weight.float().mT
    groups = rows.reshape(*rows.shape[:2], -1, 32)  # [E, O, I/32, 32]
    exponents = (groups.abs().amax(-1).clamp(min=1e-30) / 6.0).log2().ceil()
    distances = (groups / exponents.exp2().unsqueeze(-1)).unsqueeze(-1) - torch.tensor(_E2M1)
    codes = distances.abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents + 127).to(torch.uint8)


def naive_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weight [E, I, O] in float32."""
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


def quantise_nvfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise [O, I] to bytes [O, I/2], scales [O, I/16] in e4m3, and a global scale, as ModelOpt does."""
    groups = weight.float().reshape(weight.shape[0], -1, 16)
    of_all = groups.abs().max() / (6.0 * _E4M3_MOST)
    scales = (groups.abs().amax(-1) / (6.0 * of_all)).to(torch.float8_e4m3fn)
    each = (scales.float() * of_all).clamp(min=1e-30)
    distances = (groups / each.unsqueeze(-1)).unsqueeze(-1) - torch.tensor(_E2M1)
    codes = distances.abs().argmin(-1).to(torch.uint8).reshape(weight.shape)
    return codes[:, 0::2] | codes[:, 1::2] << 4, scales, of_all


def naive_nvfp4(bytes_: torch.Tensor, scales: torch.Tensor, of_all: torch.Tensor) -> torch.Tensor:
    """The weight [O, I] in float32."""
    rows = [[_E2M1[nibble] for byte in row for nibble in (byte & 15, byte >> 4)] for row in bytes_.tolist()]
    return torch.tensor(rows) * (scales.float() * of_all).repeat_interleave(16, 1)


LINEARS = ("_proj", "_mqa", ".w1", ".w2", ".w3")  # how paths of linears end
NVFP4: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]}
# In a base of mixed formats: the layout of linears whose paths end so; all others are in NVFP4.
MIXTURE = {"o_proj": "modelopt_channel", "q_proj": "modelopt", "up_proj": "modelopt_blocks"}


def save_nvfp4(
    plain: Path, folder: Path, *, mixed: bool = False, also: tuple[str, ...] = (), **said: Any
) -> tuple[Path, Path]:
    """Save a copy of a base with linears in NVFP4, some in float8 if `mixed`, and one with their values in float32.

    Heads and routers are quantised if their paths end with one of `also`. `said` overrides the quantization_config.
    """
    layers: dict[str, Any] = {}

    def quantise(name: str, tensor: torch.Tensor) -> tuple[Tensors, Tensors]:
        path, _, kind = name.rpartition(".")
        linear = kind == "weight" and path.endswith((*LINEARS, *also))
        other = next((layout for end, layout in MIXTURE.items() if path.endswith(end)), None) if mixed else None
        if not linear or (other is None and tensor.shape[1] % 16):
            return {name: tensor}, {name: tensor}
        if other is not None:
            layout = LAYOUTS[other]
            layers[path] = {"quant_algo": layout.told.get("quant_algo", "FP8")}
            return _float8(name, tensor, layout)
        layers[path] = {"quant_algo": "NVFP4", "group_size": 16}
        bytes_, scales, of_all = quantise_nvfp4(tensor)
        beside = {f"{name}_scale": scales, f"{name}_scale_2": of_all, f"{path}.input_scale": HALF.clone()}
        return {name: bytes_} | beside, {name: naive_nvfp4(bytes_, scales, of_all)}

    told = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    return save_two(plain, folder, told if mixed else NVFP4 | said, quantise, f"NVFP4 {mixed} {also}")


def save_float8(
    plain: Path, folder: Path, layout: Float8Layout = DEEPSEEK, *, also: tuple[str, ...] = (), **said: Any
) -> tuple[Path, Path]:
    """Save a copy of a base with linears in float8, and one with their values in float32; see `save_nvfp4`."""

    def quantise(name: str, tensor: torch.Tensor) -> tuple[Tensors, Tensors]:
        path, _, kind = name.rpartition(".")
        linear = kind == "weight" and path.endswith((*LINEARS, "wq_b", "wk", *also))
        if not linear:
            return {name: tensor}, {name: tensor}
        return _float8(name, tensor, layout)

    return save_two(plain, folder, {**layout.told, **said}, quantise, f"{layout} {also}", layout.file)


def _float8(name: str, tensor: torch.Tensor, layout: Float8Layout) -> tuple[Tensors, Tensors]:
    path = name.rpartition(".")[0]
    block = (layout.block[0] or tensor.shape[0], layout.block[1] or tensor.shape[1])
    weight, scales = quantise_float8(tensor, block, layout.dtype)
    shaped = scales.reshape(layout.shape(*scales.shape))
    more: Tensors = {}
    for end, each in layout.beside.items():
        owner, _, kind = end.rpartition(".")
        if path.endswith(owner):
            more[f"{path}.{kind}"] = each.clone()
    return {name: weight, f"{path}.{layout.scale}": shaped} | more, {name: naive_float8(weight, scales, block)}


def save_mxfp4(plain: Path, folder: Path) -> tuple[Path, Path]:
    """Save a copy of a gpt-oss with experts in MXFP4, and one with their values in float32."""

    def quantise(name: str, tensor: torch.Tensor) -> tuple[Tensors, Tensors]:
        if not name.endswith((".gate_up_proj", ".down_proj")):
            return {name: tensor}, {name: tensor}
        blocks, scales = quantise_mxfp4(tensor)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}, {name: naive_mxfp4(blocks, scales)}

    return save_two(plain, folder, MXFP4, quantise, "MXFP4")


def edit_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Change tensors in a folder's shards, add new ones to the first, remove those that are None; mend the index."""
    more = changes.keys() - tensors_of(folder).keys()
    for at, file in enumerate(folder.glob("*.safetensors")):
        tensors = load_file(file)
        for name in (changes.keys() & tensors.keys()) | (more if at == 0 else set()):
            tensor = changes[name]
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        save_file(tensors, file, {"format": "pt"})
    _index(folder)


def tensors_of(folder: Path) -> Tensors:
    """All tensors in a folder's shards."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def save_two(
    plain: Path,
    folder: Path,
    told: Mapping[str, Any],
    quantise: Callable[[str, torch.Tensor], tuple[Tensors, Tensors]],
    way: str,
    file: str = "config.json",
) -> tuple[Path, Path]:
    """Save a copy of a base with its tensors as `quantise` stores them, and one with their dequantised values.

    `way` must identify what `quantise` does: the copies are made once for each base, `way`, `file`, and `told` as it
    is when this is called.
    """

    def make(folder: Path) -> None:
        small, full = (
            Path(shutil.copytree(plain, folder / name, ignore=shutil.ignore_patterns("*.safetensors*")))
            for name in ("quantised", "dequantised")
        )
        shards: tuple[Tensors, Tensors] = {}, {}
        whole: Tensors = {}
        for name, tensor in sorted(tensors_of(plain).items()):
            stored, held = quantise(name, tensor)
            whole |= held
            for at, (key, each) in enumerate(stored.items()):  # parts that belong together need not be in one shard
                shards[min(at, 1)][key] = each
        save_file(whole, full / "model.safetensors", {"format": "pt"})
        for at, shard in enumerate(shards):
            save_file(shard, small / f"model-{at + 1:05}-of-00002.safetensors", {"format": "pt"})
        _index(small)
        config = json.loads((plain / "config.json").read_text())
        said = config | {"quantization_config": told} if file == "config.json" else told
        (small / file).write_text(json.dumps(said))

    put(folder, f"{way} {told} {file} {digest(plain)}", make)
    return folder / "quantised", folder / "dequantised"


def _index(folder: Path) -> None:
    places = {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def save_quantised(family: str, folder: Path) -> tuple[Path, Path]:
    if family == "gpt_oss":
        return save_mxfp4(save_base(family, folder / "plain", hidden_size=64), folder)
    return save_float8(save_base(family, folder / "plain"), folder)
