"""Where file:// and pvc:// sources lie on this machine."""

import os
from pathlib import Path

from mint_contracts.errors import SourceForbidden
from mint_contracts.settings import PVC_ROOT
from mint_contracts.source import Location

DEFAULT_PVC_ROOT = "/mint/pvc"


def local_path(location: Location) -> tuple[Path, Path | None]:
    """Where a file:// or pvc:// source lies, links resolved, and the folder that it may not leave (a claim).

    What lies in a claim keeps to the claim's rules by whichever of the two it is named. Raises SourceForbidden for a
    claim that is not mounted, a link that leaves it, and the kernel's links, by which everything has further names.
    """
    named, root = Path(named_path(location)), _root()
    subject = f"source '{location.scheme}://{location.host}/{location.path}'"
    if named.parts[1:2] == ("proc",) or named.parts[1:3] == ("dev", "fd"):
        raise SourceForbidden(subject, "lies among the kernel's links; name the folder that it leads to")
    within = named.relative_to(root).parts if named.is_relative_to(root) else ()
    if location.scheme == "file" and not within:
        return Path(os.path.realpath(named)), None
    name = location.host or within[0]
    claim = root / name
    if name.startswith(".") or "/" in name or not claim.is_dir():
        raise SourceForbidden(subject, f"claim {name!r} is not mounted; add it to adapters.volumeClaims")
    claim = Path(os.path.realpath(claim))
    path = Path(os.path.realpath(named))
    if not path.is_relative_to(claim):
        raise SourceForbidden(subject, "leads out of its claim by a symbolic link")
    return path, claim


def named_path(location: Location) -> str:
    """The same as it is named, links and claims not looked at: for stat, not for reading (see `local_path`)."""
    return f"{_root()}/{location.host}/{location.path}" if location.scheme == "pvc" else f"/{location.path}"


def _root() -> Path:
    return Path(os.environ.get(PVC_ROOT, DEFAULT_PVC_ROOT))
