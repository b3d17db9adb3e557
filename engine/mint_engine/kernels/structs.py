"""The compiled kernels' arguments as C++ lays them out: each struct mirrors the C++ struct of the same name.

Structs hold only addresses: whoever creates one keeps its tensors alive.
"""

import ctypes
from collections.abc import Sequence

import torch

from mint_engine.kernels.attention_structs import HeadsStruct, LatentStruct
from mint_engine.kernels.expert_structs import ExpertsStruct
from mint_engine.kernels.linear_structs import LinearStruct, address
from mint_engine.kernels.row_structs import ActivationStruct, NormStruct
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.slots import Slots

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class LayerStruct(ctypes.Structure):
    """step.h: Layer"""

    _fields_ = (
        ("attention_norm", NormStruct), ("qkv", LinearStruct), ("output", LinearStruct),
        ("post_attention_norm", NormStruct), ("mlp_norm", NormStruct), ("gate_up", LinearStruct),
        ("down", LinearStruct), ("experts", ctypes.POINTER(ExpertsStruct)), ("post_mlp_norm", NormStruct),
        ("heads", HeadsStruct), ("latent", ctypes.POINTER(LatentStruct)), ("pool", _POINTER), ("group", _INT),
    )  # fmt: skip


class BaseStruct(ctypes.Structure):
    """step.h: Base"""

    _fields_ = (
        ("embedding", _POINTER), ("layers", ctypes.POINTER(LayerStruct)), ("layer_count", _INT), ("norm", NormStruct),
        ("head", LinearStruct), ("scale", _FLOAT), ("epsilon", _FLOAT), ("activation", ActivationStruct),
        ("embedding_scale", _FLOAT), ("residual_scale", _FLOAT), ("logit_divisor", _FLOAT), ("logit_cap", _FLOAT),
    )  # fmt: skip


class SlotsStruct(ctypes.Structure):
    """lora.h: Slots"""

    _fields_ = (
        ("memory", _POINTER), ("width", _INT), ("places", _POINTER), ("ranks", _POINTER), ("scalings", _POINTER),
        ("count", _INT),
    )  # fmt: skip


class ArrivalStruct(ctypes.Structure):
    """arrival.h: Arrival"""

    _fields_ = (("loaded", _POINTER), ("needed", _POINTER), ("timeout_s", _FLOAT))


class StepStruct(ctypes.Structure):
    """step.h: Step"""

    _fields_ = (
        ("rows", _INT), ("tokens", _POINTER), ("positions", _POINTER), ("places", _POINTER),
        ("chunks", _POINTER), ("chunk_count", _INT), ("tables", _POINTER), ("items", _POINTER),
        ("item_count", _INT), ("logit_rows", _POINTER), ("logit_row_count", _INT), ("logits", _POINTER),
        ("logits_width", _INT), ("routes", _POINTER), ("weights", _POINTER),
        ("arrival", ctypes.POINTER(ArrivalStruct)),
    )  # fmt: skip


class WorkspaceStruct(ctypes.Structure):
    """step.h: Workspace"""

    _fields_ = (
        ("hidden", _POINTER), ("x", _POINTER), ("delta", _POINTER), ("wide", _POINTER), ("narrow", _POINTER),
        ("sums", _POINTER), ("middle", _POINTER), ("pair_hidden", _POINTER), ("pair_gate_up", _POINTER),
        ("pair_gated", _POINTER), ("latents", _POINTER), ("selected", _POINTER), ("wide_width", _INT),
        ("narrow_width", _INT), ("middle_width", _INT), ("latents_width", _INT),
    )  # fmt: skip


class PeersStruct(ctypes.Structure):
    """peers.h: Peers"""

    _fields_ = (
        ("count", _INT), ("rank", _INT), ("threads", _INT), ("barriers", _POINTER), ("sums", _POINTER),
        ("size", _INT), ("timeout_s", _FLOAT), ("squares", _POINTER),
    )  # fmt: skip


def slots_struct(slots: Slots) -> SlotsStruct:
    """Return the slots' memory and tables, whose addresses never change."""
    return SlotsStruct(
        address(slots.memory), slots.memory.shape[1], address(slots.places), address(slots.ranks),
        address(slots.scalings), slots.count,
    )  # fmt: skip


def arrival_struct(
    arrival: Arrival | None, needed: torch.Tensor | None, timeout_s: float
) -> "ctypes._Pointer[ArrivalStruct] | None":
    """Return how an adapter arrives and what each layer needs of it [layers] int64; null if it is already there."""
    if arrival is None:
        return None
    return ctypes.pointer(ArrivalStruct(arrival.address, address(needed), timeout_s))


def workspace_struct(rows: Sequence[torch.Tensor], pairs: Sequence[torch.Tensor]) -> WorkspaceStruct:
    """Return a step's buffers.

    `rows` holds those of its rows, [rows, ...]: hidden, x, delta, wide, narrow, sums, middle, latents, selected.
    `pairs` holds those of its row-expert pairs, [pairs, ...], if any: pair_hidden, pair_gate_up, pair_gated.
    """
    *others, latents, selected = rows
    wide, narrow, _, middle = (each.shape[1] for each in others[-4:])
    of_pairs = map(address, pairs or (None,) * 3)
    widths = wide, narrow, middle, latents.shape[1]
    return WorkspaceStruct(*map(address, others), *of_pairs, address(latents), address(selected), *widths)
