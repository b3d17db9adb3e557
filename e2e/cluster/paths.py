"""Where a cluster keeps its data, and the name that follows from that."""

import hashlib
import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def data_folder() -> Path:
    """Return the folder of this checkout's cluster: `MINT_CLUSTER_DIR`, or `build/cluster` in the repository."""
    chosen = os.environ.get("MINT_CLUSTER_DIR")
    return Path(chosen).expanduser().resolve() if chosen else REPOSITORY / "build" / "cluster"


def short_id(folder: Path) -> str:
    """Return eight hex digits that name this data folder's cluster: in links, cgroups, locks and kind clusters."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:8]
