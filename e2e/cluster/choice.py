"""Chooses the backend: the one asked for, the one that is already up, or one that works on this machine."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from e2e.cache import cache_folder
from e2e.cluster.backend import Backend
from e2e.cluster.commands import answers
from e2e.cluster.context import ContextBackend
from e2e.cluster.errors import ClusterError
from e2e.cluster.kind import KindBackend
from e2e.cluster.native.backend import NativeBackend
from e2e.cluster.paths import short_id

NAMES = ("context", "kind", "native")


@dataclass(frozen=True)
class Choice:
    """A backend's name, and its context if it has one."""

    name: str
    context: str | None = None


def decide(wanted: str | None, context: str | None, used: Choice | None, *, docker: bool) -> Choice:
    """Return the backend to use: by the given context, else the given name, else what `up` used last.

    If there is none of these, kind if `docker`, else native. Raises ClusterError for contradictions.
    """
    if context is not None:
        if wanted not in (None, "context"):
            raise ClusterError(f"--context does not go with --backend {wanted}")
        return Choice("context", context)
    if wanted == "context":
        if used is not None and used.name == "context":
            return used
        raise ClusterError("--backend context needs --context NAME")
    if wanted is not None:
        return Choice(wanted)
    if used is not None:
        return used
    return Choice("kind" if docker else "native")


def docker_answers() -> bool:
    """Whether a Docker engine answers, and kind is installed or can be."""
    can_have_kind = shutil.which("kind") is not None or shutil.which("go") is not None
    return can_have_kind and answers(["docker", "info"])


def make(choice: Choice, data: Path) -> Backend:
    """Return the chosen backend for a data folder."""
    if choice.context is not None:
        return ContextBackend(choice.context)
    return KindBackend(data) if choice.name == "kind" else NativeBackend(data)


def used_before(data: Path) -> Choice | None:
    """Return what the last `up` of this data folder chose; None after `down`."""
    try:
        return Choice(**json.loads(_note(data).read_text()))
    except FileNotFoundError:
        return None


def remember(choice: Choice, data: Path) -> None:
    """Note the choice in the cache, since the data folder comes and goes with the cluster."""
    note = _note(data)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"name": choice.name, "context": choice.context}))


def forget(data: Path) -> None:
    """Delete the note."""
    _note(data).unlink(missing_ok=True)


def _note(data: Path) -> Path:
    return cache_folder() / "clusters" / f"{short_id(data)}.json"
