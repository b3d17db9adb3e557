"""Tracks which status fields the API server drops because its CRDs are older and lack them.

Helm never upgrades CRDs. A dropped field is never read back, which must not be mistaken for a change to write.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec
import structlog

from mint_operator.planning import status_write
from mint_operator.planning.status_write import Status

LOOK_S = 60.0  # how often one status per kind is written in full again: somebody may have applied the CRDs
CRDS_OUTDATED = "CRDsOutdated"

T = TypeVar("T", bound=Status)

log = structlog.get_logger()


class _Custom(msgspec.Struct, frozen=True):
    status: dict[str, Any] = {}


class Pruning:
    """The fields that are dropped, by kind, learnt from the answers to status writes; none until then."""

    def __init__(self) -> None:
        self._fields: dict[str, frozenset[str]] = {}
        self._look_at: dict[str, float] = {}
        self._looking: set[str] = set()  # kinds of which the next status is to be written in full

    def check_due(self, now: float) -> bool:
        """Return whether it is time to check if fields are still dropped, and schedule that check."""
        due = {kind for kind, fields in self._fields.items() if fields and now >= self._look_at[kind]}
        self._look_at |= dict.fromkeys(due, now + LOOK_S)
        self._looking |= due
        return bool(due)

    def readable(self, kind: str, status: T) -> T:
        """Return the part of a status that will be read back; all of it if its kind is due for a check."""
        fields = self._fields.get(kind)
        kept = without(status, fields) if fields else status
        if kept == status or kind not in self._looking:
            return kept
        self._looking.discard(kind)
        return status

    def learn(self, kind: str, sent: Status, raw: bytes, now: float) -> str | None:
        """Learn from the answer to a write. Returns a message about dropped fields that is news.

        It is "" if all fields are kept again, None if nothing has changed.
        """
        body, before = status_write.body(sent), self._fields.get(kind, frozenset())
        fields = left_out(body, msgspec.json.decode(raw, type=_Custom).status)
        fields |= {each for each in before if not _says(body, each)}  # not sent this time: still unknown
        if fields == before:
            return None
        self._fields[kind], self._look_at[kind] = fields, now + LOOK_S
        if not fields:
            log.info("fields of statuses are kept again", kind=kind)
            return ""
        named = ", ".join(f"status.{each}" for each in sorted(fields))
        message = (
            f"the cluster's CRDs are older than this operator and drop {named}; apply those of its version: "
            "kubectl apply --server-side --force-conflicts -f charts/mint/crds/"
        )
        log.warning("fields of statuses are not kept", kind=kind, fields=sorted(fields), error=message)
        return message


def left_out(sent: Mapping[str, Any], came: Mapping[str, Any], under: str = "") -> frozenset[str]:
    """Return the paths of the fields of `sent` that `came` lacks; items of a list share the list's path."""
    found: set[str] = set()
    for name, value in sent.items():
        path = under + name
        if name not in came:
            found |= {path} if value is not None else set()
            continue
        pairs = zip(value, came[name], strict=False) if isinstance(value, list) else [(value, came[name])]
        for mine, its in pairs:
            found |= left_out(mine, its, f"{path}.") if isinstance(mine, dict) else set()
    return frozenset(found)


def without(status: T, fields: Collection[str]) -> T:
    """Return a status as it is read back without these fields."""
    try:
        return msgspec.convert(_without(status_write.body(status), fields), type(status))
    except msgspec.ValidationError:  # one of the fields is required
        return status


def _without(body: Mapping[str, Any], fields: Collection[str], under: str = "") -> dict[str, Any]:
    return {name: _rest(value, fields, under + name) for name, value in body.items() if under + name not in fields}


def _rest(value: Any, fields: Collection[str], path: str) -> Any:
    if isinstance(value, list):
        return [_rest(each, fields, path) for each in value]
    return _without(value, fields, f"{path}.") if isinstance(value, dict) else value


def _says(body: Any, path: str) -> bool:
    """Whether a status has a value at this path."""
    if isinstance(body, list):
        return any(_says(each, path) for each in body)
    name, _, rest = path.partition(".")
    value = body.get(name)
    return _says(value, rest) if rest and value is not None else value is not None
