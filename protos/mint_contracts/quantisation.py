"""How a base's files hold its weights, as its config.json says: what engines dequantise as they read."""

from collections.abc import Mapping
from typing import Any

import msgspec

from mint_contracts.errors import UnsupportedBase

MXFP4_GROUP = 32  # numbers in a row that have one scale
MXFP4_BYTES = MXFP4_GROUP // 2  # that these numbers take, their scale left out
_ADVICE = "give the model in bfloat16, in float8 with a scale a block, in MXFP4, or as one GGUF file"


class Float8(msgspec.Struct, frozen=True):
    """Linears in e4m3, a byte a weight, with a float32 scale a block (DeepSeek-V3, arXiv 2412.19437, 3.3.2)."""

    rows: int  # that have one scale
    columns: int


class Mxfp4(msgspec.Struct, frozen=True):
    """Experts in e2m1, two numbers a byte, with a byte of a power of two for 32 of them (gpt-oss)."""


Quantisation = Float8 | Mxfp4


def read_quantisation(config: Mapping[str, Any], subject: str) -> Quantisation | None:
    """What a config.json says, None for plain weights. Raises UnsupportedBase for a method that is not read."""
    text = config.get("text_config")
    told = config.get("quantization_config") or (isinstance(text, Mapping) and text.get("quantization_config"))
    if not told:
        return None
    method = told.get("quant_method") if isinstance(told, Mapping) else None
    if method == "mxfp4":
        return Mxfp4()
    if method != "fp8":
        raise UnsupportedBase(subject, f"is quantised by {method!r}, which is not read; {_ADVICE}")
    block, kind = told.get("weight_block_size"), told.get("fmt", "e4m3")
    if kind != "e4m3" or not _is_block(block):
        raise UnsupportedBase(
            subject, f"is quantised by 'fp8' of kind {kind!r} in blocks of {block!r}, which is not read; {_ADVICE}"
        )
    return Float8(block[0], block[1])


def _is_block(told: Any) -> bool:
    return isinstance(told, list) and len(told) == 2 and all(type(each) is int and each > 0 for each in told)
