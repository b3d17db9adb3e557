"""A digest of what pods run from this checkout, compiled kernels too: an image tag changes when the code does."""

import hashlib

from e2e.cluster.paths import REPOSITORY

PACKAGES = ("operator/mint_operator", "engine/mint_engine", "engine/mint_gateway", "protos/mint_contracts")
SUFFIXES = {".py", ".lua", ".so", ".html", ".css", ".js"}


def source_tag() -> str:
    """`src-` and twelve hex digits over the packages' sources and the pinned versions."""
    digest = hashlib.sha256((REPOSITORY / "constraints.txt").read_bytes())
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*")):
            if path.suffix in SUFFIXES:
                digest.update(f"\0{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return f"src-{digest.hexdigest()[:12]}"
