"""A digest of a node's code: all nodes must run the same, as messages are decoded by field order (see `messages`)."""

import hashlib
from functools import cache
from pathlib import Path

import mint_contracts
import mint_engine

_SUFFIXES = frozenset({".py", ".cpp", ".h"})


@cache
def edition() -> bytes:
    """Return a digest of all code that a node and its leader must share, as raw bytes that any edition can read."""
    hasher = hashlib.sha256()
    for package in (mint_contracts, mint_engine):
        folder = Path(package.__file__ or "").parent
        for path in sorted(each for each in folder.rglob("*") if each.suffix in _SUFFIXES):
            hasher.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return hasher.digest()
