"""Importing without garbage collection of what is imported, as it stays anyway. Imports nothing that takes time.

Importing torch and transformers makes hundreds of thousands of objects. Collecting again and again among ever more of
them took a quarter of the time of an engine's imports.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """Disable garbage collection for the block; afterwards it covers only objects made from then on."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
