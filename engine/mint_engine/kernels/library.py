"""The compiled kernels as Python functions over contiguous CPU tensors. Shapes are those of the C++ sources.

Contiguity is checked (`address`), but nothing that would cost time on every call: only passes and tests call these.
"""

import ctypes
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog
import torch

from mint_engine.kernels.attention_structs import Heads, heads_struct, variant_struct
from mint_engine.kernels.compile import VARIANTS, is_current, library_path
from mint_engine.kernels.constants import PANEL_OUTPUTS
from mint_engine.kernels.expert_structs import Stack, stack_struct
from mint_engine.kernels.layout import check_layout
from mint_engine.kernels.linear_structs import Linear, address, linear_struct
from mint_engine.kernels.row_structs import SILU, Activation, Norm, activation_struct, norm_struct
from mint_engine.kernels.structs import (
    BaseStruct,
    PeersStruct,
    SlotsStruct,
    StepStruct,
    WorkspaceStruct,
    slots_struct,
)
from mint_engine.model.device import multiplies_bfloat16
from mint_engine.residency.large_pages import LargePages
from mint_engine.residency.slots import Slots

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_P, _I = _POINTER, _INT
_log = structlog.get_logger(__name__)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "pass": (_P, _P, _P, _P, _P),
    "pack": (_P, _I, _I, _P),
    "multiply": (_P, _I, _P, _P),
    "add_norm": (_P, _P, _P, _P, _I, _I, _FLOAT),
    "rope": (_P, _I, _P, _P, _P, _P),
    "gate_mul": (_P, _P, _I, _I, _P),
    "argmax": (_P, _I, _I, _P, _P),
    "log_sums": (_P, _I, _I, _P),
    "draw": (_P, _I, _I, _P, _P, _P, _P, _P, _P),
    "attend": (_P, _P, _I, _I, _I, _P, _I, _P, _P, _FLOAT, _P),
    "lora": (_P, _I, _P, _I, _P, _I, _P, _P, _I),
    "all_reduce": (_P, _I, _I, _P),
    "barrier": (_P,),
    "multiply_experts": (_P, _P, _I, _P, _P),
    "lora_experts": (_P, _I, _P, _I, _P, _I, _P, _I, _P, _P, _P, _I, _I, _I),
}
DTYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}  # number types, and the kernels' suffixes for them
_AVX512 = {"avx512_bf16", "avx512bw", "avx512vl"}
_NEEDS = {
    "amx_bf16": {"amx_bf16", "amx_tile", *_AVX512},
    "avx512_bf16": _AVX512,
    "avx2": {"avx2", "fma"},
    "asimd": {"asimd"},
}


def bind(library: ctypes.CDLL, signatures: Mapping[str, tuple[Any, ...]], dtype: torch.dtype) -> SimpleNamespace:
    """Return a library's functions for a number type by name, with these types of arguments. They return nothing."""
    found = {name: getattr(library, f"mint_{name}_{DTYPES[dtype]}") for name in signatures}
    for name, function in found.items():
        function.argtypes, function.restype = signatures[name], None
    return SimpleNamespace(**found)


