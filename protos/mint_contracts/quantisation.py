"""How a base's files hold its weights, as its config.json says: what engines dequantise as they read.

Fields are as transformers, compressed-tensors and NVIDIA's ModelOpt write them. Which linears a config.json
exempts is not read: their tensors are not in float8.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from mint_contracts.errors import UnsupportedBase

MODELOPT_FILE = "hf_quant_config.json"  # where ModelOpt's older files say it, beside a config.json that does not
MXFP4_GROUP = 32  # numbers in a row that have one scale
MXFP4_BYTES = MXFP4_GROUP // 2  # that these numbers take, their scale left out
NVFP4_GROUP = 16  # numbers in a row that have one scale
_ADVICE = (
    "give the model in bfloat16, in float8 with a scale a tensor, a channel or a block, in MXFP8, in MXFP4, "
    "in ModelOpt's NVFP4, or as one GGUF file"
)


class Float8(msgspec.Struct, frozen=True):
    """Linears in e4m3, a byte a weight, with a scale for so many rows and columns; None: for all of them.

    By blocks as DeepSeek-V3 has them (arXiv 2412.19437, 3.3.2), by tensor or by channel, which is a row.
    """

    rows: int | None  # outputs
    columns: int | None  # inputs


class Mxfp4(msgspec.Struct, frozen=True):
    """Experts in e2m1, two numbers a byte, with a byte of a power of two for 32 of them (gpt-oss)."""


class Nvfp4(msgspec.Struct, frozen=True):
    """Linears in e2m1, two numbers a byte, with a byte of e4m3 for 16 in a row and a number for all (NVIDIA).

    `mixed` with others in float8, each by tensor, by channel or by blocks of 128, as its scales tell.
    """

    mixed: bool = False


Quantisation = Float8 | Mxfp4 | Nvfp4

BY_TENSOR = Float8(None, None)
BY_CHANNEL = Float8(1, None)
MXFP8 = Float8(1, 32)  # a scale is a byte of a power of two (OCP Microscaling Formats v1.0, section 6.3)
BLOCKS_OF_128 = Float8(128, 128)  # as DeepSeek-V3 and Kimi-K2 are published
MIXED = (BY_TENSOR, BY_CHANNEL, BLOCKS_OF_128)  # what may be beside NVFP4
_MODELOPT: dict[str, Quantisation] = {
    "FP8": BY_TENSOR, "FP8_PER_CHANNEL_PER_TOKEN": BY_CHANNEL, "FP8_PB_WO": BLOCKS_OF_128, "MXFP8": MXFP8,
    "NVFP4": Nvfp4(),
}  # fmt: skip
_MIXED = "MIXED_PRECISION"


def read_quantisation(config: Mapping[str, Any], subject: str) -> Quantisation | None:
    """What a config.json says, None for plain weights. Raises UnsupportedBase for a method that is not read."""
    text = config.get("text_config")
    told = config.get("quantization_config") or (isinstance(text, Mapping) and text.get("quantization_config"))
    if not told:
        return None
    if not isinstance(told, Mapping):
        raise _refused(subject, "None")
    if isinstance(told.get("quantization"), Mapping):  # as in MODELOPT_FILE
        told = {"quant_method": "modelopt"} | told["quantization"]
    method = str(told.get("quant_method"))
    if method in _READ:
        return _READ[method]
    if method in _READERS:
        return _READERS[method](told, subject)
    raise _refused(subject, repr(told.get("quant_method")))


def _fp8(told: Mapping[str, Any], subject: str) -> Float8:
    block, kind = told.get("weight_block_size"), told.get("fmt", "e4m3")
    if kind == "e4m3" and block is None:
        return BY_TENSOR
    if kind == "e4m3" and isinstance(block, list) and _is_block(block):
        return Float8(*block)
    raise _refused(subject, f"'fp8' of kind {kind!r} in blocks of {block!r}")


def _modelopt(told: Mapping[str, Any], subject: str) -> Quantisation:
    algorithm, layers = str(told.get("quant_algo")).upper(), told.get("quantized_layers")
    if algorithm == _MIXED and isinstance(layers, Mapping):
        return _mixed(layers, subject)
    found, group = _MODELOPT.get(algorithm), told.get("group_size")
    if found is None:
        raise _refused(subject, f"'modelopt' as {told.get('quant_algo')!r}")
    if found == Nvfp4() and group not in (None, NVFP4_GROUP):
        raise _refused(subject, f"'modelopt' as {algorithm!r} with a scale for {group!r}")
    return found


def _mixed(layers: Mapping[str, Any], subject: str) -> Nvfp4:
    """Of each linear its own algorithm."""
    named = {str(each.get("quant_algo") if isinstance(each, Mapping) else each).upper() for each in layers.values()}
    unread = {each for each in named if _MODELOPT.get(each) not in (*MIXED, Nvfp4())}
    if unread or not named:
        raise _refused(subject, f"'modelopt' as {_MIXED!r} of {', '.join(sorted(unread)) or 'nothing'}")
    return Nvfp4(mixed=True)


def _compressed(told: Mapping[str, Any], subject: str) -> Float8:
    """Groups of linears may differ in how activations are rounded, which none are here."""
    try:
        config = msgspec.convert(told, _Compressed)
    except msgspec.ValidationError as error:
        raise _refused(subject, f"'compressed-tensors' in a way that is not known ({error})") from None
    if config.transform_config or (config.sparsity_config or {}).get("format", "dense") != "dense":
        raise _refused(
            subject, "'compressed-tensors' with weights that are sparse, or turned before they are rounded"
        )
    held = {group.weights for group in config.config_groups.values() if group.weights is not None}
    schemes = {each.scheme for each in held}
    found = schemes.pop() if len(schemes) == 1 else None
    if found is None:
        weights = " and ".join(sorted(each.said for each in held)) or "none"
        raise _refused(subject, f"'compressed-tensors' with weights: {weights}")
    return found


_READ: dict[str, Quantisation] = {"mxfp4": Mxfp4(), "mxfp8": MXFP8, "fbgemm_fp8": BY_CHANNEL}
_READERS: dict[str, Callable[[Mapping[str, Any], str], Quantisation]] = {
    "fp8": _fp8, "modelopt": _modelopt, "compressed-tensors": _compressed,
}  # fmt: skip


class _Weights(msgspec.Struct, frozen=True):
    """How compressed-tensors says that a group of linears is quantised."""

    type: str
    num_bits: int
    strategy: str
    symmetric: bool = True
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None

    @property
    def scheme(self) -> Float8 | None:
        """None: not read."""
        if (self.type, self.num_bits, self.symmetric) != ("float", 8, True):
            return None
        if self.strategy == "group" and _is_block((1, self.group_size)):
            return Float8(1, self.group_size)
        if self.strategy == "block" and self.block_structure and _is_block(self.block_structure):
            return Float8(*self.block_structure)
        return {"tensor": BY_TENSOR, "channel": BY_CHANNEL}.get(self.strategy)

    @property
    def said(self) -> str:
        """For people."""
        even = "" if self.symmetric else ", not symmetric"
        return f"{self.type} of {self.num_bits} bits with a scale a {self.strategy}{even}"


class _Group(msgspec.Struct, frozen=True):
    weights: _Weights | None = None


class _Compressed(msgspec.Struct, frozen=True):
    config_groups: dict[str, _Group] = {}
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


def _is_block(sizes: Sequence[Any]) -> bool:
    return len(sizes) == 2 and all(type(each) is int and each > 0 for each in sizes)


def _refused(subject: str, method: str) -> UnsupportedBase:
    return UnsupportedBase(subject, f"is quantised by {method}, which is not read; {_ADVICE}")
