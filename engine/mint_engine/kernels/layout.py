"""Checks that a compiled library has the same limits, numbers of kinds and struct sizes as the Python code.

The C++ side is constants.cpp. Without this check, an edit of only one side could crash the process.
"""

import ctypes

from mint_contracts.errors import Internal
from mint_contracts.layer_groups import PAGE_TOKENS
from mint_engine.kernels import attention_structs, expert_structs, linear_structs, row_structs, structs
from mint_engine.kernels.constants import (
    BARRIERS_BYTES,
    ITEM_ROWS,
    MAX_EXPERTS,
    MAX_QUERY_ROWS,
    MAX_RANK,
    PANEL_OUTPUTS,
)
from mint_engine.residency.arrival import LOST

_STRUCTS = {
    name.removesuffix("Struct"): kind
    for module in (attention_structs, expert_structs, linear_structs, row_structs, structs)
    for name, kind in vars(module).items()
    if name.endswith("Struct")
}
CONSTANTS = {
    "item_rows": ITEM_ROWS,
    "max_rank": MAX_RANK,
    "max_query_rows": MAX_QUERY_ROWS,
    "max_experts": MAX_EXPERTS,
    "page_tokens": PAGE_TOKENS,
    "lost": LOST,
    "sizeof_SharedBarriers": BARRIERS_BYTES,
    **{kind.name.lower(): kind.value for kind in expert_structs.Kind},
    **{f"scale_{kind.name.lower()}": kind.value for kind in expert_structs.ScaleKind},
    **{f"zero_{kind.name.lower()}": kind.value for kind in expert_structs.ZeroKind},
    **{f"activation_{name}": number for number, name in enumerate(row_structs.ACTIVATIONS)},
    **{f"sizeof_{name}": ctypes.sizeof(kind) for name, kind in _STRUCTS.items()},
}


def check_layout(library: ctypes.CDLL) -> None:
    """Raise Internal if a library's constants or structs differ from those of the Python code."""
    for name, value in CONSTANTS.items():
        if (found := constant(library, name)) != value:
            raise Internal("kernels", f"have {name} = {found} in C++ and {value} in Python; make them equal")
    if PANEL_OUTPUTS % (width := constant(library, "panel_width")):
        raise Internal("kernels", f"have panels of {width} outputs, of which {PANEL_OUTPUTS} is no multiple")


def constant(library: ctypes.CDLL, name: str) -> int:
    """Return the value of one of the library's constants."""
    return ctypes.c_int64.in_dll(library, f"mint_{name}").value
