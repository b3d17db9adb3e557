"""Where the cluster keeps its things: the data folder of one cluster, and the cache that all of them share."""

import hashlib
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def data_folder() -> Path:
    """The folder of this checkout's cluster: `MINT_CLUSTER_DIR`, or `build/cluster` in the repository."""
    chosen = os.environ.get("MINT_CLUSTER_DIR")
    return Path(chosen).expanduser().resolve() if chosen else REPOSITORY / "build" / "cluster"


def cache_folder() -> Path:
    """What outlives a cluster: `MINT_CACHE`, or `~/.cache/mint`."""
    chosen = os.environ.get("MINT_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "mint"


def short_id(folder: Path) -> str:
    """Eight hex digits that name the cluster of this data folder: in links, cgroups, locks and kind clusters."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:8]
