"""Where a cluster keeps its things, and what it is called by them."""

import hashlib
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def data_folder() -> Path:
    """The folder of this checkout's cluster: `MINT_CLUSTER_DIR`, or `build/cluster` in the repository."""
    chosen = os.environ.get("MINT_CLUSTER_DIR")
    return Path(chosen).expanduser().resolve() if chosen else REPOSITORY / "build" / "cluster"


def short_id(folder: Path) -> str:
    """Eight hex digits that name the cluster of this data folder: in links, cgroups, locks and kind clusters."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:8]
