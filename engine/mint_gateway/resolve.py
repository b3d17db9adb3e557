"""Which base model a request means: pure. Of a name alone the bases' catalogs may have to say it.

What engines hold decides nothing: a name must not mean another base because somebody asked for it there.
"""

from collections.abc import Mapping, Sequence

from mint_contracts.entries import Entry
from mint_contracts.errors import AdapterNotFound, BaseModelNotFound, InvalidRequest, MintError
from mint_contracts.names import check_asked, check_base
from mint_gateway.view import MapView, incomplete


def resolve(views: Mapping[str, MapView], base: str) -> MapView:
    """The view of the base that is named; without a name the only one. Raises InvalidRequest, BaseModelNotFound."""
    if base:
        check_base(base)
        if base not in views:
            raise BaseModelNotFound(f"base model {base!r}", f"is not served here; {_known(views)}")
        return views[base]
    if len(views) == 1:
        return next(iter(views.values()))
    if not views:
        raise BaseModelNotFound("base model", "none is served here yet; apply a BaseModel")
    raise InvalidRequest("base model", f"must be named, since several are served; {_known(views)}")


def possible(views: Mapping[str, MapView], base: str, adapter: str) -> Sequence[MapView]:
    """The views of the bases that these names may mean: one at least, and of several `meant` says which.

    Without a base: the one where a wave has placed the adapter, else those where it may be as far as the map tells.
    Raises InvalidRequest (which lists the bases, where there are waves over several), BaseModelNotFound,
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


def meant(
    views: Mapping[str, MapView], found: Sequence[MapView], adapter: str, entries: Mapping[str, Entry | None]
) -> MapView:
    """Of several possible bases the one that knows the adapter, else the one whose store may have it.

    `entries` are what catalogs say of it, by base. One that was retired means nothing: where no other base is left,
    that one is given, which says so. Raises InvalidRequest, AdapterNotFound, MapUnavailable.
    """
    retired = {base for base, entry in entries.items() if entry is not None and entry.retired}
    left = [view for view in found if view.base not in retired]
    known = [view for view in left if entries.get(view.base) is not None or adapter in view.published]
    if sought := known or [view for view in left if view.may_store(adapter)]:
        return _only(sought, adapter)
    for view in found:
        if view.base in retired:
            return view
    raise _unknown(views, adapter)


def _only(views: Sequence[MapView], adapter: str) -> MapView:
    if len(views) > 1:
        names = ", ".join(sorted(view.base for view in views))
        raise InvalidRequest(f"adapter {adapter!r}", f"could be on several base models; name one of {names}")
    return views[0]


def _unknown(views: Mapping[str, MapView], adapter: str) -> MintError:
    """That no base has the adapter, or that nobody can tell before the map is complete."""
    for view in views.values():
        if view.record is None or view.version is None:
            return incomplete(view.base)
    return AdapterNotFound(f"adapter {adapter!r}", f"no base model serves it; {_known(views)}")


def _known(views: Mapping[str, MapView]) -> str:
    names = sorted(views)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"available: {shown}" if names else "no base model is served yet"
