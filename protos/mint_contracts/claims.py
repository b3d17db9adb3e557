"""Where file:// and pvc:// sources lie on this machine, and whether two sources are the same folder."""

import os
from pathlib import Path

from mint_contracts.errors import SourceForbidden
from mint_contracts.settings import PVC_ROOT
from mint_contracts.source import Location, Source, locate

DEFAULT_PVC_ROOT = "/mint/pvc"


def local_path(location: Location) -> tuple[Path, Path | None]:
    """Return a file:// or pvc:// source's path, links resolved, and the folder it may not leave (a pvc:// claim).

    Raises SourceForbidden if the claim is not mounted or a symbolic link leaves it.
    """
    if location.scheme == "file":
        return Path(os.path.realpath("/" + location.path)), None
    claim = _root() / location.host
    subject = f"source 'pvc://{location.host}/{location.path}'"
    if location.host.startswith(".") or "/" in location.host or not claim.is_dir():
        message = (
            f"claim {location.host!r} is not mounted; add it to spec.adapters.volumeClaims of the BaseModel or, for "
            "a catalog's manifests, to gateway.catalog.claims of the chart"
        )
        raise SourceForbidden(subject, message)
    claim = Path(os.path.realpath(claim))
    path = Path(os.path.realpath(claim / location.path))
    if not path.is_relative_to(claim):
        raise SourceForbidden(subject, "leads out of its claim by a symbolic link")
    return path, claim


def named_path(location: Location) -> str:
    """Return the path as named, without resolving links or checking the claim: for stat, not for reading."""
    return f"{_root()}/{location.host}/{location.path}" if location.scheme == "pvc" else f"/{location.path}"


def folders(source: Source) -> list[str]:
    """Return a source's path as a list of folders, the same for every spelling; a claim's as engines mount it.

    Raises SourceForbidden for a source that may not be read.
    """
    location = locate(source)
    scheme, path = location.scheme, f"{location.host}/{location.path}"
    if scheme == "pvc":
        scheme, path = "file", f"{DEFAULT_PVC_ROOT}/{path}"
    return [scheme, *(folder for folder in path.split("/") if folder)]


def _root() -> Path:
    return Path(os.environ.get(PVC_ROOT, DEFAULT_PVC_ROOT))
