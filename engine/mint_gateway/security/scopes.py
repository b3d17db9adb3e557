"""The scopes of keys, read from a file by key name. A key that the file does not name opens everything.

An unreadable scope opens nothing: a typing error must never open more to a key.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import UNSET, Meta, UnsetType

from mint_contracts.errors import MintError, SourceNotFound, Unauthenticated
from mint_gateway.security.mounted import Files
from mint_gateway.security.scope import EVERYTHING, Scope

SCOPES_FILE = "scopes.json"

_Prefix = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=200)]
_Namespace = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]

_log = structlog.get_logger()


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scope as written in the file; the chart's values.schema.json has the same rules."""

    adapters: list[_Prefix] | UnsetType = UNSET
    namespaces: list[_Namespace] | UnsetType = UNSET


@dataclass(frozen=True)
class Scopes:
    """The scopes by key name; None is an unreadable scope. `broken`: the file itself is unreadable."""

    by_key: Mapping[str, Scope | None]
    broken: bool = False

    def of(self, key: str) -> Scope:
        """Return the scope of the key of that name. Raises Unauthenticated if it cannot be read."""
        scope = None if self.broken else self.by_key.get(key, EVERYTHING)
        if scope is None:
            message = "holds a key whose scope the gateway cannot read; contact its administrator"
            raise Unauthenticated("authorization", message)
        return scope


def read_scopes(folder: Path, files: Files) -> Scopes:
    """Return the scopes in scopes.json. Raises SourceNotFound if it is missing; unreadable content is logged."""
    file = folder / SCOPES_FILE
    if SCOPES_FILE not in files:
        raise SourceNotFound(str(file), "does not exist; create it with the scopes of the keys")
    try:
        entries = json.loads(files[SCOPES_FILE], object_pairs_hook=_once)
        if not isinstance(entries, dict):
            raise ValueError("is not a JSON object")
    except (ValueError, RecursionError) as error:
        return _broken(str(file), str(error))
    scopes = {key: _read(str(file), key, each) for key, each in entries.items()}
    _log.info("scopes loaded", clients=sorted(scopes))
    return Scopes(scopes)


def no_scopes(error: MintError) -> Scopes:
    """Return the scopes that hold while the file cannot be read: none."""
    return _broken(error.subject, error.message)


def _broken(file: str, error: str) -> Scopes:
    _log.error("scopes cannot be read; every key is rejected until they can", file=file, error=error)
    return Scopes({}, broken=True)


def _read(file: str, key: str, entry: object) -> Scope | None:
    try:
        scope = msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as error:
        _log.error("scope cannot be read; its key is rejected until it can", file=file, client=key, error=str(error))
        return None
    return Scope(
        adapters=None if scope.adapters is UNSET else tuple(scope.adapters),
        namespaces=None if scope.namespaces is UNSET else frozenset(scope.namespaces),
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. Raises ValueError for a duplicate name, which would be ambiguous."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"has a duplicate name among {', '.join(sorted(found))[:200]}")
    return found
