"""The sources that pods run from this checkout: a digest of them for the image's tag, and their compilation."""

import hashlib
import sys

from e2e.cluster.commands import run
from e2e.cluster.paths import REPOSITORY

PACKAGES = ("operator/mint_operator", "engine/mint_engine", "engine/mint_gateway", "protos/mint_contracts")
SUFFIXES = {".py", ".lua", ".so", ".html", ".css", ".js"}


def source_tag() -> str:
    """Return `src-` and twelve hex digits that hash the packages' sources and the pinned versions."""
    digest = hashlib.sha256((REPOSITORY / "constraints.txt").read_bytes())
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*")):
            if path.suffix in SUFFIXES:
                digest.update(f"\0{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    return f"src-{digest.hexdigest()[:12]}"


def compile_sources() -> None:
    """Compile changed sources: pods see the checkout read-only, so each of them would have to compile them again."""
    run([sys.executable, "-m", "compileall", "-q", *(REPOSITORY / package for package in PACKAGES)])
