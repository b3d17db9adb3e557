"""The quantisation of a base's weights, read from its config.json; engines dequantise while reading the files.

Fields are as transformers, compressed-tensors and NVIDIA's ModelOpt write them. Engines do not read which linears a
config.json exempts: they see it from the tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from mint_contracts.errors import UnsupportedBase

MODELOPT_FILE = "hf_quant_config.json"  # older ModelOpt models have it here, and nothing in config.json
MXFP4_GROUP = 32  # consecutive numbers that share one scale
MXFP4_BYTES = MXFP4_GROUP // 2  # the size of such a group without its scale
NVFP4_GROUP = 16  # consecutive numbers that share one scale
PACKED = "pack-quantized"  # compressed-tensors' name for the format of Integers
WORD = 32  # bits
_E4M3 = ("e4m3", "e4m3fn", "float8_e4m3fn", None)  # spellings of one "fmt" by DeepSeek-V3, others and MiniMax-M2
_INTEGERS = (4, 8)  # bits; numbers of other widths cross word boundaries
_REORDERED = ("group", "dynamic", True)  # values of "actorder"; "weight" and "static" leave columns in their groups
_ADVICE = (
    "give the model in bfloat16, in float8 with a scale a tensor, a channel or a block, in MXFP8, in MXFP4, "
    "in ModelOpt's NVFP4, in compressed-tensors' 'pack-quantized' of 4 or 8 bits, or as one GGUF file"
)


class Float8(msgspec.Struct, frozen=True):
    """Linears in e4m3, one byte per weight, with one scale per block of `rows` x `columns`; None means all of them.

    Scales are per block as in DeepSeek-V3 (arXiv 2412.19437, 3.3.2), per tensor, or per channel, which is a row.
    """

    rows: int | None  # outputs
    columns: int | None  # inputs


class Mxfp4(msgspec.Struct, frozen=True):
    """Experts in e2m1, two numbers per byte, with a one-byte power of two as the scale of 32 numbers (gpt-oss)."""


class Nvfp4(msgspec.Struct, frozen=True):
    """Linears in e2m1, two numbers per byte, with an e4m3 scale per 16 numbers and one scale per tensor (NVIDIA).

    `mixed`: other linears are in float8, each per tensor, per channel or in blocks of 128, as its scales show.
    """

    mixed: bool = False


class Integers(msgspec.Struct, frozen=True):
    """Linears in integers of `bits` bits, packed into 32-bit words, with scales as in Float8.

    If not `symmetric`, a zero point is subtracted. `reordered`: a tensor gives the group of each column.
    """

    bits: int
    rows: int | None
    columns: int | None
    symmetric: bool = True
    reordered: bool = False


Quantisation = Float8 | Mxfp4 | Nvfp4 | Integers

BY_TENSOR = Float8(None, None)
BY_CHANNEL = Float8(1, None)
MXFP8 = Float8(1, 32)  # a scale is a one-byte power of two (OCP Microscaling Formats v1.0, section 6.3)
BLOCKS_OF_128 = Float8(128, 128)  # as DeepSeek-V3 and Kimi-K2 are published
MIXED = (BY_TENSOR, BY_CHANNEL, BLOCKS_OF_128)  # allowed beside NVFP4
_MODELOPT: dict[str, Quantisation] = {
    "FP8": BY_TENSOR, "FP8_PER_CHANNEL_PER_TOKEN": BY_CHANNEL, "FP8_PB_WO": BLOCKS_OF_128, "MXFP8": MXFP8,
    "NVFP4": Nvfp4(),
}  # fmt: skip
_MIXED = "MIXED_PRECISION"


def read_quantisation(config: Mapping[str, Any], subject: str) -> Quantisation | None:
    """Read a config.json's quantisation; None for plain weights. Raises UnsupportedBase for an unsupported method."""
    settings = quantisation_config(config)
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise _refused(subject, "None")
    method = str(settings.get("quant_method"))
    if method in _READ:
        return _READ[method]
    if method in _READERS:
        return _READERS[method](settings, subject)
    raise _refused(subject, repr(settings.get("quant_method")))


def quantisation_config(config: Mapping[str, Any]) -> Any:
    """Return the quantisation settings of a config.json as they are; None if the base is not quantised."""
    text = config.get("text_config")
    settings = config.get("quantization_config") or (isinstance(text, Mapping) and text.get("quantization_config"))
    settings = settings or config.get("compression_config")  # the early name in compressed-tensors
    if isinstance(settings, Mapping) and isinstance(settings.get("quantization"), Mapping):  # as in MODELOPT_FILE
        return {"quant_method": "modelopt"} | settings["quantization"]
    return settings or None


def _fp8(settings: Mapping[str, Any], subject: str) -> Float8:
    block, kind = settings.get("weight_block_size"), settings.get("fmt")
    if kind in _E4M3 and block is None:
        return BY_TENSOR
    if kind in _E4M3 and isinstance(block, list) and _is_block(block):
        return Float8(*block)
    raise _refused(subject, f"'fp8' of kind {kind!r} in blocks of {block!r}")


