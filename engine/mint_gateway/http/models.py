"""The models that can be asked for, as OpenAI's clients list them: pure."""

import heapq
from collections.abc import Mapping
from typing import Any

from mint_contracts.errors import InvalidRequest
from mint_gateway.view import MapView

MOST = 10_000  # of one page
DEFAULT = 1000


def listed(views: Mapping[str, MapView], after: str, limit: int) -> dict[str, Any]:
    """One page, by name: base models, and the adapters that waves serve over them or Trainer calls have published.

    The million of a catalog are not listed here: they can be asked for all the same. Raises InvalidRequest.
    """
    if not 1 <= limit <= MOST:
        raise InvalidRequest("limit", f"is {limit}; it must be from 1 to {MOST}")
    names = {*views, *(adapter for view in views.values() for adapter in (*view.placements, *view.published))}
    page = heapq.nsmallest(limit + 1, (name for name in names if name > after))
    data = [described(views, name) for name in page[:limit]]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(page) > limit,
    }


def is_served(view: MapView, name: str) -> bool:
    """A wave serves the adapter over this base, or a Trainer call has published it."""
    return name in view.placements or name in view.published


def described(views: Mapping[str, MapView], name: str, base: str = "") -> dict[str, Any]:
    """One model: a base, or an adapter with the bases over which it is served (`base`, where no wave says so).

    A base was created when its BaseModel was; of adapters nobody notes when.
    """
    model = {"id": name, "object": "model", "created": 0, "owned_by": "mint"}
    if name in views:
        record = views[name].record
        return model | {"created": record.created if record else 0, "parent": None}
    bases = sorted(each for each, view in views.items() if is_served(view, name)) or [base]
    return model | {"parent": bases[0], "base_models": bases}
