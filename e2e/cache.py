"""What outlives a run: one folder in which what takes long is made once, and from which old builds leave."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

KEPT = 3  # builds of one kind: today's, and those of the branches one goes back to
SPARED_S = 24 * 3600.0  # what was used within a day may be in use now, by another checkout
GOING = ".going"


def cache_folder() -> Path:
    """`MINT_CACHE`, or `~/.cache/mint`."""
    chosen = os.environ.get("MINT_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "mint"


def mark_used(build: Path) -> None:
    """Note on the build's folder that it was used now."""
    os.utime(build)


def evict(home: Path, say: Callable[[str], None]) -> None:
    """Remove the folders in `home` but the KEPT that were used last and those used within SPARED_S.

    Call it after a build: that is when the disk fills. A build that is half removed is never found by its name.
    """
    builds = sorted((path for path in home.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    limit = time.time() - SPARED_S
    for build in builds[: max(0, len(builds) - KEPT)]:
        if build.stat().st_mtime < limit:
            going = build if build.suffix == GOING else build.rename(build.with_name(build.name + GOING))
            shutil.rmtree(going)
            say(f"removed {build}, which was not used for a day and has {KEPT} newer ones beside it")
