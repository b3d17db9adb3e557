"""Limits and sizes that the kernels' C++ sources define too; `layout` checks that a library has the same."""

ITEM_ROWS = 8  # most rows of a LoRA work item
MAX_RANK = 1024
MAX_QUERY_ROWS = 1024  # most query rows of one key/value head in an attention work item
MAX_EXPERTS = 1024  # most experts of a layer
PANEL_OUTPUTS = 48  # outputs that weights are padded to: a multiple of every instruction set's panel width
BARRIERS_BYTES = 64 + 1024 * 128  # size of peers.h: SharedBarriers
