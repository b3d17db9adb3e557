"""Deciding which base model a request means: pure. For a name without a base, the bases' catalogs may have to decide.

What engines hold does not count: a name must not change its base because somebody asked for it there.
"""

from collections.abc import Mapping, Sequence

from mint_contracts.entries import Entry
from mint_contracts.errors import AdapterNotFound, BaseModelNotFound, InvalidRequest, MintError
from mint_contracts.listing import and_more
from mint_contracts.names import check_asked, check_base
from mint_gateway.view import MapView, incomplete


def resolve(views: Mapping[str, MapView], base: str) -> MapView:
    """Return the view of `base`, or of the only base if it is empty. Raises InvalidRequest, BaseModelNotFound."""
    if base:
        check_base(base)
        if base not in views:
            raise BaseModelNotFound(f"base model {base!r}", f"is not served here; {_known(views)}")
        return views[base]
    if len(views) == 1:
        return next(iter(views.values()))
    if not views:
        message = "none is served here, or none in the scope of your key; apply a BaseModel, or use another key"
        raise BaseModelNotFound("base model", message)
    raise InvalidRequest("base model", f"must be named, since several are served; {_known(views)}")


def candidate_bases(views: Mapping[str, MapView], base: str, adapter: str) -> Sequence[MapView]:
    """Return the views of the bases that these names may mean, at least one; `choose_base` decides between several.

    Without a base: the one where a wave has placed the adapter, else all those that may have it according to the map.
    Raises InvalidRequest (listing the bases if waves place the adapter on several), BaseModelNotFound,
    AdapterNotFound, MapUnavailable.
    """
    if adapter:
        check_asked(adapter)
    if base or not adapter or len(views) <= 1:
        return [resolve(views, base)]
    everyone = list(views.values())
    if placed := [view for view in everyone if adapter in view.placements]:
        return [_only(placed, adapter)]
    found = [view for view in everyone if view.may_have(adapter)]
    if not found:
        raise _unknown(views, adapter)
    return found


def possible_bases(
    found: Sequence[MapView], adapter: str, entries: Mapping[str, Entry | None]
) -> tuple[Sequence[MapView], Sequence[MapView]]:
    """Return those of several possible bases that know the adapter, and those whose stores may have it.

    The former precede. `entries` has the catalogs' entries by base. Bases where it was retired do not count.
    """
    left = [view for view in found if view.base not in _retired(entries)]
    known = [view for view in left if entries.get(view.base) is not None or adapter in view.published]
    return known, [view for view in left if view.may_store(adapter)]


def choose_base(
    views: Mapping[str, MapView], possible: Sequence[MapView], adapter: str, entries: Mapping[str, Entry | None]
) -> MapView:
    """Return the only one of these. If there is none, return a base where the adapter was retired: its entry says so.

    Raises InvalidRequest, AdapterNotFound, MapUnavailable.
    """
    if possible:
        return _only(possible, adapter)
    for base in sorted(_retired(entries)):
        return views[base]
    raise _unknown(views, adapter)


def _retired(entries: Mapping[str, Entry | None]) -> set[str]:
    return {base for base, entry in entries.items() if entry is not None and entry.retired}


def _only(views: Sequence[MapView], adapter: str) -> MapView:
    if len(views) > 1:
        names = ", ".join(sorted(view.base for view in views))
        raise InvalidRequest(f"adapter {adapter!r}", f"could be on several base models; name one of {names}")
    return views[0]


def _unknown(views: Mapping[str, MapView], adapter: str) -> MintError:
    """Return the error that no base has the adapter, or that this cannot be known until the map is complete."""
    for view in views.values():
        if view.record is None or view.version is None:
            return incomplete(view.base)
    return AdapterNotFound(f"adapter {adapter!r}", f"no base model serves it; {_known(views)}")


def _known(views: Mapping[str, MapView]) -> str:
    names = sorted(views)
    return f"available: {', '.join(names[:10])}{and_more(names, 10)}" if names else "no base model is served yet"
