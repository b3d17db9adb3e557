"""Importing without looks for cycles in what is imported, which stays. Imports nothing that takes time.

Hundreds of thousands of objects are made by imports of torch and transformers. To look through them again and again
while there are ever more of them took a quarter of the seconds of an engine's imports.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """While the block runs no cycles are looked for; afterwards they are, among what is made from then on."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
