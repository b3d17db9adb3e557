"""The models that can be asked for, as OpenAI's clients list them: pure."""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mint_contracts.errors import InvalidRequest
from mint_gateway.view import MapView

MOST = 10_000  # of one page
DEFAULT = 1000

_Json = dict[str, Any]


class Page(msgspec.Struct, frozen=True):
    """Names of models, in their order, and whether more come after."""

    names: Sequence[str]
    more: bool


def page(views: Mapping[str, MapView], after: str, limit: int) -> Page:
    """By name: base models, and the adapters that waves serve over them or Trainer calls have published.

    The million of a catalog are not listed here: they can be asked for all the same. Raises InvalidRequest.
    """
    if not 1 <= limit <= MOST:
        raise InvalidRequest("limit", f"is {limit}; it must be from 1 to {MOST}")
    names = {*views, *(adapter for view in views.values() for adapter in (*view.placements, *view.published))}
    found = heapq.nsmallest(limit + 1, (name for name in names if name > after))
    return Page(found[:limit], len(found) > limit)


def serving(views: Mapping[str, MapView], name: str) -> list[MapView]:
    """The bases over which a wave serves the adapter, or a Trainer call has published it, by their names."""
    return [view for _, view in sorted(views.items()) if name in view.placements or name in view.published]


def listed(views: Mapping[str, MapView], of: Page, created: Mapping[str, int]) -> _Json:
    """A page. `created` says when adapters were made, as far as that is known."""
    data = [
        base(views[name]) if name in views else adapter(name, serving(views, name), created.get(name, 0))
        for name in of.names
    ]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": of.more,
    }


def base(view: MapView) -> _Json:
    """A base, which was created when its BaseModel was."""
    return _model(view.base, view.record.created if view.record else 0) | {"parent": None}


def adapter(name: str, views: Sequence[MapView], created: int) -> _Json:
    """An adapter with the bases over which it is served. `created` is of the first, in Unix seconds; 0: not known."""
    bases = [view.base for view in views]
    return _model(name, created) | {"parent": bases[0], "base_models": bases}


def _model(name: str, created: int) -> _Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "mint"}
