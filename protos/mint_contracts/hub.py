"""Where an hf:// source lies on the hub: a repository and a path, written as huggingface_hub writes them."""

import re

import msgspec

from mint_contracts.errors import SourceForbidden
from mint_contracts.source import Location

_KINDS = {"models": "model", "datasets": "dataset"}
_OTHERS = ("spaces", "kernels", "buckets")  # further kinds that huggingface_hub knows; MinT reads none of them
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?(?<!\.git)")  # the hub's own rule


class Place(msgspec.Struct, frozen=True):
    """A folder or file of a repository. `kind` is "model" or "dataset", `repository` OWNER/NAME."""

    kind: str
    repository: str
    path: str

    def at(self, commit: str) -> str:
        """Return its path at that commit as HfFileSystem writes it."""
        prefix = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{prefix}{self.repository}@{commit}/{self.path}".rstrip("/")


def place_of(location: Location, subject: str) -> Place:
    """Parse hf://OWNER/NAME/PATH or hf://datasets/OWNER/NAME/PATH. Raises SourceForbidden without a repository."""
    kind, parts = "model", [location.host, *location.path.split("/")]
    if parts[0] in _OTHERS:
        raise SourceForbidden(subject, f"lies in {parts[0]} of the hub; only models and datasets are read from it")
    if parts[0] in _KINDS:
        kind = _KINDS[parts.pop(0)]
    (owner, name), rest = [*parts, "", ""][:2], parts[2:]
    if "@" in name:
        raise SourceForbidden(subject, "carries a revision in its uri; set it as the source's revision instead")
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name)) or "" in rest:
        raise SourceForbidden(
            subject,
            "does not name a repository of the hub; write hf://OWNER/NAME/PATH for a model's, or "
            "hf://datasets/OWNER/NAME/PATH for a dataset's",
        )
    return Place(kind, f"{owner}/{name}", "/".join(rest))
