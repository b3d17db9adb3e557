"""The cache that outlives a run: a folder for what takes long to make, from which old builds are evicted."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

KEPT = 3  # builds of one kind: the current one, and those of branches that one returns to
SPARED_S = 24 * 3600.0  # a build used within a day may be in use now, by another checkout
GOING = ".going"


def cache_folder() -> Path:
    """Return `MINT_CACHE`, or `~/.cache/mint`."""
    chosen = os.environ.get("MINT_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "mint"


def mark_used(build: Path) -> None:
    """Record the current time as the build's last use."""
    os.utime(build)


def evict(home: Path, say: Callable[[str], None]) -> None:
    """Remove the folders in `home`, except the KEPT most recently used and those used within SPARED_S.

    Call it after a build, which is when the disk fills. A build is renamed before it is removed, so that a partly
    removed one is never found by its name.
    """
    builds = sorted((path for path in home.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    limit = time.time() - SPARED_S
    for build in builds[: max(0, len(builds) - KEPT)]:
        if build.stat().st_mtime < limit:
            going = build if build.suffix == GOING else build.rename(build.with_name(build.name + GOING))
            shutil.rmtree(going)
            say(f"removed {build}, which was not used for a day and has {KEPT} newer ones beside it")