class Kernels:
    """The kernels for one number type."""

    def __init__(self, library: ctypes.CDLL, variant: str, dtype: torch.dtype) -> None:
        self.variant = variant
        # Whether products with a weight that is kept row by row are faster than torch's: if the instruction set has
        # products of bfloat16, or torch has none.
        self.fast_row_major = dtype == torch.bfloat16 and ("bf16" in variant or not multiplies_bfloat16())
        self.uses_amx = dtype == torch.bfloat16 and "amx" in variant
        self._compiled = bind(library, _SIGNATURES, dtype)
        self._pass = vars(self._compiled)["pass"]
        self._pass.restype = ctypes.c_int32

    def run(
        self,
        base: BaseStruct,
        slots: SlotsStruct,
        step: StepStruct,
        workspace: WorkspaceStruct,
        peers: PeersStruct | None,
    ) -> bool:
        """Run one step of a base, or of one rank's share of it together with its `peers`, on all threads.

        Returns False if it ended early because an adapter did not arrive.
        """
        together = ctypes.byref(peers) if peers is not None else None
        structs = base, slots, step, workspace
        return bool(self._pass(*map(ctypes.byref, structs), together))

    def pack(
        self, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, memory: LargePages
    ) -> Linear:
        """Pack a linear map's weight [out, in] for the kernels into `memory`; `in` must be even."""
        high, wide = weight.shape
        weight = weight.contiguous()  # kept alive until it is packed
        packed = memory.zeros(-(-high // PANEL_OUTPUTS) * PANEL_OUTPUTS * wide, weight.dtype)
        self._compiled.pack(address(weight), high, wide, address(packed))
        return Linear(packed, bias, wide, high, targets)

    def multiply(self, x: torch.Tensor, by: Linear) -> torch.Tensor:
        """x [T, in] -> x W^T + b [T, out], without adapters."""
        y = x.new_empty((x.shape[0], by.out_features))
        self._compiled.multiply(address(x), x.shape[0], ctypes.byref(linear_struct(by)), address(y))
        return y

    def add_norm(self, hidden: torch.Tensor, delta: torch.Tensor | None, norm: Norm, epsilon: float) -> torch.Tensor:
        """hidden [T, H] += delta, in place; returns RMSNorm(hidden) * weight [T, H], or a copy without a norm."""
        out = torch.empty_like(hidden)
        self._compiled.add_norm(
            address(hidden), address(delta), ctypes.byref(norm_struct(norm)),
            address(out), hidden.shape[0], hidden.shape[1], epsilon,
        )  # fmt: skip
        return out

    def rope(
        self, qkv: torch.Tensor, heads: Heads, positions: torch.Tensor, places: torch.Tensor, pool: torch.Tensor
    ) -> None:
        """Normalise and rotate queries and keys of qkv [T, (Q + 2 K) D] in place; write keys and values to pages.

        positions and places [T] int64; pool [P, 2, K, 16, D] is one layer's pages, laid out in pairs.
        """
        of = heads_struct(heads)
        self._compiled.rope(
            address(qkv), qkv.shape[0], ctypes.byref(of), address(positions), address(places), address(pool)
        )

    def attend(
        self, qkv: torch.Tensor, heads: Heads, items: torch.Tensor, tables: torch.Tensor, pool: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """Causal attention of rotated qkv over a layer's pages -> [T, Q D].

        items [n, 4] int64: first row, tokens, position of the first, index of its page table in `tables` [*] int32.
        """
        out, variant = qkv.new_empty((qkv.shape[0], heads.queries * heads.size)), variant_struct(heads.variant)
        self._compiled.attend(
            address(qkv), address(out), heads.queries, heads.keys, heads.size, address(items), items.shape[0],
            address(tables), address(pool), scale, ctypes.byref(variant),
        )  # fmt: skip
        return out

    def gate_mul(self, gate_up: torch.Tensor, by: Activation = SILU) -> torch.Tensor:
        """gate_up [T, 2 I] -> activation(gate) * up [T, I]."""
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out, of = gate_up.new_empty((rows, size)), activation_struct(by)
        self._compiled.gate_mul(address(gate_up), address(out), rows, size, ctypes.byref(of))
        return out

    def argmax(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [n, V] -> each row's first largest [n] int64 and its value [n] float32, NaN if the row holds NaN."""
        tokens = torch.empty(logits.shape[0], dtype=torch.int64)
        peaks = torch.empty(logits.shape[0], dtype=torch.float32)
        self._compiled.argmax(address(logits), logits.shape[0], logits.shape[1], address(tokens), address(peaks))
        return tokens, peaks

    def log_sums(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [n, V] -> the log-sum-exp of each row [n] float32."""
        sums = torch.empty(logits.shape[0])
        self._compiled.log_sums(address(logits), *logits.shape, address(sums))
        return sums

    def draw(
        self, logits: torch.Tensor, temperatures: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor,
        min_p: torch.Tensor, numbers: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """logits [n, V] -> one token for each row [n] int64, drawn at `numbers` [n] float64 in [0, 1).

        temperatures above 0, top_p (1 is off) and min_p (0 is off) [n] float32, top_k (0 is off) [n] int64.
        """
        tokens = torch.empty(logits.shape[0], dtype=torch.int64)
        self._compiled.draw(
            address(logits), logits.shape[0], logits.shape[1], address(temperatures), address(top_k),
            address(top_p), address(min_p), address(numbers), address(tokens),
        )  # fmt: skip
        return tokens

    def lora(self, y: torch.Tensor, x: torch.Tensor, items: torch.Tensor, slots: Slots, parts: torch.Tensor) -> None:
        """y [T, *] += each row's adapter applied to x [T, *], in place.

        items [n, 3] int32: first row, rows (at most `ITEM_ROWS`), slot; parts [p, 4] int64: module,
        column of y, in, out.
        """
        self._compiled.lora(
            address(y), y.shape[1], address(x), x.shape[1], address(items), items.shape[0],
            ctypes.byref(slots_struct(slots)), address(parts), parts.shape[0],
        )  # fmt: skip

    def multiply_experts(self, x: torch.Tensor, by: Stack, bounds: Sequence[int]) -> torch.Tensor:
        """Multiply rows bounds[e] to bounds[e + 1] of x [P, in] by expert e's weight alone -> [P, out]."""
        count, high, _ = by.shape
        y, limits, stack = x.new_empty((x.shape[0], high)), torch.tensor(bounds), stack_struct(by)
        self._compiled.multiply_experts(address(x), address(limits), count, ctypes.byref(stack), address(y))
        return y

    def lora_experts(self, y: torch.Tensor, x: torch.Tensor, items: torch.Tensor, slots: Slots, module: int) -> None:
        """y [P, out] += each pair's adapter applied to x [P, in], in place; y may be columns of a wider tensor.

        items [n, 4] int32: first pair, pairs (at most `ITEM_ROWS`), slot, expert.
        """
        wide, high = slots.shapes[module]
        self._compiled.lora_experts(
            address(y, rows_apart=True), y.stride(0), address(x), x.shape[1], address(items), items.shape[0],
            address(slots.memory), slots.memory.shape[1], address(slots.places[module]),
            address(slots.ranks[module]), address(slots.scalings[module]), slots.experts[module], wide, high,
        )  # fmt: skip

    def all_reduce(self, numbers: torch.Tensor, buffer: int, peers: PeersStruct) -> None:
        """Replace numbers [n], at most `peers.size`, by their sum over all ranks, bit-identical on each of them.

        `buffer` alternates between 0 and 1: a rank writes to one again only after all have met once more.
        """
        self._compiled.all_reduce(address(numbers), numbers.numel(), buffer, ctypes.byref(peers))

    def barrier(self, peers: PeersStruct) -> None:
        """Wait until all ranks have arrived here; each then sees what the others wrote before."""
        self._compiled.barrier(ctypes.byref(peers))


@cache
def find_kernels(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """Return the fastest kernels that this machine runs; None for another device or type, or if none are compiled."""
    if device.type != "cpu" or dtype not in DTYPES:
        return None
    found = load_library()
    return Kernels(*found, dtype) if found else None


@cache
def load_library() -> tuple[ctypes.CDLL, str] | None:
    """Return the best library that this machine runs and its variant, or None.

    Raises Internal if the library disagrees with Python about constants or structs.
    """
    # Torch must be loaded first, so that the kernels share its OpenMP threads.
    for variant in _known():
        path = library_path(variant)
        if not path.exists():
            continue
        if not is_current(path):
            _log.warning("kernels not used: built from other sources; compile them again", library=path.name)
            continue
        library = ctypes.CDLL(str(path))
        if library.mint_permitted():
            check_layout(library)
            return library, variant
        _log.warning("kernels not used: the system denies this process their registers", library=path.name)
    return None


def instruction_set() -> str:
    """Return the name of this machine's best instruction set among those with kernels, or "" if it has none."""
    return next(iter(_known()), "")


def _known() -> list[str]:
    """Return the variants whose instructions this machine has, the best first."""
    flags = _cpu_flags()
    return [variant for variant in VARIANTS.get(platform.machine(), {}) if flags >= _NEEDS[variant]]


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())
