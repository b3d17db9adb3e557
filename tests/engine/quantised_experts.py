"""Quantised bases whose experts stay quantised in memory."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from mint_engine.model.base import Base, load_base
from mint_engine.model.experts import is_stack
from mint_engine.model.quantised_experts import QuantisedWeight
from mint_engine.parallel.part import Part
from tests.engine.families import CPU
from tests.engine.integers import PACKED, save_packed
from tests.engine.quantised import LAYOUTS, save_float8, save_mxfp4, save_nvfp4
from tests.engine.saved_families import save_base

Save = Callable[[Path], tuple[Path, Path]]  # a base's quantised copy, and another with its dequantised values


def in_float8(family: str, layout: str = "deepseek") -> Save:
    return lambda folder: save_float8(save_base(family, folder / "plain"), folder, LAYOUTS[layout])


def in_numbers(family: str, layout: str, **changes: Any) -> Save:
    return lambda folder: save_packed(save_base(family, folder / "plain", **changes), folder, PACKED[layout])


def in_mxfp4(folder: Path) -> tuple[Path, Path]:
    return save_mxfp4(save_base("gpt_oss", folder / "plain", hidden_size=64), folder)


def in_nvfp4(folder: Path) -> tuple[Path, Path]:
    return save_nvfp4(save_base("qwen3_moe", folder / "plain", hidden_size=64), folder, mixed=True)


SAVES: dict[str, tuple[str, Save]] = {
    "float8": ("deepseek_v3", in_float8("deepseek_v3")),
    "float8 by channels": ("qwen3_moe", in_float8("qwen3_moe", "compressed_channel")),
    "mxfp8": ("glm_5", in_float8("glm_5", "modelopt_mxfp8")),
    "mxfp4": ("gpt_oss", in_mxfp4),
    "nvfp4 and float8": ("qwen3_moe", in_nvfp4),
    "numbers": ("deepseek_v3", in_numbers("deepseek_v3", "kimi")),
    "padded numbers": ("qwen3_moe", in_numbers("qwen3_moe", "w4a16_asymmetric", moe_intermediate_size=36)),
    "reordered numbers": ("mixtral", in_numbers("mixtral", "w4a16_reordered")),
}


def load(folder: Path, part: Part | None = None, *, keep: bool = True, dtype: torch.dtype = torch.bfloat16) -> Base:
    return load_base(folder, dtype, CPU, part, quantised_experts=keep)


def stacks(base: Base) -> dict[str, Any]:
    """Every stack of experts by name, kept quantised or not."""
    held = [(path, module) for path, module in base.model.named_modules() if is_stack(module)]
    return {
        f"{path}.{name}": getattr(module, name) for path, module in held for name in ("gate_up_proj", "down_proj")
    }


def bytes_of(kept: list[QuantisedWeight]) -> int:
    """The bytes they take; what the kernels read is the same memory."""
    return sum({each.data_ptr(): each.nbytes() for each in memory(kept)}.values())


def memory(found: Any) -> list[torch.UntypedStorage]:
    """The memory of every tensor that an object holds."""
    if isinstance(found, torch.Tensor):
        return [found.untyped_storage()]
    if isinstance(found, (list, tuple)):
        return [tensor for each in found for tensor in memory(each)]
    fields = {} if isinstance(found, Enum) else getattr(found, "__dict__", {})
    return [each for field in fields.values() for each in memory(field)]