def _modelopt(settings: Mapping[str, Any], subject: str) -> Quantisation:
    algorithm, layers = str(settings.get("quant_algo")).upper(), settings.get("quantized_layers")
    if algorithm == _MIXED and isinstance(layers, Mapping):
        return _mixed(layers, subject)
    found, group = _MODELOPT.get(algorithm), settings.get("group_size")
    if found is None:
        raise _refused(subject, f"'modelopt' as {settings.get('quant_algo')!r}")
    if found == Nvfp4() and group not in (None, NVFP4_GROUP):
        raise _refused(subject, f"'modelopt' as {algorithm!r} with a scale for {group!r}")
    return found


def _mixed(layers: Mapping[str, Any], subject: str) -> Nvfp4:
    """Read settings that give each linear its own algorithm."""
    named = {str(each.get("quant_algo") if isinstance(each, Mapping) else each).upper() for each in layers.values()}
    unread = {each for each in named if _MODELOPT.get(each) not in (*MIXED, Nvfp4())}
    if unread or not named:
        raise _refused(subject, f"'modelopt' as {_MIXED!r} of {', '.join(sorted(unread)) or 'nothing'}")
    return Nvfp4(mixed=True)


def _compressed(settings: Mapping[str, Any], subject: str) -> Float8 | Integers:
    """Read compressed-tensors' settings. Groups may differ in activation rounding: MinT rounds no activations."""
    try:
        config = msgspec.convert(settings, _Compressed)
    except msgspec.ValidationError as error:
        raise _refused(subject, f"'compressed-tensors' in a way that is not known ({error})") from None
    if config.transform_config or (config.sparsity_config or {}).get("format", "dense") != "dense":
        raise _refused(
            subject, "'compressed-tensors' with weights that are sparse, or turned before they are rounded"
        )
    groups = config.config_groups.values()
    held = {(group.weights, group.format or config.format) for group in groups if group.weights is not None}
    schemes = {weights.scheme(form) for weights, form in held}
    found = schemes.pop() if len(schemes) == 1 else None
    if found is None:
        weights = " and ".join(sorted({weights.described(form) for weights, form in held})) or "none"
        raise _refused(subject, f"'compressed-tensors' with weights: {weights}")
    return found


_READ: dict[str, Quantisation] = {"mxfp4": Mxfp4(), "mxfp8": MXFP8, "fbgemm_fp8": BY_CHANNEL}
_READERS: dict[str, Callable[[Mapping[str, Any], str], Quantisation]] = {
    "fp8": _fp8, "modelopt": _modelopt, "compressed-tensors": _compressed,
}  # fmt: skip


class _Weights(msgspec.Struct, frozen=True):
    """compressed-tensors' description of how a group of linears is quantised."""

    type: str
    num_bits: int
    strategy: str
    symmetric: bool = True
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None
    actorder: str | bool | None = None

    def scheme(self, form: str | None) -> Float8 | Integers | None:
        """Return the matching file format; None if it is not supported."""
        if (self.type, self.num_bits, self.symmetric) == ("float", 8, True):
            return self._scaled
        blocks = self._scaled if self.strategy != "block" else None
        if self.type != "int" or self.num_bits not in _INTEGERS or form != PACKED or blocks is None:
            return None
        grouped = self.strategy == "group"
        return Integers(
            self.num_bits, blocks.rows, blocks.columns, self.symmetric, grouped and self.actorder in _REORDERED
        )

    @property
    def _scaled(self) -> Float8 | None:
        """The rows and columns that share a scale; None if not supported."""
        if self.strategy == "group" and _is_block((1, self.group_size)):
            return Float8(1, self.group_size)
        if self.strategy == "block" and self.block_structure and _is_block(self.block_structure):
            return Float8(*self.block_structure)
        return {"tensor": BY_TENSOR, "channel": BY_CHANNEL}.get(self.strategy)

    def described(self, form: str | None) -> str:
        """Describe it for people."""
        even = "" if self.symmetric else ", not symmetric"
        packed = f" as {form!r}" if self.type == "int" else ""
        return f"{self.type} of {self.num_bits} bits with a scale a {self.strategy}{even}{packed}"


class _Group(msgspec.Struct, frozen=True):
    weights: _Weights | None = None
    format: str | None = None
    targets: list[str] = []


class _Compressed(msgspec.Struct, frozen=True):
    config_groups: dict[str, _Group] = {}
    format: str | None = None
    ignore: list[str] | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


def _is_block(sizes: Sequence[Any]) -> bool:
    return len(sizes) == 2 and all(type(each) is int and each > 0 for each in sizes)


def _refused(subject: str, method: str) -> UnsupportedBase:
    return UnsupportedBase(subject, f"is quantised by {method}, which is not read; {_ADVICE}")
