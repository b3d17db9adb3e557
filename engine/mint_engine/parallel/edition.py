"""Of which code a node is: what nodes tell each other is read by the order of its fields (see `messages`)."""

import hashlib
from functools import cache
from pathlib import Path

import mint_contracts
import mint_engine

_SUFFIXES = frozenset({".py", ".cpp", ".h"})


@cache
def edition() -> bytes:
    """A digest of all that a node and its leader have to have alike: no layout, so that any edition can read it."""
    hasher = hashlib.sha256()
    for package in (mint_contracts, mint_engine):
        folder = Path(package.__file__ or "").parent
        for path in sorted(each for each in folder.rglob("*") if each.suffix in _SUFFIXES):
            hasher.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return hasher.digest()
