"""The engine: one resident base model, its adapter slots, and the gRPC server in front of them."""

import os

# Large pages for large tensors: an update's activations are gigabytes, and to get them by pages of 4 KiB, and to find
# them there, took some 8% of it (measured). Torch reads this once, before it computes anything.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
