"""The models that can be requested, in OpenAI's list format."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from mint_contracts.errors import InvalidRequest
from mint_gateway.first_names import first_names
from mint_gateway.time_slices import TimeSlices
from mint_gateway.view import MapView

MOST = 10_000  # on one page
DEFAULT = 1000

_Json = dict[str, Any]


class Page(msgspec.Struct, frozen=True):
    """Names of models, sorted, and whether more follow."""

    names: Sequence[str]
    more: bool


async def page(views: Mapping[str, MapView], after: str, limit: int) -> Page:
    """Return a page of names: base models, and adapters served by waves or published by Trainer calls.

    A catalog's million adapters are not listed, but can be requested all the same. Raises InvalidRequest.
    """
    if not 1 <= limit <= MOST:
        raise InvalidRequest("limit", f"is {limit}; it must be from 1 to {MOST}")
    adapters = (names for view in views.values() for names in (view.placements, view.published))
    found = await first_names([views, *adapters], after, limit + 1)
    return Page(found[:limit], len(found) > limit)


def in_order(views: Mapping[str, MapView]) -> list[MapView]:
    """Return the bases' views by name."""
    return [view for _, view in sorted(views.items())]


def serving(bases: Iterable[MapView], name: str) -> list[MapView]:
    """Return those of the bases on which a wave serves the adapter or a Trainer call has published it."""
    return [view for view in bases if name in view.placements or name in view.published]


async def serving_each(views: Mapping[str, MapView], of: Page) -> dict[str, list[MapView]]:
    """Return the bases that serve each adapter of a page, by name. Other requests are answered in between."""
    bases, found, slices = in_order(views), dict[str, list[MapView]](), TimeSlices()
    for name in of.names:
        if name not in views:
            found[name] = serving(bases, name)
            await slices.rest()
    return found


def listed(
    views: Mapping[str, MapView], of: Page, served: Mapping[str, Sequence[MapView]], created: Mapping[str, int]
) -> _Json:
    """Return a page in OpenAI's format.

    `served` has the bases that serve each adapter, and `created` adapters' creation dates, as far as they are known.
    """
    data = [
        base(views[name]) if name in views else adapter(name, served[name], created.get(name, 0)) for name in of.names
    ]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": of.more,
    }


def base(view: MapView) -> _Json:
    """Return a base in OpenAI's format, created when its BaseModel was."""
    return _model(view.base, view.record.created if view.record else 0) | {"parent": None}


def adapter(name: str, views: Sequence[MapView], created: int) -> _Json:
    """Return an adapter with the bases that serve it. `created` is of the first, in Unix seconds; 0: unknown."""
    bases = [view.base for view in views]
    return _model(name, created) | {"parent": bases[0], "base_models": bases}


def _model(name: str, created: int) -> _Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "mint"}
