"""Which base model a request means: pure."""

from collections.abc import Mapping

from mint_contracts.errors import AdapterNotFound, BaseModelNotFound, InvalidRequest
from mint_contracts.names import check_asked, check_base
from mint_gateway.view import MapView


def resolve(views: Mapping[str, MapView], base: str, adapter: str) -> MapView:
    """The view of the base that is named, or that the adapter's name leaves no doubt about.

    Without a base: the only one where the adapter is placed, else the only one that holds a copy, else the only one
    whose catalog or store may have it. Without either name: the only base. Raises InvalidRequest (which lists the
    bases that are possible), BaseModelNotFound, AdapterNotFound.
    """
    if adapter:
        check_asked(adapter)
    if base:
        check_base(base)
        if base not in views:
            raise BaseModelNotFound(f"base model {base!r}", f"is not served here; {_known(views)}")
        return views[base]
    if len(views) == 1:
        return next(iter(views.values()))
    if not views:
        raise BaseModelNotFound("base model", "none is served here yet; apply a BaseModel")
    if not adapter:
        raise InvalidRequest("base model", f"is not named, and there are several; {_known(views)}")
    for possible in _knowing(views, adapter):
        if len(possible) == 1:
            return possible[0]
        if possible:
            names = ", ".join(sorted(view.base for view in possible))
            raise InvalidRequest(f"adapter {adapter!r}", f"may mean one of several base models; name one of {names}")
    raise AdapterNotFound(f"adapter {adapter!r}", f"no base model serves it; {_known(views)}")


def _knowing(views: Mapping[str, MapView], adapter: str) -> list[list[MapView]]:
    """The bases that know the adapter, by how surely they do."""
    everyone = list(views.values())
    return [
        [view for view in everyone if adapter in view.placements],
        [view for view in everyone if any(view.copy(engine, adapter) for engine in view.engines.values())],
        [view for view in everyone if view.may_have(adapter)],
    ]


def _known(views: Mapping[str, MapView]) -> str:
    names = sorted(views)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"there are {shown}" if names else "no base model is served yet"
